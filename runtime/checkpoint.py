"""A checkpoint directory in Hugging Face's layout: tensors by the names that programs use, read when asked for.

Names are those of an imported program (`model.layers.0.mlp.experts.gate_up_proj`), also where the checkpoint has one
tensor an expert. Files are memory-mapped.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.weights import read_header

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# A stacked expert weight, and the tensors of one expert that make it, stacked over rows (Mixtral's spelling last).
PER_EXPERT = {
    "gate_up_proj": (("gate_proj.weight", "up_proj.weight"), ("w1.weight", "w3.weight")),
    "down_proj": (("down_proj.weight",), ("w2.weight",)),
}


class CheckpointFiles:
    """model.safetensors, or shards and model.safetensors.index.json, in a directory: a source for `runtime.pack`.

    Opening reads the headers, and raises ArtifactError for a directory, index or shard that is missing or cut short.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ArtifactError(f"there is no checkpoint directory {self.directory}; give the one with its safetensors")
        self._tensors: dict[str, tuple[Path, dict[str, Any]]] = {}
        self.shards = self._find_shards()
        for shard in self.shards:
            for name, entry in read_header(shard)[1].items():
                self._tensors[name] = (shard, entry)
        self._open: dict[Path, Any] = {}

    def _find_shards(self) -> list[Path]:
        """Every shard; all exist."""
        if (self.directory / SINGLE).is_file():
            return [self.directory / SINGLE]
        index = self.directory / INDEX
        if not index.is_file():
            raise ArtifactError(f"{self.directory} has neither {SINGLE} nor {INDEX}; download it again")
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{index} has no readable weight_map ({error}); download it again") from None
        for name in names:
            if not (self.directory / name).is_file():
                raise ArtifactError(f"shard {self.directory / name} is missing ({INDEX} names it); download it again")
        return [self.directory / name for name in names]

    def sizes(self) -> dict[str, int]:
        """Bytes of each shard by file name."""
        return {shard.name: shard.stat().st_size for shard in self.shards}

    def names(self) -> list[str]:
        """The names of the tensors as the files have them, in the order of the files."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of what `get(name)` returns; ArtifactError where its experts differ in shape."""
        sources = self.sources(name)
        shapes = {tuple(tuple(self._entry(part)[1]["shape"]) for part in parts) for parts in sources}
        if len(shapes) > 1:
            raise ArtifactError(f"the experts of '{name}' in {self.directory} differ in shape: {sorted(shapes)}")
        (parts,) = shapes
        if sources == [(self._spelling(name),)]:
            return parts[0]
        return (len(sources), sum(part[0] for part in parts), *parts[0][1:])

    def sources(self, name: str) -> list[tuple[str, ...]]:
        """The tensors in files that make `name`: itself alone, or for each expert those to be stacked over rows."""
        spelling = self._spelling(name)
        found: list[tuple[str, ...]] = self._per_expert(name) if spelling is None else [(spelling,)]
        if not found:
            raise ArtifactError(
                f"{self.directory} has no tensor '{name}', in one piece or one an expert; check its config.json"
            )
        return found

    def get(self, name: str) -> Tensor:
        """The tensor `name`: memory-mapped where a file has it in one piece, else stacked from its experts."""
        spelling = self._spelling(name)
        if spelling is not None:
            return self._read(spelling)
        return torch.stack([self.expert(name, e) for e in range(self.shape(name)[0])])

    def expert(self, name: str, number: int) -> Tensor:
        """`get(name)[number]`, reading no other expert."""
        sources = self.sources(name)
        if sources == [(self._spelling(name),)]:
            return self._read(sources[0][0])[number]
        parts = [self._read(part) for part in sources[number]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _entry(self, name: str) -> tuple[Path, dict[str, Any]]:
        if name not in self._tensors:
            raise ArtifactError(f"{self.directory} has no tensor '{name}'; check its config.json")
        return self._tensors[name]

    def _read(self, name: str) -> Tensor:
        shard, _ = self._entry(name)
        if shard not in self._open:
            self._open[shard] = safe_open(shard, framework="pt")
        return self._open[shard].get_tensor(name)

    def _spelling(self, name: str) -> str | None:
        """`name` as a file has it in one piece (Mixtral's blocks are called block_sparse_moe there)."""
        spellings = (name, name.replace(".mlp.", ".block_sparse_moe."))
        return next((spelling for spelling in spellings if spelling in self._tensors), None)

    def _per_expert(self, name: str) -> list[tuple[str, ...]]:
        """For each expert the tensors that make its part of `name`; empty where there are none."""
        prefix, _, leaf = name.rpartition(".")
        for stem in (prefix, prefix.replace(".mlp.", ".block_sparse_moe.")):
            for parts in PER_EXPERT.get(leaf, ()):
                count = 0
                while f"{stem}.{count}.{parts[0]}" in self._tensors:
                    count += 1
                if count:
                    return [tuple(f"{stem}.{expert}.{part}" for part in parts) for expert in range(count)]
        return []
