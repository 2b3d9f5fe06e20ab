"""The weight files of an artifact: every weight packed once for each layout that its targets read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from moeloom.runtime import pack
from moeloom.runtime.artifact import ArtifactWriter


class WeightFiles:
    """Writes packed weights, a file for each block and layout; targets of one layout share them."""

    def __init__(self, artifact: ArtifactWriter, source: pack.Source, progress: Callable[[int, int], None]):
        self._artifact, self._source, self._progress = artifact, source, progress
        self._written: dict[tuple[str, str], dict[str, Any]] = {}

    def write(self, entries: Mapping[str, dict], programs: Mapping[str, dict], layout: str) -> dict[str, dict]:
        """The manifest's `weights` of one target, whose packed layout is `layout`."""
        blocks: dict[str, dict[str, dict]] = {}
        for entry in entries.values():
            for weight in programs[entry["program"]]["weights"]:
                blocks.setdefault(entry["prefix"], {})[weight["name"]] = weight
        for number, (prefix, weights) in enumerate(blocks.items()):
            self._progress(number, len(blocks))
            new = {name: w for name, w in weights.items() if (prefix + name, _how(w)) not in self._written}
            if new:
                self._write_block(f"weights/{prefix.strip('.') or 'weights'}.{layout}.safetensors", prefix, new)
        return {
            prefix + name: self._written[prefix + name, _how(weight)]
            for prefix, weights in blocks.items()
            for name, weight in weights.items()
        }

    def _write_block(self, file: str, prefix: str, weights: Mapping[str, dict]) -> None:
        specs = {name: (weight["dtype"], tuple(weight["shape"])) for name, weight in weights.items()}
        memo: pack.Memo = {}
        with self._artifact.tensors(file, specs) as out:
            for name, weight in weights.items():
                dtype = getattr(torch, weight["dtype"])
                # The count is in the packed shape; asking the source would stack its experts in memory.
                experts = weight["shape"][0]
                for part in pack.pack(weight["pack"], self._source, prefix=prefix, experts=experts, memo=memo):
                    # A router that its family uses in f32 may lie in the checkpoint as bf16.
                    out.append(name, part.to(dtype))
        for name, weight in weights.items():
            self._written[prefix + name, _how(weight)] = {
                **{"file": file, "tensor": name, "dtype": weight["dtype"], "shape": weight["shape"]},
                "sha256": out.hashes[name],
            }


def _how(weight: Mapping[str, Any]) -> str:
    """What makes two packed forms of a weight the same."""
    return json.dumps([weight["pack"], weight["dtype"], weight["shape"]], sort_keys=True)
