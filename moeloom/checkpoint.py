"""Where weights come from: a checkpoint directory in Hugging Face's layout, or a module in memory.

Both answer to the names that an imported program uses (`model.layers.0.mlp.experts.gate_up_proj`), also where the
checkpoint has one tensor an expert. Files are memory-mapped: a tensor is read when it is asked for.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HEADER_LENGTH_BYTES = 8
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# A stacked expert weight, and the tensors of one expert that make it, stacked over rows (Mixtral's spelling last).
PER_EXPERT = {
    "gate_up_proj": (("gate_proj.weight", "up_proj.weight"), ("w1.weight", "w3.weight")),
    "down_proj": (("down_proj.weight",), ("w2.weight",)),
}


class ModelError(ValueError):
    """A model or checkpoint that cannot be imported. One line: what was found, what was wanted, what to do."""


class WeightSource(Protocol):
    """Tensors by the names that programs use; a name that is not there raises ModelError."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of what `get` returns."""

    def get(self, name: str) -> Tensor:
        """The tensor; a stacked expert weight [E, ...] is made where the source has one tensor an expert."""

    def expert(self, name: str, number: int) -> Tensor:
        """`get(name)[number]`, without the other experts in memory."""

    def experts(self, name: str) -> Iterator[Tensor]:
        """`get(name)[0]` and so on, one expert in memory at a time."""


class ModuleWeights:
    """The parameters and buffers of a module, as a weight source; tensors are shared, not copied."""

    def __init__(self, module: nn.Module):
        self.tensors: Mapping[str, Tensor] = module.state_dict()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"the module has no tensor '{name}'; import the module that the program was made from")
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.get(name).shape)

    def expert(self, name: str, number: int) -> Tensor:
        return self.get(name)[number]

    def experts(self, name: str) -> Iterator[Tensor]:
        return iter(self.get(name))


class AsDeclared:
    """A weight source whose tensors come in the dtypes that a program declares: how transformers would load them."""

    def __init__(self, source: WeightSource, dtypes: Mapping[str, torch.dtype]):
        self.source, self.dtypes = source, dtypes

    def __contains__(self, name: str) -> bool:
        return name in self.source

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def get(self, name: str) -> Tensor:
        return self._cast(name, self.source.get(name))

    def expert(self, name: str, number: int) -> Tensor:
        return self._cast(name, self.source.expert(name, number))

    def experts(self, name: str) -> Iterator[Tensor]:
        return (self._cast(name, expert) for expert in self.source.experts(name))

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtypes[name]) if name in self.dtypes else tensor


class Checkpoint:
    """A directory with config.json and model.safetensors, or shards and model.safetensors.index.json.

    Opening reads the shards' headers, and raises ModelError for a directory, config, index or shard that is missing or
    cut short, and for a quantisation that moeloom does not read.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ModelError(f"there is no directory {self.directory}; give a checkpoint directory or a config.json")
        self.config = read_config(self.directory / "config.json")
        self.quantisation = quantisation(self.config, str(self.directory))
        self._tensors: dict[str, tuple[Path, dict[str, Any]]] = {}
        for shard in self._shards():
            for name, entry in read_header(shard).items():
                self._tensors[name] = (shard, entry)
        self._open: dict[Path, Any] = {}

    def _shards(self) -> list[Path]:
        """Every shard; all exist."""
        if (self.directory / SINGLE).is_file():
            return [self.directory / SINGLE]
        index = self.directory / INDEX
        if not index.is_file():
            raise ModelError(
                f"{self.directory} has neither {SINGLE} nor {INDEX}; give its config.json to go without weights"
            )
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if not (self.directory / name).is_file():
                raise ModelError(f"shard {self.directory / name} is missing ({INDEX} names it); download it again")
        return [self.directory / name for name in names]

    def names(self) -> list[str]:
        """The names of the tensors as the files have them, in the order of the files."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of what `get(name)` returns; ModelError where its experts differ in shape."""
        sources = self.sources(name)
        shapes = {tuple(tuple(self._entry(part)[1]["shape"]) for part in parts) for parts in sources}
        if len(shapes) > 1:
            raise ModelError(f"the experts of '{name}' in {self.directory} differ in shape: {sorted(shapes)}")
        (parts,) = shapes
        if sources == [(self._spelling(name),)]:
            return parts[0]
        return (len(sources), sum(part[0] for part in parts), *parts[0][1:])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of what `get(name)` returns."""
        return DTYPES[self._entry(self.sources(name)[0][0])[1]["dtype"]]

    def __contains__(self, name: str) -> bool:
        return self._spelling(name) is not None or bool(self._per_expert(name))

    def sources(self, name: str) -> list[tuple[str, ...]]:
        """The tensors in files that make `name`: itself alone, or for each expert those to be stacked over rows."""
        spelling = self._spelling(name)
        found: list[tuple[str, ...]] = self._per_expert(name) if spelling is None else [(spelling,)]
        if not found:
            raise ModelError(
                f"{self.directory} has no tensor '{name}', in one piece or one an expert; check its config.json"
            )
        return found

    def get(self, name: str) -> Tensor:
        """The tensor `name`: memory-mapped where a file has it in one piece, else stacked from its experts."""
        spelling = self._spelling(name)
        return self._read(spelling) if spelling is not None else torch.stack(list(self.experts(name)))

    def expert(self, name: str, number: int) -> Tensor:
        """`get(name)[number]`, reading no other expert."""
        sources = self.sources(name)
        if sources == [(self._spelling(name),)]:
            return self._read(sources[0][0])[number]
        parts = [self._read(part) for part in sources[number]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def experts(self, name: str) -> Iterator[Tensor]:
        """`get(name)[0]` and so on, one expert in memory at a time."""
        return (self.expert(name, number) for number in range(self.shape(name)[0]))

    def _entry(self, name: str) -> tuple[Path, dict[str, Any]]:
        if name not in self._tensors:
            raise ModelError(f"{self.directory} has no tensor '{name}'; check its config.json")
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError for a missing or malformed one."""
    if not path.is_file():
        raise ModelError(f"there is no {path}; a checkpoint has one, download it again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; it must hold an object")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """A config.json that names its model_type."""
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type; give the config.json of a Hugging Face model")
    return config


def quantisation(config: Mapping[str, Any], where: str) -> str:
    """How experts are stored, mxfp4 or none; ModelError for any other `quant_method`."""
    found = config.get("quantization_config")
    if not found:
        return "none"
    if found.get("quant_method") != "mxfp4":
        raise ModelError(
            f"{where} is quantised by {found.get('quant_method')!r}; moeloom reads mxfp4 (gpt-oss) and unquantised "
            "checkpoints, so convert it to bf16 and compile with --quantize-weights mxfp4"
        )
    return "mxfp4"


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors that a safetensors file declares; ModelError where the file is shorter or longer than they are."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if size < HEADER_LENGTH_BYTES or length > size - HEADER_LENGTH_BYTES:
            raise ModelError(f"{path} has {size} bytes and breaks off in its header; download it again")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ModelError(f"{path} has no safetensors header; download it again") from None
    header.pop("__metadata__", None)
    wanted = HEADER_LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != wanted:
        raise ModelError(f"{path} has {size} bytes; its header says {wanted}: download it again")
    return header
