"""The worker pool with a worker of its own: what it makes is kept, and every way to fail is one line and no file."""

import os
import time

import pytest

from moeloom.lowering.cache import LOOKED_THROUGH
from moeloom.lowering.jobs import CompileError, Job, content_key
from moeloom.lowering.workers import Workers, make

WORKER = """
import ctypes, os, pathlib, sys, time
from moeloom.lowering.jobs import CompileError
from moeloom.lowering.processes import serve

def compile(work, path):
    do = work["do"]
    if do == "folder":
        path.mkdir()
        (path / "code").write_text(work["text"])
    elif do == "file":
        print("compilers chat on stdout")
        print("and warn on stderr", file=sys.stderr)
        path.write_text(work["text"] + os.environ.get("CHOSEN", ""))
    elif do == "say who":
        path.write_text(str(os.getpid()))
    elif do == "refuse":
        raise CompileError("it asks for 3 warps")
    elif do == "raise":
        print("x.s:7: error: it was this", file=sys.stderr, flush=True)
        raise ValueError("first line\\nptxas x.ptx, line 3; error : no such thing\\nlast line")
    elif do == "say error":
        path.write_text("broken")
        ctypes.CDLL(None).perror(b"<inline asm>:1:2: error: invalid operand")
    elif do == "abort":
        path.write_text("half")
        print("LLVM ERROR: Cannot select\\nStack dump:\\n0. main", file=sys.stderr, flush=True)
        os.abort()
    elif do == "exit":
        os._exit(3)
    elif do == "refuse aloud":
        os.symlink(f"/proc/{os.getpid()}", work["text"])
        raise CompileError("it asks for 3 warps")
    elif do == "wait for its end":  # of the worker that refused: it is killed once the jobs behind it are off the list
        refused, patience = pathlib.Path(work["text"]), time.monotonic() + 60
        while (not refused.is_symlink() or refused.exists()) and time.monotonic() < patience:
            time.sleep(0.01)
        path.write_text("late")
    # "nothing" makes nothing

serve(compile)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The worker above, importable."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "worker_of_test.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path / "sources")
    return "worker_of_test"


def job(do, text="x", **more):
    work = {"do": do, "text": text}
    return Job(f"kernel {text}", work, content_key(work, "compiler 1"), **more)


def quiet(done, total):
    pass


def test_makes_every_job_once_and_keeps_it(module, tmp_path):
    jobs = [job("file", "a"), job("folder", "b", cost=1), job("file", "c"), job("file", "a")]
    seen = []
    paths = make(module, jobs, tmp_path / "kept", lambda done, total: seen.append((done, total)))
    assert [path.read_text() for path in (paths[0], paths[1] / "code", paths[2])] == ["a", "b", "c"]
    assert paths[3] == paths[0]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted((tmp_path / "kept").iterdir()) == sorted({*paths, tmp_path / "kept" / LOOKED_THROUGH})
    # The second time no worker starts: there is no such module.
    seen.clear()
    assert make("no_such_module", jobs, tmp_path / "kept", lambda *counts: seen.append(counts)) == paths
    assert seen == [(3, 3)]


def test_gives_workers_the_environment_asked_for(module, tmp_path):
    [path] = make(module, [job("file")], tmp_path, quiet, {**os.environ, "CHOSEN": "!"})
    assert path.read_text() == "x!"


@pytest.mark.parametrize(
    ("do", "problem"),
    [
        ("refuse", "it asks for 3 warps"),
        ("raise", "ValueError: ptxas x.ptx, line 3; error : no such thing: x.s:7: error: it was this"),
        ("say error", "<inline asm>:1:2: error: invalid operand: Success"),
        ("abort", "LLVM ERROR: Cannot select"),
        ("exit", "the compiler ended with 3"),
        ("nothing", "the compiler wrote nothing"),
    ],
)
def test_failure_is_one_line_and_leaves_no_file(module, tmp_path, do, problem):
    with pytest.raises(CompileError) as error:
        make(module, [job(do, "bad_0")], tmp_path / "kept", quiet)
    assert str(error.value) == f"compiling kernel bad_0 failed: {problem}"
    assert list((tmp_path / "kept").iterdir()) == []


def test_failure_stops_the_jobs_behind_it(module, tmp_path):
    refused = tmp_path / "refused"
    waits = [Job("kernel late", {"do": "wait for its end", "text": str(refused)}, f"late_{n}") for n in range(40)]
    with pytest.raises(CompileError, match="3 warps"):
        make(module, [job("refuse aloud", str(refused), cost=1), *waits], tmp_path / "kept", quiet)
    assert len(list((tmp_path / "kept").iterdir())) < len(os.sched_getaffinity(0))  # those that had begun


def is_running(process: str) -> bool:
    return os.path.exists(f"/proc/{process}")


def test_workers_wait_for_more_and_end_with_who_keeps_them(module, tmp_path):
    with Workers(tmp_path / "kept") as workers:
        (tmp_path / "kept").mkdir()
        first, second, third = (
            make(module, [job("say who", text)], workers.folder, quiet, workers=workers)[0].read_text()
            for text in "abc"
        )
        assert first == second == third and is_running(first)
        with pytest.raises(CompileError):
            make(module, [job("refuse")], workers.folder, quiet, workers=workers)
        assert not is_running(first)  # one that has failed is not used again
        [path] = make(module, [job("say who", "d")], workers.folder, quiet, workers=workers)
        assert path.read_text() != first and is_running(path.read_text())
    assert not is_running(path.read_text())
    assert {path.name.partition("_")[0] for path in workers.folder.iterdir()} == {
        LOOKED_THROUGH,
        *(job("say who", text).key for text in "abcd"),
    }


def test_workers_that_were_started_ahead_are_used(module, tmp_path):
    with Workers(tmp_path) as workers:
        workers.start(module, {**os.environ, "CHOSEN": "!"})
        patience = time.monotonic() + 60
        while not list(tmp_path.glob("tmp*/stderr")) and time.monotonic() < patience:
            time.sleep(0.01)
        [path] = make(module, [job("file")], tmp_path, quiet, {**os.environ, "CHOSEN": "?"}, workers)
        assert path.read_text() == "x!"


def test_workers_that_cannot_start_say_why_when_they_are_asked(tmp_path):
    with Workers(tmp_path) as workers:
        workers.start("no_such_module", os.environ)
        with pytest.raises(CompileError, match=r"kernel x failed: .*No module named no_such_module"):
            make("no_such_module", [job("file")], tmp_path, quiet, workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_forks_that_end_before_they_are_ready_say_so(module, tmp_path):
    early = "import os\nfrom moeloom.lowering import processes\n"
    early += "processes._work = lambda compile, channel, scratch: os._exit(7)\nprocesses.serve(print)\n"
    (tmp_path / "sources" / "early_worker_of_test.py").write_text(early)
    with pytest.raises(CompileError, match=r"kernel x failed: the compiler ended with 7$"):
        make("early_worker_of_test", [job("file")], tmp_path / "kept", quiet)
    assert list((tmp_path / "kept").iterdir()) == []


def test_workers_that_nobody_asks_end_too(module, tmp_path):
    with Workers(tmp_path) as workers:
        workers.start(module, os.environ)
    assert list(tmp_path.glob("tmp*")) == []


def test_what_costs_most_is_made_first(module, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    jobs = [job("file", text, cost=cost) for text, cost in (("a", 0), ("b", 8), ("c", 160), ("d", 16))]
    paths = make(module, jobs, tmp_path, quiet)
    assert [path.read_text() for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)] == [
        "c",
        "d",
        "b",
        "a",
    ]


def test_what_is_ordered_ahead_is_made_once(module, tmp_path):
    """The second order of a thing waits for the first; what fails ahead is asked for again, and then told."""
    with Workers(tmp_path) as workers:
        ahead = workers.order(module, [job("say who", "a"), job("refuse", "b")], os.environ)
        assert workers.order(module, [job("say who", "a")], os.environ) == ahead[:1]
        seen = []
        [path] = make(module, [job("say who", "a")], tmp_path, lambda *counts: seen.append(counts), workers=workers)
        assert ahead[0].done() and path.exists() and seen[-1] == (1, 1)
        assert workers.order(module, [job("say who", "a")], os.environ) == []
        assert isinstance(ahead[1].exception(), CompileError)
        with pytest.raises(CompileError, match="3 warps"):
            make(module, [job("refuse", "b")], tmp_path, quiet, workers=workers)


def test_what_is_ordered_and_not_wanted_ends_with_the_workers(module, tmp_path):
    with Workers(tmp_path / "kept") as workers:
        orders = workers.order(module, [job("wait for its end", f"{n}") for n in range(40)], os.environ)
        start = time.monotonic()
    assert time.monotonic() - start < 30
    assert list(workers.folder.iterdir()) == []
    assert all(order.exception() for order in orders if order.done())


def test_key_follows_the_work_and_the_compiler():
    keys = {content_key({"a": 1}, "1"), content_key({"a": 2}, "1"), content_key({"a": 1}, "2")}
    assert len(keys) == 3
    assert content_key({"a": 1, "b": 2}, "1") == content_key({"b": 2, "a": 1}, "1")
