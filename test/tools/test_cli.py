"""The `moeloom` command: what it prints, how it refuses, and what it leaves behind when it is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeloom
from moeloom.tools.main import main

COMMANDS = ("compile", "run", "check", "bench", "inspect", "tune")


@pytest.fixture
def cli(capsys):
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def refused(cli, tmp_path):
    """Runs a command that must fail: one line on stderr, nothing on stdout; returns the line."""

    def call(*arguments: object, code: int = 1) -> str:
        before = sorted(tmp_path.rglob("*"))
        found, out, err = cli(*arguments)
        assert (found, out) == (code, "")
        assert err.startswith("moeloom: error: ") and err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"  moeloom {command} " in out


def test_help_documents_exit_codes(cli):
    assert "Exit codes: 0 done; 1 an error, told in one line; 2 a wrong command line; 3 a failed check." in cli("-h")[1]


def test_version(cli):
    assert cli("--version")[1] == f"moeloom, version {moeloom.__version__}\n"


def test_compile_reports_what_was_fused(cli, tiny_checkpoint, tmp_path):
    code, out, err = cli("compile", tiny_checkpoint, "-o", tmp_path / "a.moel", "--require-fusion", 4, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["fused"] == 4
    assert report["path"] == str(tmp_path / "a.moel")
    assert "model.layers.1.mlp.experts" in report["entries"]
    assert {record["decision"] for record in report["records"]} == {"fused"}
    assert set(report["seconds"]) >= {"import", "fuse", "lower", "kernels cpu", "weights"}
    assert (tmp_path / "a.moel" / "manifest.json").is_file()


def test_run_writes_what_the_library_computes(cli, tiny_artifact, tmp_path):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    save_file({"x": x}, tmp_path / "in.safetensors")
    name = "model.layers.1.mlp"
    files = ("--input", tmp_path / "in.safetensors", "--output", tmp_path / "out.safetensors")
    code, out, _ = cli("run", tiny_artifact, "--entry", name, *files, "--json")
    assert code == 0
    assert json.loads(out)["outputs"]["output"]["shape"] == [3, 64]
    with moeloom.load(tiny_artifact) as executable:
        assert torch.equal(load_file(tmp_path / "out.safetensors")["output"], executable[name](x))


def test_run_makes_the_same_inputs_from_the_same_seed(cli, tiny_artifact):
    norms = [
        json.loads(cli("run", tiny_artifact, "--tokens", 5, "--seed", seed, "--json")[1])["outputs"]["output"]["norm"]
        for seed in (1, 1, 2)
    ]
    assert norms[0] == norms[1] != norms[2]


def test_check_covers_every_program(cli, tiny_artifact):
    code, out, _ = cli("check", tiny_artifact, "--tokens", "1,7", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["failed"] == 0
    compared = {(figure["entry"].rpartition(".")[2], figure["compared"]) for figure in found["figures"]}
    assert compared == {
        *((entry, "reference") for entry in ("mlp", "experts", "experts_prequantised")),
        *((entry, "fused and split") for entry in ("mlp", "experts", "experts_prequantised")),
        ("experts_prequantised", "fresh and prequantised"),
    }
    assert all(figure["value"] <= figure["limit"] for figure in found["figures"])


def test_check_fails_on_wrong_numbers(cli, tiny_artifact, monkeypatch):
    from moeloom.runtime import reference

    right = reference.activate
    monkeypatch.setattr(reference, "activate", lambda *arguments: 1.02 * right(*arguments))
    code, out, _ = cli("check", tiny_artifact, "--tokens", "4", "--entry", "model.layers.0.mlp")
    assert code == 3
    assert "FAILED" in out and "1 failed" in out


def test_bench_states_time_and_floor(cli, tiny_artifact, monkeypatch):
    monkeypatch.setattr("moeloom.measure.read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr("moeloom.measure.SHORTEST_SECONDS", 0.0)
    code, out, _ = cli("bench", tiny_artifact, "--tokens", "1,64", "--fusion", "--threads", 1, "--no-peers", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["device"] == "1 thread"
    rows = {(row["artifact"].split()[-1], row["tokens"]): row for row in found["rows"]}
    assert set(rows) == {(which, m) for which in ("fused", "split") for m in (1, 64)}
    # Two of eight experts hold a token at M = 1, all of them at M = 64; each has 2*64*64 + 64*64 weights.
    expert = 3 * 64 * 64 * 17 // 32 + 4 * 3 * 64
    router = 2 * (8 * 64 + 8)
    assert rows["fused", 1]["touched_bytes"] == 2 * expert + router
    assert rows["fused", 64]["touched_bytes"] == 8 * expert + router
    assert rows["split", 1]["launches"] == rows["fused", 1]["launches"] + 2
    assert all(row["floor_seconds"] == row["touched_bytes"] / 1e9 for row in found["rows"])


def test_random_weights_run_and_check(cli, tiny_checkpoint, tmp_path):
    artifact = tmp_path / "a.moel"
    assert cli("compile", tiny_checkpoint / "config.json", "-o", artifact, "--weights", "random", "--seed", 1)[0] == 0
    assert cli("check", artifact, "--tokens", "1,33")[0] == 0
    norm = json.loads(cli("run", artifact, "--json")[1])["outputs"]["output"]["norm"]
    own = json.loads(cli("run", artifact, "--weights-from", tiny_checkpoint, "--json")[1])["outputs"]["output"]["norm"]
    assert norm > 0 and own > 0 and norm != own
    (target,) = json.loads(cli("inspect", artifact, "--json")[1])["targets"]
    assert target["weights_bytes"] > 0


def test_weights_from_nowhere(refused, tiny_artifact, tmp_path):
    assert "no checkpoint directory" in refused("run", tiny_artifact, "--weights-from", tmp_path / "none")


def test_bench_times_peers(cli, tiny_artifact, monkeypatch):
    monkeypatch.setattr("moeloom.measure.read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr("moeloom.measure.SHORTEST_SECONDS", 0.0)
    code, out, _ = cli("bench", tiny_artifact, "--tokens", "2", "--json")
    first, *others = json.loads(out)["rows"]
    assert code == 0 and first["ratio"] == 1
    assert [row["artifact"] for row in others] == [f"transformers {n}" for n in ("eager", "grouped_mm", "batched_mm")]
    assert all(row["ratio"] == row["seconds"] / first["seconds"] and row["relative_l2"] < 0.3 for row in others)


def test_bench_sustained_and_routed(cli, tiny_artifact, monkeypatch):
    monkeypatch.setattr("moeloom.measure.read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr("moeloom.measure.SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr("moeloom.timing.SUSTAINED_SECONDS", 0.1)
    options = ("--tokens", 16, "--entry", "model.layers.0.mlp", "--sustained", "--json", "--routing")
    rows = {kind: json.loads(cli("bench", tiny_artifact, *options, kind)[1])["rows"] for kind in ("natural", "one_set")}
    assert all(row["sustained"] > 0 for both in rows.values() for row in both)
    # All tokens on two of eight experts.
    expert, router = 3 * 64 * 64 * 17 // 32 + 4 * 3 * 64, 2 * (8 * 64 + 8)
    assert rows["one_set"][0]["touched_bytes"] == 2 * expert + router < rows["natural"][0]["touched_bytes"]


def test_bench_says_why_there_is_no_peer(cli, tiny_artifact, monkeypatch):
    monkeypatch.setattr("moeloom.measure.read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr("moeloom.measure.SHORTEST_SECONDS", 0.0)
    code, out, _ = cli("bench", tiny_artifact, "--tokens", "2", "--entry", "model.layers.0.mlp.experts")
    assert code == 0 and "no peer: transformers: entry 'model.layers.0.mlp.experts' is no whole block" in out


def test_inspect_names_what_runs(cli, tiny_artifact):
    code, out, _ = cli("inspect", tiny_artifact, "--tokens", "1,100000", "--json")
    assert code == 0
    found = json.loads(out)
    assert [record["decision"] for record in found["report"]] == ["fused", "fused"]
    (target,) = found["targets"]
    assert target["runs_here"] in {library["tier"] for library in target["libraries"]}
    block = next(program for program in target["programs"] if "model.layers.0.mlp" in program["entries"])
    few, many = ([step.get("template") for step in at["steps"]] for at in block["at"])
    assert "quant_sort" in few and "quant" not in few
    assert "quant_sort" not in many and many.count("quant") == many.count("sort_scales") == 2


def test_inspect_agrees_with_a_trace(cli, tiny_artifact):
    name = "model.layers.0.mlp"
    (target,) = json.loads(cli("inspect", tiny_artifact, "--tokens", 9, "--json")[1])["targets"]
    at = next(program for program in target["programs"] if name in program["entries"])["at"][0]
    with moeloom.load(tiny_artifact) as executable:
        _, ran = executable[name].trace(torch.zeros(9, 64, dtype=torch.bfloat16))
    assert [launch.kernel for launch in ran] == [step["launch"] for step in at["steps"] if "launch" in step]


def test_tables_are_for_people(cli, tiny_artifact):
    out = cli("inspect", tiny_artifact, "--tokens", 1)[1]
    assert "<- this machine" in out and "fused   model.layers.0.mlp (x2) stage 1:" in out


def test_unknown_target(refused, tiny_checkpoint, tmp_path):
    assert "'gfx1'" in refused("compile", tiny_checkpoint, "-o", tmp_path / "a.moel", "--target", "gfx1")


def test_missing_checkpoint(refused, tmp_path):
    assert str(tmp_path / "none") in refused("compile", tmp_path / "none", "-o", tmp_path / "a.moel")


def test_unknown_model_class(refused, tmp_path, tmp_path_factory):
    model = tmp_path_factory.mktemp("bert")
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    line = refused("compile", model / "config.json", "-o", tmp_path / "a.moel", "--weights", "none")
    assert "gpt_oss" in line


def test_truncated_shard(refused, tiny_checkpoint, tmp_path, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken") / "tiny"
    shutil.copytree(tiny_checkpoint, broken)
    shard = sorted(broken.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    assert shard.name in refused("compile", broken, "-o", tmp_path / "a.moel")


def test_too_few_fused(refused, tiny_checkpoint, tmp_path):
    options = ("--activations", "bf16", "--require-fusion", 1)
    assert "bf16 activations" in refused("compile", tiny_checkpoint, "-o", tmp_path / "a.moel", *options)


def test_existing_output(refused, tiny_checkpoint, tiny_artifact):
    assert "exists" in refused("compile", tiny_checkpoint, "-o", tiny_artifact)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("-o", "{}/file/x cannot be written: File exists; name another output"),
        (
            "--cache",
            "the cache {}/file/x cannot be written: Not a directory; choose another folder by --cache or MOELOOM_CACHE",
        ),
        ("--dump-phases", "{}/file/x: Not a directory"),
    ],
)
def test_nowhere_to_write(refused, tiny_checkpoint, tmp_path, option, said):
    (tmp_path / "file").touch()
    line = refused("compile", tiny_checkpoint, "-o", tmp_path / "a.moel", option, tmp_path / "file" / "x")
    assert line.endswith(said.format(tmp_path) + "\n")


SITE = """func.func @site(%x: tensor<?x64xbf16> {moe.input = "x"}) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>) {
  %codes, %scales = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
    : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return %codes, %scales : tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>
}
"""


def test_cache_folder(cli, tmp_path, monkeypatch):
    (tmp_path / "site.mlir").write_text(SITE)
    monkeypatch.setenv("MOELOOM_CACHE", str(tmp_path / "by-environment"))
    for output, options in (("a.moel", ()), ("b.moel", ("--cache", tmp_path / "by-option"))):
        assert cli("compile", tmp_path / "site.mlir", "-o", tmp_path / output, *options)[0] == 0
    made = [sorted(path.name for path in (tmp_path / f"by-{how}").iterdir()) for how in ("environment", "option")]
    assert made[0] == made[1] != []


@pytest.mark.parametrize(
    "arguments",
    [("frob",), ("compile",), ("bench", "a.moel", "--tokens", "0"), ("check", "a.moel", "--tokens", "x"), ("run",)],
)
def test_wrong_command_line(refused, arguments):
    assert "--help'" in refused(*arguments, code=2)


@pytest.mark.parametrize("command", ["run", "check", "bench", "inspect"])
def test_no_artifact(refused, command, tmp_path):
    assert "no artifact" in refused(command, tmp_path / "none.moel")


@pytest.mark.parametrize("file", ["manifest.json", "kernels", "weights"])
def test_flipped_byte(refused, tiny_artifact, tmp_path_factory, file):
    copy = tmp_path_factory.mktemp("flipped") / "tiny.moel"
    shutil.copytree(tiny_artifact, copy)
    victim = copy / file
    victim = sorted(victim.iterdir())[0] if victim.is_dir() else victim
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    assert "does not match" in refused("run", copy)


def test_no_code_for_the_device(refused, tiny_artifact):
    assert "the artifact holds cpu" in refused("run", tiny_artifact, "--device", "cuda")
    assert "no device 'npu'" in refused("check", tiny_artifact, "--device", "npu")


def test_input_of_the_wrong_shape(refused, tiny_artifact, tmp_path):
    save_file({"x": torch.zeros(3, 65, dtype=torch.bfloat16)}, tmp_path / "in.safetensors")
    assert "(3, 65)" in refused("run", tiny_artifact, "--input", tmp_path / "in.safetensors")


def test_unknown_input_and_entry(refused, tiny_artifact, tmp_path):
    save_file({"y": torch.zeros(3, 64)}, tmp_path / "in.safetensors")
    assert "'y'" in refused("run", tiny_artifact, "--input", tmp_path / "in.safetensors")
    assert "'frob'" in refused("run", tiny_artifact, "--entry", "frob")


def test_traceback_on_request(cli, tmp_path):
    err = cli("--traceback", "inspect", tmp_path)[2]
    assert "Traceback" in err and err.splitlines()[-1].startswith("moeloom: error: ")


def test_killed_compile_leaves_no_artifact(tiny_checkpoint, tmp_path):
    """SIGKILL while kernels are built: no artifact, and the next compile clears away what was left."""
    target = tmp_path / "a.moel"
    command = [sys.executable, "-m", "moeloom.tools.main", "compile", str(tiny_checkpoint), "-o", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob(".a.moel.*/kernels")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists() and list(tmp_path.iterdir())
    moeloom.compile(tiny_checkpoint, target)
    assert list(tmp_path.iterdir()) == [target]


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ends_without_taking_python_down():
    """The command's own process: what is registered for the end is done, output and exit code arrive, modules stay."""
    program = (
        "import atexit, sys\n"
        "from moeloom.tools import main\n"
        "class Module:\n"
        "    def __del__(self): print('taken down')\n"
        "kept = Module()\n"
        "atexit.register(print, 'at the end')\n"
        "main.console()\n"
    )
    for arguments, code, said in ((["--version"], 0, "moeloom"), (["inspect", "none.moel"], 1, "moeloom: error:")):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert (done.returncode, "taken down" in done.stdout) == (code, False)
        assert done.stdout.endswith("at the end\n") and said in done.stdout + done.stderr


def test_missing_compiler_extra_is_one_line(tiny_checkpoint, tmp_path):
    """Where torch-mlir is absent, `compile` says what to install."""
    code = (
        "import sys; sys.modules['torch_mlir'] = None\n"
        "from moeloom.tools.main import main\n"
        f"main(['compile', {str(tiny_checkpoint)!r}, '-o', {str(tmp_path / 'a.moel')!r}])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "moeloom: error: compiling needs torch_mlir: pip install 'moeloom[compiler]'\n"
