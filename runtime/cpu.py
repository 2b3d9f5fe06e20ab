"""The CPU: chooses the native library that fits, and runs commands on a pool of threads."""

import ctypes
import hashlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.plan import Plan
from moeloom.runtime.segment import Bound, Live, Ran, Words
from moeloom.runtime.target import CPU_ALIGNMENT, Library

EPOCHS = (1 << 31) - 1
"""How many runs go by before an epoch comes again."""
COMMAND_WORDS = 5  # kernel, args, tiles, next, finished
COUNTERS = slice(3, 5)
"""Of a command: tiles taken and tiles finished, the epoch in the upper half."""

AMX_FEATURES = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def features() -> frozenset[str]:
    """CPU features as /proc/cpuinfo spells them; empty where there is no such file. AMX only where Linux lets us."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    have = frozenset(value.split())
                    return have if "amx_tile" in have and _may_use_amx() else have - AMX_FEATURES
    except OSError:
        pass
    return frozenset()


def _may_use_amx() -> bool:
    """Ask Linux for the tile registers, for this process and the threads it starts (arch_prctl)."""
    return ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


def choose(libraries: Sequence[Library], tier: str | None = None, have: frozenset[str] | None = None) -> Library:
    """The first library (they are listed best first) whose features this CPU has; of `tier` only, where given."""
    have = features() if have is None else have
    named = [library for library in libraries if tier in (None, library.tier)]
    if not named:
        tiers = ", ".join(library.tier for library in libraries)
        raise ArtifactError(f"the artifact has no tier {tier!r}; it has {tiers or 'none'}")
    for library in named:
        if have.issuperset(library.features):
            return library
    lacks = "; ".join(f"{x.tier} needs {' '.join(sorted(set(x.features) - have))}" for x in named)
    raise ArtifactError(f"no library of the artifact runs on this CPU: {lacks}. Compile it for the generic tier too")


_loaded: dict[str, ctypes.CDLL] = {}


def open_library(library: Library) -> ctypes.CDLL:
    """Load a library whose bytes have the manifest's hash; each is loaded once in a process.

    dlopen returns the old code for a path it knows, even when the file was replaced. So the file goes by its
    descriptor, which stays open to keep that name unique, and which is what was hashed.
    """
    if library.sha256 in _loaded:
        return _loaded[library.sha256]
    descriptor = os.open(library.file, os.O_RDONLY)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != library.sha256:
                raise ArtifactError(f"{library.file} does not match its hash; compile or copy the artifact again")
        code = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        os.close(descriptor)
        raise ArtifactError(f"{library.file} cannot be loaded: {error}") from None
    except ArtifactError:
        os.close(descriptor)
        raise
    _loaded[library.sha256] = code
    return code


Work = queue.SimpleQueue
"""Of (commands, epoch); None ends a thread."""


def _work(work: Work, run: Callable, threads: int) -> None:
    """Join in whatever is newest. Holding the array keeps its memory while the thread reads counters in it."""
    while True:
        item = work.get()
        while not work.empty():
            item = work.get()
        if item is None:
            return
        commands, epoch = item
        run(commands.ctypes.data, len(commands), threads, epoch)


def _stop(work: Sequence[Work]) -> None:
    for one in work:
        one.put(None)


class Cpu:
    """A library and `threads` threads (default: the CPUs this process may use); the calling thread is one of them."""

    torch_device = torch.device("cpu")
    alignment = CPU_ALIGNMENT

    def __init__(self, libraries: Sequence[Library], *, threads: int | None = None, tier: str | None = None):
        self.library = choose(libraries, tier)
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        if self.threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        self._code = open_library(self.library)
        self._run = self._code.moeloom_run
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self._run.restype = None
        self._epoch = 0
        self._kernels: dict[int, str] = {}
        self._work: list[Work] = [queue.SimpleQueue() for _ in range(1, self.threads)]
        self._workers = [
            threading.Thread(target=_work, args=(work, self._run, self.threads), name=f"moeloom-{number}", daemon=True)
            for number, work in enumerate(self._work, 1)
        ]
        for worker in self._workers:
            worker.start()
        self.close = weakref.finalize(self, _stop, self._work)

    def divisible(self, kernel: str) -> Iterable[int]:
        """Kernels of the CPU assume nothing of addresses and strides."""
        return repeat(1)

    def commands(self, words: Words, bound: Sequence[Bound]) -> np.ndarray:
        """i64 [n, COMMAND_WORDS], as the library's `moeloom_run` takes them."""
        commands = np.zeros((len(bound), COMMAND_WORDS), np.int64)
        args_at = ctypes.addressof(words)
        for command, each in zip(commands, bound, strict=True):
            command[:3] = (self._kernel(each.launch.kernel), args_at + 8 * each.start, each.tiles)
        return commands

    def _kernel(self, name: str) -> int:
        """The address of a kernel."""
        try:
            address = ctypes.cast(getattr(self._code, name), ctypes.c_void_p).value or 0
        except AttributeError:
            raise ArtifactError(f"{self.library.file} has no kernel {name!r}; compile the model again") from None
        self._kernels[address] = name
        return address

    def execute(self, plan: Plan, live: Live, outputs: Sequence[Tensor], ran: list[Ran] | None) -> None:
        """Run a plan."""
        with torch.no_grad():
            plan.run(live, outputs, ran)

    def run(self, commands: np.ndarray) -> None:
        """Run commands, i64 [n, COMMAND_WORDS], on all threads that are free. One caller at a time.

        Returns when every tile has run. A thread that wakes later finds the counters complete, or of another epoch, and
        touches nothing else.
        """
        if not self.close.alive:
            raise RuntimeError("the CPU device is closed")
        self._epoch = self._epoch % EPOCHS + 1
        commands[:, COUNTERS] = self._epoch << 32
        for work in self._work:
            work.put((commands, self._epoch))
        self._run(commands.ctypes.data, len(commands), self.threads, self._epoch)

    def timed(self, command: np.ndarray) -> tuple[str, int, float]:
        """Run one command, i64 [1, COMMAND_WORDS]: kernel and tiles as it names them, seconds."""
        start = time.perf_counter()
        self.run(command)
        seconds = time.perf_counter() - start
        address, _, tiles, *_ = command[0].tolist()
        return self._kernels[address], tiles, seconds

    @property
    def description(self) -> str:
        """What runs: how many threads."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"

    def capturing(self) -> bool:
        """Whether calls are being recorded instead of run: never here."""
        return False

    def synchronise(self) -> None:
        """Nothing is under way: a call returns when it is done."""
