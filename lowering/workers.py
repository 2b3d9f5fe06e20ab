"""Compilation in worker processes: what they make is kept by content, and a crash becomes an error of one line.

A worker is a module that ends in `serve(compile)`. It says READY; then jobs reach it as JSON lines on stdin, and a JSON
line goes back for each one. A compiler that aborts takes a worker with it and not us, and one that prints `error:` and
returns has failed too.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any

from moeloom.lowering.cache import hit, trim

ERROR = re.compile(r"\berror *:", re.IGNORECASE)
READY = "ready"
MOST_AHEAD = 8
"""Workers that are started before it is known how much there is to do."""


class CompileError(Exception):
    """A kernel, a compiler or a linker does not do what a target needs. One line."""


@dataclass(frozen=True)
class Job:
    """One thing to make, a file or a folder. `name` is how an error calls it: "kernel quant_0 for gfx950".

    `work` is what the worker gets, JSON. `key` is everything that the thing depends on, with its suffix. What has the
    highest `cost`, in no unit, is started first.
    """

    name: str
    work: Mapping[str, Any]
    key: str
    cost: int = 0


def content_key(work: Mapping[str, Any], compiler: str) -> str:
    """A key that changes with the job and with `compiler` (see `sources`)."""
    return hashlib.sha256((json.dumps(work, sort_keys=True) + compiler).encode()).hexdigest()


@cache
def sources(folder: Path, package: str) -> str:
    """A hash of the Python files of `folder` and of the version of the compiler `package`."""
    digest = hashlib.sha256(version(package).encode())
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def make(
    module: str,
    jobs: Sequence[Job],
    folder: Path,
    progress: Callable[[int, int], None],
    environment: Mapping[str, str] = os.environ,
    workers: Workers | None = None,
) -> list[Path]:
    """What every job makes, in order, made by workers that run `module` where `folder` lacks it.

    environment: of the workers. `workers`, of the same folder, are used and left, else there are some for this alone.
    CompileError when one fails; nothing of its job is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / job.key for job in jobs]
    wanted = dict(zip(paths, jobs, strict=True))
    missing = [(path, job) for path, job in wanted.items() if not hit(path)]
    # Long ones first, so that no worker is left alone with one at the end.
    left = deque(sorted(missing, key=lambda item: -item[1].cost))
    lock, done = Lock(), len(wanted) - len(missing)
    progress(done, len(wanted))

    def finished() -> None:
        nonlocal done
        with lock:
            done += 1
            progress(done, len(wanted))

    if missing:
        count = min(_cpus(), len(missing))
        with nullcontext(workers) if workers else Workers(folder) as own, ThreadPoolExecutor(count) as pool:
            drives = [pool.submit(_drive, own, module, environment, left, finished) for _ in range(count)]
            for drive in drives:
                drive.result()
        trim(folder)
    return paths


class Workers:
    """Processes that make things in `folder`, of several modules; who is done waits for more. Closed, they end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock, self._closed = Lock(), False
        self._idle: dict[str, list[_Worker]] = {}
        self._starting: dict[str, Thread] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
            idle = [worker for workers in self._idle.values() for worker in workers]
        for worker in idle:
            worker.kill()
        for thread in self._starting.values():
            thread.join()
        for worker in idle:
            worker.end()

    def start(self, module: str, environment: Mapping[str, str]) -> None:
        """Start workers that run `module`, one a CPU, until the first is taken: in the background and one after
        another, since who calls this has something else to do."""
        self._starting[module] = Thread(target=self._start, args=(module, environment), daemon=True)
        self._starting[module].start()

    def _start(self, module: str, environment: Mapping[str, str]) -> None:
        for number in range(min(_cpus(), MOST_AHEAD)):
            with self._lock:
                idle = self._idle.setdefault(module, [])
                if self._closed or len(idle) < number:
                    return
                worker = _Worker(module, self.folder, environment)
                idle.append(worker)
            worker.wait_until_ready()

    def take(self, module: str, environment: Mapping[str, str]) -> _Worker:
        """A worker that runs `module`: one that waits, or a new one."""
        with self._lock:
            idle = self._idle.get(module)
            return idle.pop(0) if idle else _Worker(module, self.folder, environment)

    def give(self, worker: _Worker) -> None:
        """Have it wait for more."""
        with self._lock:
            self._idle.setdefault(worker.module, []).append(worker)


class _Worker:
    def __init__(self, module: str, folder: Path, environment: Mapping[str, str]):
        self.module = module
        self._lock, self._said = Lock(), ""
        with ExitStack() as opened:
            scratch = opened.enter_context(tempfile.TemporaryDirectory(dir=folder))
            self.made = Path(scratch, "made")
            self._complaints = opened.enter_context(open(Path(scratch, "stderr"), "a+"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
                # What a compiler leaves behind goes with the folder.
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": scratch},
            )
            self._opened = opened.pop_all()

    def wait_until_ready(self) -> bool:
        """False where it has ended instead."""
        with self._lock:
            if not self._said:
                assert self._process.stdout is not None
                self._said = self._process.stdout.readline() or "nothing"
            return self._said.strip() == READY

    def ask(self, job: Job) -> str:
        """Have it make `made`; the line that says why it could not, or ""."""
        process, complaints = self._process, self._complaints
        assert process.stdin is not None and process.stdout is not None
        start = complaints.seek(0, os.SEEK_END) if self.wait_until_ready() else 0
        with suppress(BrokenPipeError):
            print(json.dumps([job.work, str(self.made)]), file=process.stdin, flush=True)
        reply = process.stdout.readline()
        complaints.seek(start)
        said = complaints.read()
        if not reply:
            return one_line(said) or f"the compiler ended with {process.wait()}"
        problem, complaint = json.loads(reply)["problem"], one_line(said) if ERROR.search(said) else ""
        if complaint and complaint not in problem:
            problem += f": {complaint}" if problem else complaint
        return problem or ("" if self.made.exists() else "the compiler wrote nothing")

    def kill(self) -> None:
        self._process.kill()  # it has nothing left to say, and a compiler takes its time to end

    def end(self) -> None:
        self.kill()
        with suppress(BrokenPipeError), self._opened, self._process:  # it may not have read its last job
            pass


def _drive(
    workers: Workers,
    module: str,
    environment: Mapping[str, str],
    left: deque[tuple[Path, Job]],
    finished: Callable[[], None],
) -> None:
    """Feed one worker until nothing is left; after a failure nothing is left for the others either."""
    worker = workers.take(module, environment)
    try:
        while (item := _next(left)) is not None:
            path, job = item
            problem = worker.ask(job)
            if problem:
                raise CompileError(f"compiling {job.name} failed: {problem}")
            _publish(worker.made, path)
            finished()
    except BaseException:
        left.clear()
        worker.end()
        raise
    workers.give(worker)


def _next(left: deque[tuple[Path, Job]]) -> tuple[Path, Job] | None:
    with suppress(IndexError):
        return left.popleft()
    return None


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def one_line(said: str) -> str:
    """The last line that calls itself an error, or the last one: what comes before is context."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if ERROR.search(line)), lines[-1] if lines else "")


def _publish(made: Path, path: Path) -> None:
    """Put what was made into its place, whole."""
    try:
        made.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(made)  # a folder that another process has put there first


def serve(compile: Callable[[Mapping[str, Any], Path], None]) -> None:
    """A worker: calls compile(work, path) for each job until stdin ends."""
    # Compilers print what they like on stdout; the replies have a channel of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Between jobs alone: a kernel makes so many objects that searching the imported modules for cycles costs a tenth.
    gc.disable()
    gc.freeze()
    print(READY, file=replies, flush=True)
    for line in sys.stdin:
        work, path = json.loads(line)
        problem = ""
        try:
            compile(work, Path(path))
        except CompileError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {one_line(str(error))}"
        print(json.dumps({"problem": problem}), file=replies, flush=True)
        gc.collect()
