"""Rounds of calls that take turns: how long one takes in a burst, and for as long as a machine needs to get warm.

On a GPU a round is one graph, so that the GPU and not Python sets the pace, and its time lies between two events.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from statistics import median

import torch
from torch import Tensor

from moeloom.routing import routed_inputs
from moeloom.runtime.devices import Device
from moeloom.runtime.executable import Executable

BURST_REPLAYS = 9
PAUSE_SECONDS = 0.1
"""How long the machine idles before a burst."""
SUSTAINED_SECONDS = 1.2
"""Long enough for a GPU to meet its power limit in the first half; the second one counts."""
REPLAYS_IN_A_ROW = 5
"""Rounds put on a GPU at once: while the last ones run, Python puts the next ones behind them."""
Call = Callable[[], object]
Turn = tuple[str, dict[str, Tensor]]
"""An entry and its inputs."""


class Round:
    """`calls`, one after another, on `device`. They have run once when it is made; GPU memory stays theirs."""

    def __init__(self, calls: Sequence[Call], device: Device):
        self._calls, self._device = tuple(calls), device
        self._graph: torch.cuda.CUDAGraph | None = None
        for call in self._calls:
            call()
        if device.torch_device.type != "cpu":
            self._graph = self._captured()

    def __len__(self) -> int:
        return len(self._calls)

    def _captured(self) -> torch.cuda.CUDAGraph:
        self._device.synchronise()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device.torch_device), torch.cuda.graph(graph):
            for call in self._calls:
                call()
        return graph

    def once(self, turn: int = 0) -> None:
        """One round, waited for."""
        self._put()
        self._device.synchronise()

    def _put(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for call in self._calls:
            call()

    def times(self, count: int) -> list[float]:
        """Seconds of a call, the mean of each of `count` rounds that follow one another at once."""
        if self._graph is None:
            return [seconds / len(self) for seconds in _host_seconds(self._put, count)]
        with torch.cuda.device(self._device.torch_device):
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
            for start, end in events:
                start.record()
                self._put()
                end.record()
            self._device.synchronise()
        return [start.elapsed_time(end) / 1e3 / len(self) for start, end in events]


def _host_seconds(call: Call, count: int) -> Iterator[float]:
    for _ in range(count):
        start = time.perf_counter()
        call()
        yield time.perf_counter() - start


def turns(
    executable: Executable, layers: Sequence[str], tokens: int, count: int, seed: int = 0, routing: str = "natural"
) -> list[Turn]:
    """`count` inputs of M = `tokens`, or as many as there are layers, and the layer that each is for: layers in turns,
    so that weights come from memory."""
    names = [layers[turn % len(layers)] for turn in range(max(count, len(layers)))]
    return [(name, routed_inputs(executable, name, tokens, routing, seed + turn)) for turn, name in enumerate(names)]


def calls(executable: Executable, turns: Sequence[Turn]) -> list[Call]:
    """The calls that turns stand for; GPUs reuse the memory of results, which nobody keeps."""
    return [partial(executable[name], **inputs) for name, inputs in turns]


def timed(calls: Sequence[Call], device: Device) -> tuple[Callable[[int], object], int]:
    """What `measure.medians` takes, and how many calls it makes: one call, or on a GPU all of them in one graph."""
    if device.torch_device.type == "cpu":
        return lambda turn: calls[turn % len(calls)](), 1
    return Round(calls, device).once, len(calls)


def burst(calls: Round, replays: int = BURST_REPLAYS) -> float:
    """Median seconds of a call over a few rounds after a pause."""
    return median(burst_times(calls, replays))


def burst_times(
    calls: Round, replays: int = BURST_REPLAYS, during: AbstractContextManager | None = None
) -> list[float]:
    """Seconds of a call in each of a few rounds after a pause; the rounds run inside `during`."""
    calls.times(1)
    time.sleep(PAUSE_SECONDS)
    with during or nullcontext():
        return calls.times(replays)


def sustained(calls: Round, seconds: float | None = None) -> float:
    """Median seconds of a call in the second half of `seconds` of rounds without a pause; SUSTAINED_SECONDS if None."""
    seconds = SUSTAINED_SECONDS if seconds is None else seconds
    times, end = list[float](), time.monotonic() + seconds
    while time.monotonic() < end:
        times += calls.times(REPLAYS_IN_A_ROW)
    return median(times[len(times) // 2 :])


@contextmanager
def torch_threads(device: Device) -> Iterator[None]:
    """Inside, torch runs with the threads of a CPU device; on any other with those it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(device, "threads", before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
