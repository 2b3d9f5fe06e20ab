"""The packed weights of an artifact: mapped from its files or, at load, made from a checkpoint or from a seed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeloom.runtime.artifact import Manifest
from moeloom.runtime.checkpoint import CheckpointFiles
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.pack import Memo, Source, expert_of, pack
from moeloom.runtime.program import Shaped, Weight
from moeloom.runtime.random_weights import Logical, RandomWeights, logical

STREAM_SOURCES = ("payload", "scales")
"""What a stream is made of, in the order of its recipe."""


class AsDeclared:
    """A source whose tensors come in the dtypes that programs declare, where they do, and on `device`."""

    def __init__(self, source: Source, dtypes: Mapping[str, torch.dtype], device: str | torch.device = "cpu"):
        self.source, self.dtypes, self.device = source, dtypes, device

    def get(self, name: str) -> Tensor | None:
        tensor = self.source.get(name)
        return None if tensor is None else self._cast(name, tensor)

    def expert(self, name: str, number: int) -> Tensor:
        return self._cast(name, expert_of(self.source, name, number))

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtypes.get(name, tensor.dtype))


def bind(
    manifest: Manifest,
    target: str,
    weights: Source | str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Every weight that the entries read for `target`, packed, by prefix + packed name, on `device`.

    weights: a checkpoint directory or a source to pack from instead of what the artifact names. Empty where it names
    nothing. Memory holds one tensor besides the packed ones. Raises ArtifactError.
    """
    source = named_source(manifest, target, device) if weights is None else weights
    if source is None:
        return {name: tensor.to(device) for name, tensor in manifest.map_weights(target).items()}
    if isinstance(source, str | os.PathLike):
        source = CheckpointFiles(Path(source))
    dtypes = {name: about.tensor.storage for name, about in _logical(manifest, target).items()}
    return _pack_all(manifest, target, AsDeclared(source, dtypes, device), device)


def named_source(manifest: Manifest, target: str, device: str | torch.device = "cpu") -> Source | None:
    """What an artifact says its weights are to be packed from at load; None where it holds them itself, or has none."""
    named = manifest.raw.get("checkpoint")
    if named is None:
        return None
    if "random" in named:
        return RandomWeights(named["random"]["seed"], _logical(manifest, target), device)
    return _unchanged(manifest.path, named["reference"])


def _unchanged(path: Path, reference: Mapping[str, Any]) -> CheckpointFiles:
    """The checkpoint that an artifact refers to, with the files it had when the artifact was compiled."""
    directory, wanted = Path(reference["directory"]), reference["files"]
    way_out = "name its new place by weights= (--weights-from), or compile again"
    if not directory.is_dir():
        raise ArtifactError(f"{path} takes its weights from {directory}, which is gone; {way_out}")
    found = {file: (directory / file).stat().st_size if (directory / file).is_file() else None for file in wanted}
    for file, size in wanted.items():
        if found[file] != size:
            what = "is gone" if found[file] is None else f"has {found[file]} bytes and had {size} at compile time"
            raise ArtifactError(f"{path} takes its weights from {directory / file}, which {what}; {way_out}")
    return CheckpointFiles(directory)


def _recipe(weight: Weight) -> Mapping[str, Any]:
    return weight.pack or {"kind": "as_is", "sources": [weight.name]}


def _logical(manifest: Manifest, target: str) -> dict[str, Logical]:
    """Every tensor that the entries are packed from, by its name in the checkpoint, as the programs declare it."""
    declared = manifest.raw.get("sources", {})
    found: dict[str, Logical] = {}
    for entry in manifest.entries.values():
        for weight in manifest.targets[target].programs[entry.program].weights:
            recipe = _recipe(weight)
            for number, name in enumerate(recipe["sources"]):
                about = declared.get(entry.program, {}).get(name)
                if about is not None:
                    kind = STREAM_SOURCES[number] if recipe["kind"] == "stream" else recipe["kind"]
                    shaped = Shaped(about["dtype"], tuple(about["shape"]))
                    found[entry.prefix + name] = logical(shaped, {**recipe, "kind": kind})
    return found


def _pack_all(manifest: Manifest, target: str, source: Source, device: str | torch.device) -> dict[str, Tensor]:
    """Every weight of every entry, packed from `source`."""
    bound: dict[str, Tensor] = {}
    memo: Memo = {}
    for entry in manifest.entries.values():
        for weight in manifest.targets[target].programs[entry.program].weights:
            name = entry.prefix + weight.name
            if name not in bound:
                bound[name] = _packed(name, weight, source, entry.prefix, memo, device)
    return bound


def _packed(name: str, weight: Weight, source: Source, prefix: str, memo: Memo, device: str | torch.device) -> Tensor:
    recipe = _recipe(weight)
    packed = torch.empty(weight.tensor.at(0), dtype=weight.tensor.storage, device=device)
    rows = packed.unsqueeze(0) if recipe["kind"] == "as_is" and "{e}" not in recipe["sources"][0] else packed
    for row, part in zip(rows, pack(recipe, source, prefix=prefix, experts=len(rows), memo=memo), strict=True):
        if row.shape != part.shape:
            raise ArtifactError(f"weight {name!r} packs to {tuple(part.shape)}; the program takes {tuple(row.shape)}")
        row.copy_(part)
    return packed
