"""benchmarks/moe_layer.py on the CPU target, with transformers as the peer, and compare_layers.py: real rows of tiny
layers."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import moeloom

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artifacts(checkpoint, tmp_path_factory) -> Path:
    """What make_artifacts.py's group "timed" is, tiny and for the CPU; a layer lacks its artifacts."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, family in (("four-layers", "gpt_oss"), ("qwen3", "qwen3_moe")):
        for suffix, activations in (("a16", "bf16"), ("a4", "mxfp4")):
            quantised = {} if family == "gpt_oss" else {"quantize_weights": "mxfp4"}
            path = folder / "timed" / f"{name}-{suffix}.moel"
            path.parent.mkdir(exist_ok=True)
            moeloom.compile(checkpoint(family), path, activations=activations, **quantised)
    return folder


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark(*arguments) -> (exit code, output), in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr("moeloom.measure.read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr("moeloom.timing.PAUSE_SECONDS", 0.0)
    module = importlib.import_module("moe_layer")
    monkeypatch.setattr(module, "matmul_rate", lambda device: (4e9, 2e9))
    monkeypatch.setattr(module, "RUNS", 2)
    monkeypatch.setattr(sys.modules["moe_layer_row"], "calls_of", lambda tokens: 2)
    options = ("--device", "cpu", "--threads", "1", "--sustained-seconds", "0.02")

    def call(*arguments: object) -> tuple[int, str]:
        measured = not str(arguments[0]).startswith("--")
        result = CliRunner().invoke(module.main, [*map(str, arguments), *(options if measured else ())])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    yield call
    for name in ("moe_layer", "moe_layer_row", "moe_layer_report"):
        sys.modules.pop(name, None)


def records(path: Path, kind: str) -> list[dict]:
    return [record for record in map(json.loads, path.read_text().splitlines()) if record["kind"] == kind]


def test_rows_say_time_floor_and_peers(benchmark, artifacts, tmp_path):
    out = tmp_path / "r.jsonl"
    code, text = benchmark(artifacts, "--out", out, "--what", "uniform,shapes,prefill", "--tokens", "4")
    assert code == 0 and "Uniform routing" in text and "moeloom A16" in text
    rows = records(out, "row")
    assert [row["what"] for row in rows] == ["uniform", "prefill", "shapes"]  # layer by layer
    assert [row["layer"] for row in rows] == ["gpt-oss-120b", "gpt-oss-120b", "Qwen3-MoE"]
    for row in rows:
        names = [side["name"] for side in row["sides"]]
        peers = [f"transformers {name}" for name in ("eager", "grouped_mm", "batched_mm")]
        assert names == ["moeloom A16", "moeloom A4", *peers]
        assert all(side["burst"] > 0 and side["sustained"] > 0 and not side["note"] for side in row["sides"])
        assert all(side["relative_l2"] < 1e-2 for side in row["sides"])
        assert any(side["relative_l2"] > 0 for side in row["sides"][2:])
        # Two of eight experts a token, H = I = 64: the bytes of those that got one, biases and the router.
        expert = 3 * 64 * 64 * 17 // 32 + (4 * 3 * 64 if row["layer"] == "gpt-oss-120b" else 0)
        router = 2 * 8 * 64 + (2 * 8 if row["layer"] == "gpt-oss-120b" else 0)
        assert 2 <= row["experts"] <= 8 and row["touched_bytes"] == pytest.approx(row["experts"] * expert + router)
        assert row["floor_seconds"] == pytest.approx(row["touched_bytes"] / 1e9)
        assert row["reference_floor_seconds"] == pytest.approx(row["touched_bytes"] / 4.57e12)
        assert row["useful_flops"] == 2 * 4 * 2 * 3 * 64 * 64
    (note,) = records(out, "note")
    assert note["layer"].startswith("DeepSeek") and "no artifact" in note["text"]
    (run,) = records(out, "run")
    assert "not to be had" in run["clocks"] and run["matmul_flops"] == {"burst": 4e9, "sustained": 2e9}
    assert json.loads((tmp_path / "r.json").read_text()) == [run, *rows[:2], note, rows[2]]


def test_skewed_rows_are_medians_of_runs(benchmark, artifacts, tmp_path):
    out, picture = tmp_path / "r.jsonl", tmp_path / "r.png"
    code, _ = benchmark(artifacts, "--out", out, "--what", "skewed", "--tokens", "16", "--peers", "transformers")
    rows = records(out, "row")
    kinds = ("zipf", "one_set", "topics")
    assert code == 0 and [(row["run"], row["routing"]) for row in rows] == [(n, kind) for n in (0, 1) for kind in kinds]
    assert all(row["experts"] == 2 and row["busiest_share"] == 0.5 for row in rows if row["routing"] == "one_set")
    assert all(row["sides"][0]["name"] == "moeloom A16" and row["sides"][1]["burst"] for row in rows)
    code, text = benchmark("--plot", out, picture, "--markdown", out)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    (line,) = (line for line in text.splitlines() if line.startswith("| zipf | 16 |"))
    ratios = [min(s["burst"] for s in row["sides"][1:]) / row["sides"][0]["burst"] for row in rows[0::3]]
    assert f"| {sum(ratios) / 2:.2f} / " in line


def test_a_cut_run_goes_on(benchmark, artifacts, tmp_path):
    out = tmp_path / "r.jsonl"
    parts = ("--what", "uniform", "--tokens", "1,2,3", "--peers", "none")
    code, text = benchmark(artifacts, "--out", out, *parts, "--budget", "0")
    assert code == 0 and "3 rows are left" in text and not out.exists()
    assert benchmark(artifacts, "--out", out, "--what", "uniform", "--tokens", "2", "--peers", "none")[0] == 0
    out.write_text(out.read_text() + '{"kind": "row", "what": "unif')  # cut while it was written
    assert benchmark(artifacts, "--out", out, *parts)[0] == 2  # exists
    code, text = benchmark(artifacts, "--out", out, *parts, "--resume")
    found = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and [row.get("tokens") for row in found] == [None, 2, None, 1, 3]


def test_wrong_numbers_are_not_timed(benchmark, artifacts, tmp_path, monkeypatch):
    from moeloom.runtime import reference

    right = reference.activate
    monkeypatch.setattr(reference, "activate", lambda *arguments: 1.02 * right(*arguments))
    out = tmp_path / "r.jsonl"
    benchmark(artifacts, "--out", out, "--what", "uniform", "--tokens", "2", "--peers", "none")
    (row,) = records(out, "row")
    assert all(side["burst"] is None and "wrong: relative L2" in side["note"] for side in row["sides"])


def test_a_peer_that_fails_is_a_line(benchmark, artifacts, tmp_path, monkeypatch):
    from moeloom import transformers_peer

    def fails(*_: object) -> list:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(transformers_peer, "provide", fails)
    fails.__module__ = "moeloom.transformers_peer"
    out = tmp_path / "r.jsonl"
    code, text = benchmark(artifacts, "--out", out, "--what", "uniform", "--tokens", "2")
    assert code == 0 and "no peer: moeloom.transformers_peer: RuntimeError: out of luck" in text
    assert len(records(out, "row")) == 1


def test_nothing_to_measure(benchmark, artifacts, tmp_path):
    assert benchmark(artifacts, "--what", "all")[0] == 2
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert "uniform, skewed, shapes, prefill" in benchmark(artifacts, "--what", "all")[1]


def test_layers_in_turns(benchmark, artifacts):
    module = importlib.import_module("compare_layers")
    paths = [artifacts / "timed" / f"four-layers-{suffix}.moel" for suffix in ("a16", "a4")]
    options = ("--tokens", "1,3", "--routing", "one_set", "--rounds", "1", "--sustained-seconds", "0.02")
    result = CliRunner().invoke(module.main, [*map(str, paths), *options])
    sys.modules.pop("compare_layers")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split("   ")[0] for line in lines] == ["one_set M = 1", "one_set M = 3"]
    assert all(line.count(" us") == 2 and all(str(path) in line for path in paths) for line in lines)
