"""The arguments of one entry: matched to the program's inputs, measured, checked. Nothing here runs anything."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moeloom.runtime.errors import LaunchError
from moeloom.runtime.program import BYTE_DTYPES, Input, Program

MAX_TOKENS = 1 << 24  # exclusive: a sorted id has 24 bits for the token
MOST_ROW_BYTES = 1 << 32
"""From one row of an argument to the next, exclusive: kernels count them in 32 bits."""


class Arguments:
    """What the entry `name` of `program` takes and makes."""

    def __init__(self, name: str, program: Program, device: torch.device):
        self.name, self.program, self.device = name, program, device
        self._names = [item.name for item in program.inputs]
        self._rows_of = next((i for i, item in enumerate(program.inputs) if item.tensor.shape[:1] == ("M",)), None)
        self._shapes: dict[int, tuple[list, list]] = {}

    def by_position(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor | None]:
        """One tensor an input of the program, None where it is left out."""
        if len(inputs) > len(self._names):
            raise LaunchError(f"{len(inputs)} arguments given; {self.name} takes {', '.join(self._names)}")
        given: list[Tensor | None] = [*inputs, *[None] * (len(self._names) - len(inputs))]
        for name, tensor in named.items():
            if name not in self._names:
                raise LaunchError(f"no argument {name!r}; {self.name} takes {', '.join(self._names)}")
            position = self._names.index(name)
            if position < len(inputs):
                raise LaunchError(f"argument {name!r} is given twice")
            given[position] = tensor
        return given

    def tokens(self, given: list[Tensor | None]) -> int:
        """M; 1 for programs that have none."""
        if self._rows_of is None:
            return 1
        rows = given[self._rows_of]
        about = self.program.inputs[self._rows_of]
        if not isinstance(rows, Tensor) or rows.dim() != len(about.tensor.shape):
            raise LaunchError(_mismatch(about, rows))
        if rows.shape[0] >= MAX_TOKENS:
            raise LaunchError(
                f"argument {about.name!r} has {rows.shape[0]} rows; an artifact takes up to {MAX_TOKENS - 1}"
            )
        return rows.shape[0]

    def _shapes_at(self, m: int) -> tuple[list, list]:
        """Shapes of inputs and outputs, worked out once for each M."""
        if m not in self._shapes:
            inputs, outputs = self.program.inputs, self.program.outputs
            self._shapes[m] = [i.tensor.at(m) for i in inputs], [o.tensor.at(m) for o in outputs]
        return self._shapes[m]

    def check(self, given: list[Tensor | None], m: int) -> dict[int, Tensor]:
        """The inputs by value number, every one of them fitting, without the optional ones that are left out."""
        live = {}
        for tensor, about, shape in zip(given, self.program.inputs, self._shapes_at(m)[0], strict=True):
            if tensor is None and about.optional:
                continue
            if not isinstance(tensor, Tensor):
                raise LaunchError(_mismatch(about, tensor))
            if tensor.dtype is not about.tensor.storage:
                if str(tensor.dtype) != f"torch.{about.tensor.dtype}" or about.tensor.dtype not in BYTE_DTYPES:
                    raise LaunchError(_mismatch(about, tensor))
                tensor = tensor.view(torch.uint8)
            if tensor.shape != shape:
                raise LaunchError(_mismatch(about, tensor, m))
            _check_memory(about, tensor, self.device)
            live[about.value] = tensor
        return live

    def outputs(self, out: Tensor | Sequence[Tensor] | None, m: int) -> list[Tensor]:
        """`out` as a list, every tensor fitting; new tensors where it is None."""
        shapes = self._shapes_at(m)[1]
        dtypes = [o.tensor.storage for o in self.program.outputs]
        if out is None:
            return [
                torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        outputs = [out] if isinstance(out, Tensor) else list(out)
        if len(outputs) != len(shapes):
            raise LaunchError(f"out has {len(outputs)} tensors; {self.name} makes {len(shapes)}")
        for tensor, shape, dtype in zip(outputs, shapes, dtypes, strict=True):
            here = tensor.device == self.device
            if tensor.shape != shape or tensor.dtype is not dtype or not here or not tensor.is_contiguous():
                found = f"{tensor.device} {_name(tensor.dtype)} {tuple(tensor.shape)}, strides {tensor.stride()}"
                raise LaunchError(f"out is {found}; the artifact makes contiguous {self.device} {_name(dtype)} {shape}")
        return outputs


def _check_memory(about: Input, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise LaunchError(f"argument {about.name!r} is on {tensor.device}; it runs on {device}: move it there")
    if tensor.is_contiguous():
        return
    if not about.strided:
        raise LaunchError(f"argument {about.name!r} has strides {tensor.stride()}; it must be contiguous")
    if tensor.stride(-1) != 1:
        raise LaunchError(f"argument {about.name!r} has strides {tensor.stride()}; its last axis must have stride 1")
    if tensor.stride(0) * tensor.element_size() >= MOST_ROW_BYTES:
        apart = tensor.stride(0) * tensor.element_size()
        raise LaunchError(
            f"argument {about.name!r} has rows {apart} bytes apart; below {MOST_ROW_BYTES} is wanted: copy it"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _mismatch(about: Input, found: object, m: int | None = None) -> str:
    if found is None:
        return f"argument {about.name!r} is missing; the artifact takes {about.tensor}"
    if not isinstance(found, Tensor):
        return f"argument {about.name!r} is a {type(found).__name__}; the artifact takes a tensor {about.tensor}"
    wanted = f"{about.tensor}" if m is None else f"{about.tensor.dtype} {about.tensor.at(m)} at M = {m}"
    return f"argument {about.name!r} is {_name(found.dtype)} {tuple(found.shape)}; the artifact takes {wanted}"
