"""Tensor files of an artifact: safetensors written one tensor (or part) at a time, and mapped without copying."""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError

Spec = tuple[str, tuple[int, ...]]
"""dtype (torch's name) and shape of one tensor."""

DTYPE_CODES = {
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
DTYPES = {code: getattr(torch, name) for name, code in DTYPE_CODES.items()}
ALIGNMENT = 64  # bytes: the first tensor starts on a cache line of the mapping
MAX_HEADER_BYTES = 100 << 20  # the bound of the safetensors format


def tensor_bytes(spec: Spec) -> int:
    dtype, shape = spec
    return math.prod(shape) * getattr(torch, dtype).itemsize


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, copied only where it is not contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


class TensorFileWriter:
    """Writes the tensors of `specs`, in that order, part by part; holds no tensor. `hashes` has sha256 by name.

    with TensorFileWriter(path, {"w": ("uint8", (4, 32))}) as out:
        for part in parts:
            out.append("w", part)
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec]):
        self.hashes: dict[str, str] = {}
        self._left = {name: tensor_bytes(spec) for name, spec in specs.items()}
        self._digest = hashlib.sha256()
        header: dict[str, object] = {}
        offset = 0
        for name, (dtype, shape) in specs.items():
            end = offset + self._left[name]
            header[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = io.BufferedWriter(io.FileIO(path, "w"))
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._finish_empty()

    def append(self, name: str, part: Tensor) -> None:
        """The next bytes of `name`, which must be the first tensor not yet complete."""
        wanted = next(iter(self._left), "")
        found = raw_bytes(part)
        if name != wanted or len(found) > self._left[name]:
            raise ValueError(
                f"{len(found)} bytes of {name!r} appended; next come {self._left.get(wanted, 0)} of {wanted!r}"
            )
        self._file.write(found)
        self._digest.update(found)
        self._left[name] -= len(found)
        self._finish_empty()

    def _finish_empty(self) -> None:
        while self._left and self._left[name := next(iter(self._left))] == 0:
            self.hashes[name] = self._digest.hexdigest()
            self._digest = hashlib.sha256()
            del self._left[name]

    def __enter__(self) -> "TensorFileWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._left:
            name, left = next(iter(self._left.items()))
            raise ValueError(f"tensor {name!r} lacks {left} bytes")


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as private mappings of its pages. ArtifactError when it is not one, whole."""
    size = os.path.getsize(path)
    header_bytes, header = read_header(path)
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[header_bytes:]
    return {name: _view(content, name, item, path) for name, item in header.items()}


def read_header(path: Path) -> tuple[int, dict[str, dict]]:
    """Where the tensors of a safetensors file begin, in bytes, and their entries by name; ArtifactError where the file
    is shorter or longer than they are."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ArtifactError(
                f"{path} has {size} bytes, its header {length}: it breaks off or is no safetensors, download it again"
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((item["data_offsets"][1] for item in header.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ArtifactError(f"{path}: the safetensors header is unreadable ({error})") from None
    if 8 + length + end != size:
        raise ArtifactError(f"{path} has {size} bytes; its header wants {8 + length + end}. Write or download it again")
    return 8 + length, header


def _view(content: Tensor, name: str, item: dict, path: Path) -> Tensor:
    try:
        dtype, shape, (start, end) = DTYPES[item["dtype"]], tuple(item["shape"]), item["data_offsets"]
    except (KeyError, ValueError, TypeError):
        raise ArtifactError(f"{path}: tensor {name!r} has an unknown entry {item}") from None
    if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize:
        raise ArtifactError(f"{path}: tensor {name!r} is {item['dtype']} {shape} in bytes {start} to {end}")
    part = content[start:end]
    return (part.clone() if part.storage_offset() % dtype.itemsize else part).view(dtype).view(shape)
