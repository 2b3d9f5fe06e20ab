"""GPUs: code objects loaded through the driver, launches on the caller's torch stream. No compiler runs here.

A launch is one call of the driver with an array of argument addresses that is made once. Nothing synchronises, so a
call can be captured in a graph (docs/program.md, "Kernel ABI (GPU)" and "Launches that overlap").
"""

import ctypes
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.plan import Plan
from moeloom.runtime.segment import Bound, Live, Ran, Words
from moeloom.runtime.target import GPU_ALIGNMENT, Code, Target

MOST_TILES = (1 << 31) - 1  # of a grid's first dimension
Handle = int
"""A module, a function or a stream of the driver."""
Start = Callable[[Handle, ctypes.Array], int]
"""Puts one kernel with its grid on a stream, given the addresses of its arguments; the driver's error code."""


class Driver(ABC):
    """The entry points of a GPU driver that CUDA and HIP have in common, for one device. Errors are ArtifactError."""

    library: str
    load_entry: str
    function_entry: str
    launch_entry: str

    def __init__(self, index: int):
        self.torch_device = torch.device("cuda", index)  # torch's name for the GPUs of both makers
        self.code = self.open()
        handle, text = ctypes.c_void_p, ctypes.c_char_p
        out, number = ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint
        self._load = self.entry(self.load_entry, out, text)
        self._function = self.entry(self.function_entry, out, handle, text)
        sizes = (number,) * 7  # grid, block, shared memory
        self.launch = self.entry(self.launch_entry, handle, *sizes, handle, handle, handle)

    def open(self) -> ctypes.CDLL:
        """The driver's library."""
        try:
            return ctypes.CDLL(self.library)
        except OSError as error:
            raise ArtifactError(f"the GPU driver {self.library} cannot be loaded: {error}") from None

    def entry(self, name: str, *arguments: type) -> Any:
        """The entry point `name`, which returns an error code."""
        try:
            found = getattr(self.code, name)
        except AttributeError:
            raise ArtifactError(f"{self.library} has no {name}; install a newer driver") from None
        found.argtypes, found.restype = arguments, ctypes.c_int
        return found

    @abstractmethod
    def error(self, code: int) -> str:
        """What an error code means."""

    def check(self, code: int, what: str) -> None:
        if code:
            raise ArtifactError(f"{what} on {self.torch_device}: {self.error(code)}")

    def start(self, function: Handle, tiles: int, code: Code, overlaps: bool) -> Start:
        """How `code` is launched on `tiles` programs. `overlaps`: what is in front need not have ended where it
        is dependent."""
        sizes = (tiles, 1, 1, code.threads, 1, 1, code.shared)
        launch = self.launch
        return lambda stream, arguments: launch(function, *sizes, stream, arguments, None)

    def load(self, content: bytes, what: str) -> Handle:
        """The module of a code object."""
        module = ctypes.c_void_p()
        self.check(self._load(ctypes.byref(module), content), f"{what} cannot be loaded")
        return module.value or 0

    def function(self, module: Handle, symbol: str, shared: int) -> Handle:
        """A kernel of a module, ready to be launched with `shared` bytes of shared memory."""
        found = ctypes.c_void_p()
        code = self._function(ctypes.byref(found), module, symbol.encode())
        self.check(code, f"kernel {symbol!r} is not to be had")
        return found.value or 0

    def current(self) -> AbstractContextManager:
        """Makes the device torch's current one."""
        return torch.cuda.device(self.torch_device)

    @abstractmethod
    def enter_thread(self) -> None:
        """Give the thread what its first launch needs, the device being torch's current one."""

    def stream(self) -> torch.cuda.Stream:
        """The caller's current stream."""
        return torch.cuda.current_stream(self.torch_device)

    def capturing(self) -> bool:
        """Whether the current stream of torch's current device is recorded into a graph."""
        return torch.cuda.is_current_stream_capturing()

    def synchronise(self) -> None:
        """Wait for everything that was put on the device."""
        torch.cuda.synchronize(self.torch_device)

    def seconds(self, launch: Callable[[], None]) -> float:
        """What `launch` puts on the caller's stream, between two events; waits for it."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


_modules: dict[tuple[torch.device, str], Handle] = {}


def open_module(driver: Driver, code: Code) -> Handle:
    """Load a code object whose bytes have the manifest's hash; once a process and device. It is never unloaded: a
    captured graph launches it without asking."""
    key = (driver.torch_device, code.sha256)
    if key not in _modules:
        content = code.file.read_bytes()
        if hashlib.sha256(content).hexdigest() != code.sha256:
            raise ArtifactError(f"{code.file} does not match its hash; compile or copy the artifact again")
        _modules[key] = driver.load(content, str(code.file))
    return _modules[key]


class Command:
    """One launch: its code, and the addresses of its arguments."""

    def __init__(self, driver: Driver, code: Code, function: Handle, words: Words, bound: Bound, overlap: bool = True):
        if bound.tiles > MOST_TILES:
            raise LaunchError(
                f"{bound.launch.kernel} has {bound.tiles} tiles; a grid has {MOST_TILES}: use fewer tokens"
            )
        self.bound, self._driver, self._words = bound, driver, words
        self._behind = driver.start(function, bound.tiles, code, overlaps=False)
        self._overlapping = driver.start(function, bound.tiles, code, overlaps=overlap)
        self._null = ctypes.c_int64(0)
        addresses = [ctypes.addressof(words) + 8 * place for place in range(bound.start, bound.end)]
        addresses += [ctypes.addressof(self._null)] * code.scratch
        self._arguments = (ctypes.c_void_p * len(addresses))(*addresses)

    def launch(self, stream: Handle, alone: bool = False) -> None:
        """Launch on `stream`; `alone`: behind the end of what is in front. LaunchError where the driver refuses."""
        if self.bound.tiles == 0:
            return
        code = (self._behind if alone else self._overlapping)(stream, self._arguments)
        if code:
            where = self._driver.torch_device
            raise LaunchError(f"{self.bound.launch.kernel} cannot be launched on {where}: {self._driver.error(code)}")


class Gpu:
    """The code of `target` on the device of `driver`. `overlap`: a launch may start before the one in front ends."""

    alignment = GPU_ALIGNMENT

    def __init__(self, driver: Driver, target: Target, overlap: bool = True):
        self.torch_device, self._driver, self._overlap = driver.torch_device, driver, overlap
        self._stream: torch.cuda.Stream | None = None
        self._captured: dict[int, Plan] = {}
        with driver.current():
            driver.enter_thread()
            self._kernels = {
                name: (code, driver.function(open_module(driver, code), code.symbol, code.shared))
                for name, code in target.codes.items()
            }

    @property
    def description(self) -> str:
        """The GPU's name."""
        return torch.cuda.get_device_name(self.torch_device)

    def divisible(self, kernel: str) -> Iterable[int]:
        """As the artifact has it."""
        return self._kernels[kernel][0].divisible

    def commands(self, words: Words, bound: Sequence[Bound]) -> list[Command]:
        """A command for each launch."""
        return [Command(self._driver, *self._kernels[each.launch.kernel], words, each, self._overlap) for each in bound]

    def execute(self, plan: Plan, live: Live, outputs: Sequence[Tensor], ran: list[Ran] | None) -> None:
        """Put a plan on the caller's stream, behind what earlier calls put on others: they share a workspace."""
        with torch.no_grad(), self._driver.current():
            self._driver.enter_thread()
            stream = self._driver.stream()
            if self._driver.capturing():
                self._captured[id(plan)] = plan  # a graph holds addresses of the plan's memory alone
            else:
                if self._stream is not None and self._stream != stream:
                    stream.wait_stream(self._stream)
                self._stream = stream
            plan.run(live, outputs, ran)

    def run(self, commands: Sequence[Command]) -> None:
        """Launch on the caller's stream."""
        stream = self._driver.stream().cuda_stream
        for command in commands:
            command.launch(stream)

    def timed(self, command: Sequence[Command]) -> tuple[str, int, float]:
        """Launch one command and wait for it: kernel, tiles, seconds between two events."""
        stream, bound = self._driver.stream().cuda_stream, command[0].bound
        seconds = self._driver.seconds(lambda: command[0].launch(stream, alone=True))
        return bound.launch.kernel, bound.tiles, seconds

    def capturing(self) -> bool:
        """Whether the caller's stream is recorded into a graph."""
        with self._driver.current():
            return self._driver.capturing()

    def synchronise(self) -> None:
        """Wait for everything that was put on the device."""
        self._driver.synchronise()

    def close(self) -> None:
        """Wait for calls under way."""
        self.synchronise()
