"""runtime/artifact.py: written whole or not at all; read only when everything holds."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moeloom.runtime.artifact import ArtifactWriter, read
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.executable import load

WEIGHTS, KERNELS = "weights/cpu.safetensors", "kernels/cpu-generic.so"


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest and make its hash agree: what is left are the reader's own checks."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest)
    (path / "manifest.json").write_text(text)
    (path / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


def test_read(made: Path) -> None:
    manifest = read(made)
    assert list(manifest.entries) == ["b"] and manifest.entries["b"].prefix == "b."
    assert manifest.targets["cpu"].libraries[0].tier == "generic"
    assert set(manifest.map_weights("cpu")) == {"b.factors", "b.linear"}
    assert sorted(p.name for p in made.parent.iterdir()) == [made.name]


@pytest.mark.parametrize("file", ["manifest.json", "manifest.sha256", KERNELS, WEIGHTS])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
def test_flipped_byte(made: Path, file: str, place: float) -> None:
    hash_end = 64 if file == "manifest.sha256" else (made / file).stat().st_size
    flip(made / file, int(place * (hash_end - 1)))
    with pytest.raises(ArtifactError) as caught:
        load(made)
    assert "\n" not in str(caught.value) and str(made) in str(caught.value)


def test_fast_verification_skips_only_the_weights(made: Path) -> None:
    flip(made / WEIGHTS, (made / WEIGHTS).stat().st_size - 1)
    read(made, verify="fast")
    with pytest.raises(ArtifactError, match=r"weight 'b\.linear' in .* does not match its hash"):
        read(made)
    flip(made / KERNELS, 5000)
    with pytest.raises(ArtifactError, match=r"cpu-generic\.so does not match its hash"):
        read(made, verify="fast")
    with pytest.raises(ValueError, match="verify is 'slow'"):
        read(made, verify="slow")


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_truncated_weights(made: Path, left: int) -> None:
    size = (made / WEIGHTS).stat().st_size
    os.truncate(made / WEIGHTS, left if left >= 0 else size - 1)
    with pytest.raises(ArtifactError, match=str(made / WEIGHTS)):
        read(made, verify="fast")


@pytest.mark.parametrize("file", ["manifest.json", "manifest.sha256", KERNELS, WEIGHTS])
def test_missing_file(made: Path, file: str) -> None:
    (made / file).unlink()
    with pytest.raises(ArtifactError, match=Path(file).name):
        read(made)


def block(manifest: dict) -> dict:
    return manifest["targets"]["cpu"]["programs"]["block"]


CHANGES = {
    "schema": (lambda m: m.update(schema=2), "has schema 2; this runtime reads 3"),
    "no_schema": (lambda m: m.pop("schema"), "lacks 'schema'"),
    "no_entries": (lambda m: m.pop("entries"), "lacks 'entries'"),
    "no_libraries": (lambda m: m["targets"]["cpu"].pop("libraries"), "lacks 'libraries'"),
    "no_tiles": (lambda m: block(m)["steps"][0].pop("tiles"), "program 'block' lacks 'tiles'"),
    "entries_is_a_list": (lambda m: m.update(entries=[1]), "is malformed"),
    "unknown_program": (lambda m: m["entries"]["b"].update(program="c"), "entry 'b' wants program 'c'"),
    "unknown_kernel": (lambda m: block(m)["steps"][0].update(launch="sub"), "no kernel 'sub'"),
    "unknown_dtype": (lambda m: block(m)["values"]["4"].update(dtype="float3"), "malformed"),
    "unknown_slot": (lambda m: block(m)["values"]["4"].update(slot=3), "slot 3 of 3"),
    "bad_size": (lambda m: block(m)["steps"][0].update(tiles=["pow", "M", 2]), "is no size"),
    "early_read": (lambda m: block(m)["steps"][0].update(operands=[5, 2]), "reads value 5 before it is made"),
    "no_output": (lambda m: block(m)["steps"].pop(), "nothing makes output value 9"),
    "weight_shape": (
        lambda m: m["targets"]["cpu"]["weights"]["b.factors"].update(shape=[4]),
        r"weight 'b\.factors' is torch\.float32 \(8,\) in .*; the manifest wants float32 \(4,\)",
    ),
    "weight_name": (lambda m: m["targets"]["cpu"]["weights"]["b.factors"].update(tensor="c"), "has no tensor 'c'"),
    "outside": (
        lambda m: m["targets"]["cpu"]["libraries"][0].update(file="../../etc/x.so"),
        "lies outside the artifact",
    ),
    "absolute": (lambda m: m["targets"]["cpu"]["weights"]["b.factors"].update(file="/etc/passwd"), "lies outside"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refused_manifest(made: Path, name: str) -> None:
    change, message = CHANGES[name]
    rewrite(made, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(made, "null")
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_artifact_is_refused(made: Path, tmp_path: Path) -> None:
    (made / KERNELS).rename(tmp_path / "moved.so")
    (made / KERNELS).symlink_to(tmp_path / "moved.so")
    with pytest.raises(ArtifactError, match="lies outside the artifact"):
        read(made)


def test_not_an_artifact(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest\.json"):
            read(path)


def test_existing_output_is_kept_unless_asked(make_artifact: Callable, made: Path) -> None:
    before = (made / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match="exists; name another output or allow overwriting it"):
        make_artifact(made)
    assert (made / "manifest.json").read_bytes() == before
    make_artifact(made, lambda manifest: manifest.update(compiler="9"), overwrite=True)
    assert read(made).raw["compiler"] == "9"
    assert [p.name for p in made.parent.iterdir()] == [made.name]


def test_overwriting_spares_what_is_no_artifact(make_artifact: Callable, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="is no artifact"):
        make_artifact(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_replaced_artifact_runs_its_own_code(make_artifact: Callable, made: Path, tmp_path: Path) -> None:
    """dlopen alone would return the library loaded before from the same path."""
    x = torch.ones(2, 8)
    first = load(made)(x)
    source = tmp_path / "other.c"
    source.write_text(
        "void scale_rows(void) {}\nvoid add_one(void) {}\nvoid keep_live(void) {}\nvoid moeloom_run(void) {}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "other.so", source], check=True)
    code = (tmp_path / "other.so").read_bytes()
    with ArtifactWriter(made, overwrite=True) as out:
        (out.directory / KERNELS).write_bytes(code)
        old = read(made)
        with out.tensors(WEIGHTS, {n: ("float32", tuple(t.shape)) for n, t in old.map_weights("cpu").items()}) as file:
            for name, tensor in old.map_weights("cpu").items():
                file.append(name, tensor)
        out.manifest = json.loads(json.dumps(old.raw))
        out.manifest["targets"]["cpu"]["libraries"][0]["sha256"] = hashlib.sha256(code).hexdigest()
    out_tensor = torch.full((2, 8), 5.0)
    load(made, threads=1)(x, out=out_tensor)
    assert torch.equal(out_tensor, torch.full((2, 8), 5.0)) and not torch.equal(first, out_tensor)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_leaves_nothing(tmp_path: Path, error: type) -> None:
    with pytest.raises(error), ArtifactWriter(tmp_path / "a.moel") as out:
        (out.directory / "kernels" / "k.so").write_bytes(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_the_reader_refuses_is_not_published(make_artifact: Callable, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="lacks 'entries'"):
        make_artifact(tmp_path / "a.moel", lambda manifest: manifest.pop("entries"))
    with pytest.raises(ArtifactError, match="the manifest was never set"), ArtifactWriter(tmp_path / "a.moel"):
        pass
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from moeloom.runtime.artifact import ArtifactWriter
with ArtifactWriter(sys.argv[1], overwrite=True) as out:
    (out.directory / "kernels" / "k.so").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_killed_writer_leaves_the_old_artifact(make_artifact: Callable, made: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(made)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    (partial,) = made.parent.glob(".*.partial")
    with ArtifactWriter(made, overwrite=True) as out:  # a writer that lives is left alone
        assert partial.exists() and out.directory != partial
        out.manifest = read(made).raw | {"targets": {}, "entries": {}}
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert read(made).raw["targets"] == {} and partial.exists()
    start = time.monotonic()
    make_artifact(made, overwrite=True)
    assert not partial.exists() and time.monotonic() - start < 5
    assert [p.name for p in made.parent.iterdir()] == [made.name]
    load(made)
