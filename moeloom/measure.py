"""Times, and the read bandwidth that bounds them."""

import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeloom.runtime.devices import Device

READ_BYTES = 1 << 30
"""Read at once to measure bandwidth: more than any last-level cache holds."""
GPU_BYTES = 4 << 30
"""The same on a GPU: reading it takes a millisecond, beside which a launch is nothing."""
MATMUL_SIZE = {"cpu": 256}
GPU_MATMUL_SIZE = 8192
"""Rows and columns of the factors of `matmul_rate`."""
SHORTEST_SECONDS = 0.3
"""How long a measurement goes on at least."""


@cache
def _memory():
    import torch

    return torch.ones(READ_BYTES // 4)


def bandwidth(device: "Device") -> float:
    """Bytes a second that the memory of a device delivers: read by all of its threads, or by its GPU."""
    from moeloom.runtime.cpu import Cpu

    return read_bandwidth(device.threads) if isinstance(device, Cpu) else gpu_bandwidth(device)


def gpu_bandwidth(device: "Device", repeats: int = 10) -> float:
    """Bytes a second that a GPU moves: the best of `repeats` sums and copies of 4 GiB, between events."""
    import torch

    memory = torch.ones(GPU_BYTES // 4, device=device.torch_device)
    target = torch.empty_like(memory[: memory.numel() // 2])
    sweeps = (lambda: memory.sum(), lambda: target.copy_(memory[: target.numel()]))
    return GPU_BYTES / min(_event_seconds(sweep) for sweep in sweeps * repeats)


def _event_seconds(sweep: Callable[[], object]) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    sweep()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def read_bandwidth(threads: int, repeats: int = 3) -> float:
    """Bytes a second that `threads` threads read from memory: the best of `repeats` sweeps over 1 GiB.

    The reader is a dot product of a vector with itself, the fastest one in torch.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory = _memory()
        torch.dot(memory, memory)
        return READ_BYTES / min(seconds(lambda: torch.dot(memory, memory)) for _ in range(repeats))
    finally:
        torch.set_num_threads(before)


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(calls: list[Callable[[int], object]], fewest: int = 5, shortest: float | None = None) -> list[float]:
    """Median seconds of each of `calls`, taken in turns so that a machine that slows down slows all of them.

    Each call gets the number of the turn, to vary its input. Two turns warm up; then at least `fewest` turns are timed,
    and more until every call has run for `shortest` seconds [default: SHORTEST_SECONDS].
    """
    shortest = SHORTEST_SECONDS if shortest is None else shortest
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(-2, 1_000_000):
        measured = [seconds(partial(call, turn + 2)) for call in calls]
        if turn < 0:
            continue
        for own, duration in zip(times, measured, strict=True):
            own.append(duration)
        if turn + 1 >= fewest and all(sum(own) >= shortest for own in times):
            break
    return [statistics.median(own) for own in times]


def matmul_rate(device: "Device") -> tuple[float, float]:
    """Operations a second of a square bf16 product through torch, in a burst and sustained: what compute bounds."""
    import torch

    from moeloom import timing

    size = MATMUL_SIZE.get(device.torch_device.type, GPU_MATMUL_SIZE)
    pairs = [torch.randn(2, size, size, device=device.torch_device).bfloat16() for _ in range(4)]
    with timing.torch_threads(device):
        calls = timing.Round([partial(torch.matmul, *pair) for pair in pairs], device)
        return 2 * size**3 / timing.burst(calls), 2 * size**3 / timing.sustained(calls)
