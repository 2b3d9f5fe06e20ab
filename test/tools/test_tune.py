"""`moeloom tune`: real variants, really measured on this CPU; killed, resumed, refused; what compile makes of it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from moeloom.check import inputs_of
from moeloom.lowering import tuning as space
from moeloom.tools.main import main
from moeloom.tuning import trial
from moeloom.tuning.journal import Journal
from moeloom.tuning.plan import artifact, read

SHAPE = "hidden=64,intermediate=64,experts=8,topk=2,layers=2"
PLANNED = "plan.layout-n16k32.number-0.block-16"
ROOT = Path(__file__).resolve().parents[2]
WITHOUT_COMPILER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        rooms = ("moeloom.lowering", "moeloom.passes", "moeloom.dialects")
        if name.split(".")[0] in ("torch_mlir", "triton", "transformers", "mlir") or name.startswith(rooms):
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
from moeloom.tools.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SHORTEST_SECONDS", 0.0)


@pytest.fixture
def tune(capsys: pytest.CaptureFixture, quick: None) -> Callable[..., tuple[int, Any, str]]:
    """Runs the command in this process: (exit code, what it printed as JSON or None, stderr)."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        with pytest.raises(SystemExit) as stop:
            main(["tune", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return stop.value.code or 0, json.loads(out) if out else None, err

    return call


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose variants are compiled for the CPU: blocks of 16 rows, and of 8, for which it has no kernel."""
    directory = tmp_path_factory.mktemp("planned") / "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(space.SPACES, "cpu", {"plan": [{"block": 16}, {"block": 8}]})
        options = ["--target", "cpu", "--tokens", "1,4", "--only", "compile"]
        with pytest.raises(SystemExit) as stop:
            main(["tune", "--shape", SHAPE, "-o", str(directory), *options])
    assert not stop.value.code
    return directory


@pytest.fixture
def directory(planned: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere, as on another machine."""
    return Path(shutil.copytree(planned, tmp_path / "carried"))


def times(directory: Path) -> list[tuple]:
    events = Journal(directory / "measurements.jsonl").events
    return [(one["trial"], one["tokens"], one["round"]) for one in events if one["event"] == "time"]


def test_a_variant_that_does_not_compile_is_refused_with_the_reason(planned: Path) -> None:
    assert artifact(planned, PLANNED).is_dir()
    journal = Journal(planned / "measurements.jsonl")
    reason = journal.refused("plan.layout-n16k32.number-0.block-8")
    assert reason is not None and "sort blocks of 8 rows have no kernel for target cpu" in reason
    assert not artifact(planned, "plan.layout-n16k32.number-0.block-8").exists()


def test_measured_without_a_compiler_then_selected(tune: Callable, directory: Path) -> None:
    arguments = ["tune", "-o", str(directory), "--only", "measure", "--budget", "2", "--threads", "1", "--json"]
    command = [sys.executable, "-c", WITHOUT_COMPILER, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unfinished"] > 0 and found["compiled"] == found["variants"] == 2
    before = times(directory)
    assert before
    code, found, _ = tune("-o", directory, "--threads", 1)
    assert code == 0 and left(found) == []
    assert times(directory)[: len(before)] == before and len(set(times(directory))) == len(times(directory))
    table = json.loads((directory / "cpu.json").read_text())
    assert table == found["table"]
    assert (table["schema"], table["target"], table["model"]["experts"]) == (1, "cpu", 8)
    assert table["machine"]["device"].endswith(", 1 thread") and table["machine"]["date"][:2] == "20"
    assert set(table["noise"]) == {"1", "4"}
    assert [one["row"] for one in table["refused"]] == ["plan (layout n16k32, number 0): block 32 -> 8"]
    decided = {str(one["row"]) for one in table["kept"]} | {row["what"] for row in table["rows"]}
    assert decided & {"plan (layout n16k32, number 0): block 32 -> 16", "plan"}
    # Nothing is left to measure: the same again changes nothing.
    assert tune("-o", directory, "--only", "measure", "--threads", 1)[1]["table"] == table
    assert len(times(directory)) == len(set(times(directory)))
    assert tune("-o", directory, "--only", "select")[1]["table"] == table


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_and_gone_on_with(tune: Callable, directory: Path, how: signal.Signals, code: int) -> None:
    arguments = ["-m", "moeloom.tools.main", "tune", "-o", str(directory), "--only", "measure"]
    run = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_interrupts
    )
    end = time.monotonic() + 60
    while len(times_so_far(directory)) < 2:
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.01)
    run.send_signal(how)
    _, err = run.communicate()
    assert run.returncode == code
    assert err.strip() == ("moeloom: error: interrupted" if how is signal.SIGINT else "")
    before = times(directory)
    assert len(before) >= 2 and not (directory / "cpu.json").exists()
    code, found, _ = tune("-o", directory, "--only", "measure")
    assert code == 0 and left(found) == []
    assert times(directory)[: len(before)] == before and len(set(times(directory))) == len(times(directory))


def left(found: Mapping[str, Any]) -> list[str]:
    """The trials left to measure, but for two winners as one variant: noise can make two, and that needs a compiler."""
    return [name for name in found["table"]["unfinished"] if not name.startswith("together.")]


def heeding_interrupts() -> None:
    """A shell starts its background jobs, and what they start, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def times_so_far(directory: Path) -> list[str]:
    """Lines of times, without the reader that would mend a torn one."""
    return [line for line in (directory / "measurements.jsonl").read_text().splitlines() if '"event": "time"' in line]


def test_a_variant_with_wrong_numbers_never_wins(tune: Callable, directory: Path) -> None:
    """Its manifest says another activation than its code computes."""
    change_manifest(
        artifact(directory, PLANNED), lambda raw: [k["params"].update(alpha=0.5) for k in kernels(raw, "gate_up")]
    )
    code, found, _ = tune("-o", directory, "--only", "measure")
    assert code == 0 and left(found) == []
    (refused,) = [one for one in found["table"]["refused"] if one["row"].endswith("32 -> 16")]
    assert refused["reason"].startswith("wrong numbers at M = 1: relative L2 ")
    assert "plan" not in [row["what"] for row in found["table"]["rows"]]
    assert PLANNED not in {name for name, _, _ in times(directory)}


def test_wrong_numbers_of_the_table_in_force_are_a_failed_check(tune: Callable, directory: Path) -> None:
    change_manifest(
        artifact(directory, "in-force"), lambda raw: [k["params"].update(alpha=0.5) for k in kernels(raw, "gate_up")]
    )
    code, found, err = tune("-o", directory, "--only", "measure")
    assert (code, found) == (3, None)
    assert err.startswith("moeloom: error: the table in force gives wrong numbers on ") and err.count("\n") == 1


def test_a_variant_that_cannot_run_is_refused(tune: Callable, directory: Path) -> None:
    shutil.rmtree(artifact(directory, PLANNED) / "kernels")
    _, found, _ = tune("-o", directory, "--only", "measure")
    (refused,) = [one for one in found["table"]["refused"] if one["row"].endswith("32 -> 16")]
    assert "compile or copy the artifact again" in refused["reason"] and left(found) == []


def test_workspaces_are_sized_before_anything_is_captured(directory: Path) -> None:
    plan = read(directory)
    assert plan is not None
    trials = trial.Trials(directory, plan, threads=1)
    entry, most = plan.entries[0], max(plan.request.tokens)
    with trials.candidate(PLANNED) as own:
        for executable in (trials.in_force, own, *trials.sides(plan.thresholds[0])):
            size = executable.workspace_bytes
            executable[entry](**inputs_of(executable, entry, most, 0))
            assert executable.workspace_bytes == size > 0
    trials.close()


def kernels(raw: dict, template: str) -> list[dict]:
    return [kernel for kernel in raw["targets"]["cpu"]["kernels"].values() if kernel["template"] == template]


def change_manifest(path: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    text = json.dumps(raw).encode()
    (path / "manifest.json").write_bytes(text)
    (path / "manifest.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")


def test_another_machine_and_another_request_are_refused(tune: Callable, directory: Path) -> None:
    assert tune("-o", directory, "--only", "measure", "--budget", 1e-9)[0] == 0
    line = tune("-o", directory, "--only", "measure", "--threads", 1, "--tier", "generic")[2]
    assert "has measurements of " in line and "name another -o" in line and line.count("\n") == 1
    for option, value in (("--tokens", 7), ("--target", "sm_90"), ("--activations", "bf16"), ("--what", "plan")):
        assert f"was planned with {option} " in tune("-o", directory, option, value)[2]
    assert "was planned with --shape" in tune("-o", directory, "--shape", SHAPE.replace("64", "96"))[2]


def test_a_directory_without_a_plan(tune: Callable, tmp_path: Path) -> None:
    assert "has no plan yet: give --target" in tune("-o", tmp_path / "none")[2]
    assert (
        "has no plan yet: give --target" in tune("m", "--shape", SHAPE, "--target", "cpu", "-o", tmp_path / "none")[2]
    )
    assert "hidden=x" in tune("--shape", "hidden=x", "-o", tmp_path / "none")[2]
    line = tune("--shape", SHAPE, "--target", "gfx1", "-o", tmp_path / "none")[2]
    assert "unknown target 'gfx1'" in line


@pytest.fixture
def table(directory: Path, tmp_path: Path) -> Path:
    """A table with a row, as `tune` writes it: measured here, the row put in by hand."""
    with pytest.raises(SystemExit):
        main(["tune", "-o", str(directory), "--only", "measure", "--budget", "0.001"])
    content = json.loads((directory / "cpu.json").read_text())
    content["rows"] = [{"what": "fusion", "when": {"stage": 1}, "params": {"rows": 0}, "replaces": {"rows": 4}}]
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(content))
    return path


def test_compile_uses_a_table_and_inspect_shows_it(capsys, tiny_checkpoint: Path, table: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.moel"
    with pytest.raises(SystemExit):
        main(["compile", str(tiny_checkpoint), "-o", str(path), "--tuning", str(table)])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--tokens", "1", "--json"])
    (target,) = json.loads(capsys.readouterr().out)["targets"]
    tuning = target["tuning"]
    assert tuning["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert tuning["settings"] == [{"what": "fusion", "when": {"stage": 1}, "params": {"rows": 0}}]
    launched = [step["template"] for step in target["programs"][0]["at"][0]["steps"] if "launch" in step]
    assert launched.count("quant") == launched.count("quant_sort") == 1
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    out = capsys.readouterr().out
    assert "table: 1 tuned rows before the built-in ones, measured on " in out and tuning["sha256"][:12] in out
    assert ["fusion", "stage", "1", "rows", "0"] in [line.split() for line in out.splitlines()]
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--html", str(tmp_path / "r.html")])
    assert "1 tuned rows before the built-in ones" in (tmp_path / "r.html").read_text()


def test_gpu_variants_compile_where_there_is_no_gpu(tune: Callable, capsys, tmp_path: Path) -> None:
    directory = tmp_path / "gpu"
    given = (
        "--shape",
        SHAPE,
        "--target",
        "sm_90",
        "--activations",
        "bf16",
        "--what",
        "route,sort",
        "--only",
        "compile",
    )
    code, found, err = tune(*given, "-o", directory)
    assert (code, err) == (0, "") and found["compiled"] == found["variants"] == 2
    plan = json.loads((directory / "plan.json").read_text())
    assert [one["name"] for one in plan["candidates"]] == [
        "route.experts-8.rows-2",
        "route.experts-8.rows-4.num_warps-2",
    ]
    assert [(one["name"], one["row"]["replaces"]) for one in plan["thresholds"]] == [("sort.tokens", {"tokens": 256})]
    with pytest.raises(SystemExit):
        main(["inspect", str(artifact(directory, "route.experts-8.rows-2"))])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    tiles = {line[0]: line[-1] for line in lines if line and line[0] in ("route_0", "combine_0")}
    assert tiles == {"route_0": "tuned", "combine_0": "built-in"}
    assert "no GPU here" in tune("-o", directory, "--only", "measure", "--device", "cuda")[2]
    assert os.listdir(directory / "variants")
