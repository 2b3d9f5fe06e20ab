"""One row of `moe_layer.py`: a layer under one routing, every side checked, then timed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import moeloom
from moeloom import clocks, peers, timing
from moeloom.check import TOLERANCE, relative_l2
from moeloom.measure import bandwidth
from moeloom.replay import Replay
from moeloom.runtime.executable import Executable
from moeloom.tools.artifact import blocks

REFERENCE_BANDWIDTH = 4.57e12
"""Bytes a second that an H200 was once seen to read: a floor that does not move from run to run."""
REFERENCE_TOKENS = 4096
BURSTS = 3
"""Of each side, all sides in turns: who comes behind another one meets a warmer GPU."""
ACTIVATIONS = {"bf16": "A16", "mxfp4": "A4"}


@dataclass(frozen=True)
class Case:
    """What a row measures. `sides`: how many of the layer's artifacts take part."""

    what: str
    layer: str
    routing: str
    tokens: int
    run: int = 0
    sides: int = 2

    @property
    def key(self) -> tuple:
        return self.key_of(asdict(self))

    @staticmethod
    def key_of(record: dict[str, Any]) -> tuple:
        """What tells a row from all others."""
        return tuple(record[name] for name in ("what", "layer", "routing", "tokens", "run"))


def calls_of(tokens: int) -> int:
    """How many calls a round has: many where few experts are touched, few where one takes milliseconds."""
    return 32 if tokens <= 256 else 20 if tokens < 16384 else 4


@dataclass
class Side:
    """An artifact or a peer, in one row. Times are seconds a call."""

    name: str
    burst: float | None = None
    sustained: float | None = None
    relative_l2: float | None = None
    """To the float64 reference; a peer's to the first artifact."""
    note: str = ""
    clocks: dict[str, Any] = field(default_factory=dict)


class Layer:
    """One layer's artifacts, loaded, and the peers on the weights of the first one."""

    def __init__(self, paths: Sequence[Path], device: str, threads: int | None, wanted: Sequence[str] | None):
        self.sides: dict[str, Executable] = {}
        for path in paths:
            executable = moeloom.load(path, device, threads=threads, verify="fast")
            kind = ACTIVATIONS[executable.manifest.raw["options"]["activations"]]
            self.sides[f"moeloom {kind}"] = executable
        self.first = next(iter(self.sides.values()))
        self.entries = blocks(self.first.entries)
        self.peers, self.notes = found_peers(self.first, self.entries, wanted)

    def close(self) -> None:
        for executable in self.sides.values():
            executable.close()


def found_peers(executable: Executable, entries: list[str], wanted: Sequence[str] | None) -> tuple[list, list[str]]:
    """The peers that can be built, and a line for each that cannot; whatever goes wrong there."""
    built: list[peers.Peer] = []
    notes = []
    for provide in peers.providers(executable.device.torch_device.type):
        if wanted is not None and not any(provide.__module__.endswith(f"{name}_peer") for name in wanted):
            continue
        try:
            built += provide(executable, entries)
        except peers.NoPeer as reason:
            notes.append(f"no peer: {reason}")
        except Exception as error:
            notes.append(f"no peer: {provide.__module__}: {line(error)}")
    return built, notes


def line(error: Exception) -> str:
    """An error of any library in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


class Row:
    """Measures one case."""

    def __init__(self, case: Case, layer: Layer, seconds: float, sensors: clocks.Clocks | None):
        self.case, self.layer, self.seconds, self.sensors = case, layer, seconds, sensors
        seed = 1000 * case.run + case.tokens
        self.turns = timing.turns(layer.first, layer.entries, case.tokens, calls_of(case.tokens), seed, case.routing)
        self.rounds: dict[str, timing.Round] = {}
        self.sides: list[Side] = []

    def measure(self) -> dict[str, Any]:
        """The row, as it is written."""
        case, device = self.case, self.layer.first.device
        rate = bandwidth(device)
        for name in list(self.layer.sides)[: case.sides]:
            self._prepare(name, lambda side, name=name: self._own(side, self.layer.sides[name]))
        for peer in self.layer.peers:
            self._prepare(peer.name, lambda side, peer=peer: self._peer(side, peer))
        sides = [side for side in self.sides if side.name in self.rounds]
        with timing.torch_threads(device):
            self._time_bursts(sides)
            for side in sides:
                self._time_sustained(side)
        self.rounds.clear()
        rate = max(rate, bandwidth(device))
        return {"kind": "row"} | asdict(case) | self._work(rate) | {"sides": [asdict(side) for side in self.sides]}

    def _work(self, rate: float) -> dict[str, Any]:
        """What the routing asks for: mean experts with a token, the busiest one's share, bytes, useful operations."""
        replays = {name: Replay(self.layer.first, name) for name in self.layer.entries}
        counts = [replays[name].tokens_by_expert(inputs) for name, inputs in self.turns]
        experts = [int((count > 0).sum()) for count in counts]
        read = sum(replays[self.layer.entries[0]].bytes_of(number) for number in experts) / len(experts)
        params = next(
            kernel["params"]
            for kernel in self.layer.first.target.kernels.values()
            if "intermediate" in kernel["params"]
        )
        sizes = params["hidden"] * params["intermediate"] * params["topk"]
        return {
            "experts": sum(experts) / len(experts),
            "busiest_share": sum(float(count.max() / count.sum()) for count in counts) / len(counts),
            "touched_bytes": read,
            "bandwidth": rate,
            "floor_seconds": read / rate,
            "reference_floor_seconds": read / REFERENCE_BANDWIDTH,
            "useful_flops": 6 * self.case.tokens * sizes,
            "calls": len(self.turns),
        }

    def _prepare(self, name: str, build: Callable[["Side"], list[timing.Call]]) -> None:
        """A side checked and captured; whatever fails there is a note."""
        side = Side(name)
        self.sides.append(side)
        with noting(side), timing.torch_threads(self.layer.first.device):
            self.rounds[name] = timing.Round(build(side), self.layer.first.device)

    def _own(self, side: Side, executable: Executable) -> list[timing.Call]:
        name, inputs = self.turns[0]
        found = executable[name](**inputs)
        if self.case.run == 0 and self.case.tokens <= REFERENCE_TOKENS:
            side.relative_l2 = relative_l2(found, Replay(executable, name).run(inputs)[0])
            if not side.relative_l2 <= TOLERANCE:
                raise peers.PeerDisagrees(f"wrong: relative L2 to the reference {side.relative_l2:.3g} > {TOLERANCE}")
        return timing.calls(executable, self.turns)

    def _peer(self, side: Side, peer: peers.Peer) -> list[timing.Call]:
        if not peer.fits(self.case.tokens):
            raise peers.NoPeer("its call does not fit in memory")
        turns = [(name, inputs) for name, inputs in self.turns if name in peer.layers]
        name, inputs = turns[0]
        side.relative_l2 = peers.distance(peer, self.layer.first, name, inputs["x"])
        limit = peers.TOLERANCE[self.layer.first.manifest.raw["options"]["activations"]]
        if not side.relative_l2 <= limit:
            side.note = f"timing only: relative L2 to ours is {side.relative_l2:.3g}, beyond {limit}"
        return [peer.call(name, inputs["x"]) for name, inputs in turns]

    def _time_bursts(self, sides: Sequence[Side]) -> None:
        """Sides in turns, another one first each time."""
        times: dict[str, list[float]] = {side.name: [] for side in sides}
        readings = {side.name: clocks.Readings() for side in sides}
        for turn in range(BURSTS):
            first = turn % max(len(sides), 1)
            for side in (*sides[first:], *sides[:first]):
                with noting(side):
                    watch = self._watch(readings[side.name])
                    times[side.name] += timing.burst_times(self.rounds[side.name], during=watch)
        for side in sides:
            side.burst = median(times[side.name]) if times[side.name] else None
            side.clocks["burst"] = readings[side.name].summary()

    def _time_sustained(self, side: Side) -> None:
        readings = clocks.Readings()
        with noting(side), self._watch(readings):
            side.sustained = timing.sustained(self.rounds[side.name], self.seconds)
        side.clocks["sustained"] = readings.summary()

    def _watch(self, readings: clocks.Readings) -> AbstractContextManager:
        return nullcontext() if self.sensors is None else self.sensors.watch(readings)


@contextmanager
def noting(side: Side) -> Iterator[None]:
    """Whatever fails is the side's note."""
    try:
        yield
    except Exception as error:
        side.note = line(error)
