"""runtime/weights.py, against the safetensors library."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeloom.runtime.weights import DTYPE_CODES, TensorFileWriter, map_tensors


def tensors() -> dict[str, torch.Tensor]:
    made = {name: torch.arange(24).to(getattr(torch, name)).view(2, 3, 4) for name in DTYPE_CODES}
    return made | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(3.0), "odd": torch.ones(3, dtype=torch.uint8)}


def specs(wanted: dict[str, torch.Tensor]) -> dict:
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in wanted.items()}


def test_written_file_is_safetensors(tmp_path: Path) -> None:
    wanted = tensors() | {"after_odd": torch.ones(2)}
    with TensorFileWriter(tmp_path / "w.safetensors", specs(wanted)) as out:
        for name, tensor in wanted.items():
            for part in tensor if tensor.dim() > 1 else [tensor]:
                out.append(name, part)
    for found in (load_file(tmp_path / "w.safetensors"), map_tensors(tmp_path / "w.safetensors")):
        assert found.keys() == wanted.keys() == out.hashes.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_maps_what_safetensors_wrote(tmp_path: Path) -> None:
    wanted = tensors()
    save_file(wanted, tmp_path / "w.safetensors", {"format": "pt"})
    found = map_tensors(tmp_path / "w.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_parts_are_checked(tmp_path: Path) -> None:
    two = {"a": ("uint8", (4,)), "b": ("uint8", (4,))}
    with (
        pytest.raises(ValueError, match="4 bytes of 'b' appended; next come 4 of 'a'"),
        TensorFileWriter(tmp_path / "w", two) as out,
    ):
        out.append("b", torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="5 bytes of 'a' appended"), TensorFileWriter(tmp_path / "w", two) as out:
        out.append("a", torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tensor 'b' lacks 4 bytes"), TensorFileWriter(tmp_path / "w", two) as out:
        out.append("a", torch.zeros(4, dtype=torch.uint8))
