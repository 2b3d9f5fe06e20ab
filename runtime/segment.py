"""Launches in a row, their arguments laid out once: only what belongs to the caller is written at each call."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.program import Launch, evaluate

Live = dict[int, Any]
Words = ctypes.Array
"""i64: the arguments of a segment's launches, each launch's pointers and strides in the order of the ABI, then M."""


@dataclass(frozen=True)
class Bound:
    """A launch with its arguments in words `start` to `end`, M the last of them."""

    launch: Launch
    start: int
    end: int
    tiles: int


@dataclass(frozen=True)
class Multiples:
    """What a tensor's address (bytes) and the distance of its rows (elements) must be multiples of."""

    address: int = 1
    stride: int = 1

    def fit(self, tensor: Tensor) -> bool:
        """Whether the tensor can be read where it is."""
        return not tensor.data_ptr() % self.address and (self.stride == 1 or not tensor.stride(0) % self.stride)

    def __str__(self) -> str:
        return f"it takes addresses in multiples of {self.address} and rows in multiples of {self.stride} elements"

    def __or__(self, other: "Multiples") -> "Multiples":
        """Both."""
        return Multiples(max(self.address, other.address), max(self.stride, other.stride))


@dataclass(frozen=True)
class Ran:
    """One launch that ran, read back from the command that ran it; `seconds` spans the hand-off to the CPU's threads,
    on a GPU the kernel between two events."""

    kernel: str
    op: str
    tiles: int
    seconds: float


class Device(Protocol):
    """What runs the launches of a plan."""

    torch_device: torch.device
    alignment: int
    """Bytes: where the slots of a workspace start."""

    def divisible(self, kernel: str) -> Iterable[int]:
        """What each argument of a kernel but M must be a multiple of, pointers in bytes and strides in elements."""

    def commands(self, words: Words, bound: Sequence[Bound]) -> Any:
        """One command a launch, in a sequence; `words` keep their address and are read at each run."""

    def run(self, commands: Any) -> None:
        """Run commands in order."""

    def timed(self, command: Any) -> tuple[str, int, float]:
        """Run a sequence of one command: kernel and tiles as the command has them, seconds."""


class Segment:
    """Launches without an ATen operator between them, at one M."""

    def __init__(self, device: Device, m: int):
        self._device, self._m = device, m
        self.live: dict[int, Multiples] = {}
        """What is asked of the tensors that are known at a call only; powers of two."""
        self._bound: list[Bound] = []
        self._values: list[int] = []
        self._patches: list[tuple[int, int, bool]] = []

    def add(self, launch: Launch, fixed: Mapping[int, Any]) -> None:
        """Append a launch; `fixed` are the tensors whose address is known now."""
        start = len(self._values)
        divisible = iter(self._device.divisible(launch.kernel))
        for position, value in enumerate((*launch.operands, *launch.results)):
            strided = position in launch.strided
            tensor = fixed.get(value)
            wanted = Multiples(next(divisible), next(divisible) if strided else 1)
            if tensor is None:
                self._patches.append((len(self._values), value, strided))
                self.live[value] = self.live.get(value, wanted) | wanted
            elif not _dense(tensor, strided):
                raise ArtifactError(f"{launch.op} reads value {value} through a view it cannot read; compile again")
            elif not wanted.fit(tensor):
                where = f"{tensor.data_ptr():#x}, strides {tensor.stride()}"
                raise LaunchError(f"{launch.kernel} reads value {value} at {where}; {wanted}")
            self._values.append(0 if tensor is None else tensor.data_ptr())
            if strided:
                self._values.append(0 if tensor is None else tensor.stride(0))
        self._values.append(self._m)
        tiles = evaluate(launch.tiles, self._m)
        self._bound.append(Bound(launch, start, len(self._values), tiles))

    def finish(self) -> None:
        """Make the commands: from here on only the caller's tensors change."""
        self._words = (ctypes.c_int64 * len(self._values))(*self._values)
        self._commands = self._device.commands(self._words, self._bound)

    def run(self, live: Live) -> None:
        self._patch(live)
        self._device.run(self._commands)

    def trace(self, live: Live, ran: list[Ran]) -> None:
        """As `run`, one command at a time; notes each after it ran."""
        self._patch(live)
        for number, bound in enumerate(self._bound):
            kernel, tiles, seconds = self._device.timed(self._commands[number : number + 1])
            ran.append(Ran(kernel, bound.launch.op, tiles, seconds))

    def _patch(self, live: Live) -> None:
        words = self._words
        for position, value, strided in self._patches:
            tensor = live[value]
            words[position] = tensor.data_ptr()
            if strided:
                words[position + 1] = tensor.stride(0)


def _dense(tensor: Tensor, strided: bool) -> bool:
    return tensor.is_contiguous() or (strided and tensor.dim() == 2 and tensor.stride(1) == 1)
