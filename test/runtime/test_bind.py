"""runtime/bind.py: weights packed at load, from a seed, from the checkpoint an artifact refers to, or from another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moeloom.runtime import artifact
from moeloom.runtime.bind import AsDeclared, bind
from moeloom.runtime.checkpoint import CheckpointFiles
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.executable import load
from moeloom.runtime.random_weights import RandomWeights, logical

WIDTH = 8
SOURCES = {
    "block": {
        "factors": {"dtype": "float32", "shape": [WIDTH]},
        "linear": {"dtype": "float32", "shape": [WIDTH, WIDTH]},
    }
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint of the tiny artifact's weights, in bf16."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tensors = {"b.factors": torch.arange(WIDTH).bfloat16(), "b.linear": torch.eye(WIDTH).bfloat16()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def made_from(make_artifact: Callable[..., Path], tmp_path: Path) -> Callable[[dict], Path]:
    """made_from(checkpoint) -> the tiny artifact, its manifest naming `checkpoint`."""

    def make(checkpoint: dict) -> Path:
        return make_artifact(tmp_path / "a.moel", lambda m: m.update(sources=SOURCES, checkpoint=checkpoint))

    return make


def reference(directory: Path) -> dict:
    return {"reference": {"directory": str(directory), "files": CheckpointFiles(directory).sizes()}}


def test_random_weights_are_made_at_load(made_from: Callable[[dict], Path]) -> None:
    manifest = artifact.read(made_from({"random": {"seed": 3}}))
    found = bind(manifest, "cpu")
    weights = manifest.targets["cpu"].programs["block"].weights
    wanted = RandomWeights(3, {f"b.{w.name}": logical(w.tensor, {"kind": "as_is"}) for w in weights})
    assert set(found) == {"b.factors", "b.linear"}
    assert all(torch.equal(found[name], wanted.get(name)) for name in found)


def test_reference_is_packed_and_cast_at_load(made_from: Callable[[dict], Path], directory: Path) -> None:
    with load(made_from(reference(directory))) as executable:
        assert executable.weights["b.factors"].tolist() == list(range(WIDTH))
        assert executable.weights["b.linear"].dtype == torch.float32
        assert torch.equal(executable(torch.ones(1, WIDTH))[0], torch.arange(1.0, WIDTH + 1))


def test_another_place_may_be_named(made_from: Callable[[dict], Path], directory: Path) -> None:
    path = made_from(reference(directory))
    moved = directory.rename(directory.with_name("moved"))
    with load(path, weights=moved) as executable:
        assert executable.weights["b.factors"].tolist() == list(range(WIDTH))


def test_reference_that_is_gone(made_from: Callable[[dict], Path], directory: Path) -> None:
    path = made_from(reference(directory))
    directory.rename(directory.with_name("moved"))
    with pytest.raises(ArtifactError, match=rf"takes its weights from {directory}, which is gone; .*--weights-from"):
        load(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda file: file.unlink(), "which is gone"),
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "which has 289 bytes and had 288 at compile time"),
    ],
)
def test_reference_that_has_changed(made_from: Callable, directory: Path, change: Callable, what: str) -> None:
    path = made_from(reference(directory))
    change(directory / "model.safetensors")
    with pytest.raises(ArtifactError, match=f"model.safetensors, {what}; .*--weights-from"):
        load(path)


def test_source_of_other_shapes_is_refused(made_from: Callable[[dict], Path]) -> None:
    given = {"b.factors": torch.ones(3), "b.linear": torch.eye(WIDTH)}
    with pytest.raises(ArtifactError, match=r"weight 'b.factors' packs to \(3,\); the program takes \(8,\)"):
        load(made_from({"random": {"seed": 0}}), weights=given)


def test_missing_tensor_is_named() -> None:
    with pytest.raises(ArtifactError, match="the checkpoint has no tensor 'w'"):
        AsDeclared({}, {}).expert("w", 0)
