"""Runs variants on the device at hand: times in turns with the table in force, and numbers. Needs the runtime alone."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeloom import switches, timing
from moeloom.check import check, inputs_of
from moeloom.measure import medians
from moeloom.runtime import artifact
from moeloom.runtime.bind import bind
from moeloom.runtime.cpu import Cpu
from moeloom.runtime.devices import open_device
from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Alternatives
from moeloom.tuning import plan as plans
from moeloom.tuning.plan import IN_FORCE, Plan, Threshold, TuningError
from moeloom.version import VERSION

SHORTEST_SECONDS = 0.3
"""How long each of a pair is timed at least, a round."""
INPUTS = 32
"""Random inputs that calls take in turns, so that other experts are touched each time."""
Timed = tuple[Callable[[int], object], int]
"""What is called at each turn, and how many calls of a layer that makes."""


class Trials:
    """The variants of a plan on one device, all on the weights of the one in force, which are made once."""

    def __init__(self, directory: Path, plan: Plan, device: str = "auto", **cpu: Any):
        self.directory, self.plan, self._device, self._cpu = directory, plan, device, cpu
        self._bound: dict[str, Tensor] | None = None
        self.in_force = self._open(IN_FORCE)
        self._sides: dict[str, tuple[Executable, Executable]] = {}
        self._number = 0
        self._turns: dict[int, list[tuple[str, dict[str, Tensor]]]] = {}
        self._in_turns: dict[int, Timed] = {}

    def close(self) -> None:
        self.in_force.close()

    @property
    def machine(self) -> dict[str, Any]:
        """What the measurements are made on."""
        device = self.in_force.device
        about = {"device": device.description, "moeloom": VERSION, "torch": torch.__version__}
        if isinstance(device, Cpu):
            about |= {"device": f"{_processor()}, {device.description}", "tier": device.library.tier}
        return {**about, "python": platform.python_version(), "date": datetime.now(UTC).isoformat(timespec="seconds")}

    def _open(self, name: str) -> Executable:
        """A variant's layers of the plan, and no other entry."""
        manifest = artifact.read(plans.artifact(self.directory, name))
        entries = {entry: manifest.entries[entry] for entry in self.plan.entries}
        manifest = replace(manifest, entries=entries)
        target, device = open_device(manifest, self._device, self.plan.request.target, **self._cpu)
        if self._bound is None:
            self._bound = bind(manifest, target.name, None, device.torch_device)
            self._programs = {entry.program: target.programs[entry.program].weights for entry in entries.values()}
        weights = {entry.program: target.programs[entry.program].weights for entry in entries.values()}
        if {p: _packing(w) for p, w in weights.items()} != {p: _packing(w) for p, w in self._programs.items()}:
            raise TuningError(f"variant {name} packs its weights in another way than the table in force")
        return self._prepared(Executable(manifest, target, device, self._bound))

    def _prepared(self, executable: Executable) -> Executable:
        """With a workspace for the most tokens: one that grew would leave captured graphs with memory that is gone."""
        executable.prepare(max(self.plan.request.tokens))
        return executable

    def alive(self) -> bool:
        """Whether the device still runs things: a GPU whose context has failed does not."""
        try:
            torch.ones(1, device=self.in_force.device.torch_device).sum().item()
        except RuntimeError:
            return False
        return True

    @contextmanager
    def candidate(self, name: str) -> Iterator[Executable]:
        """A variant, loaded."""
        opened = self._open(name)
        try:
            yield opened
        finally:
            opened.close()

    def sides(self, threshold: Threshold) -> tuple[Executable, Executable]:
        """The table in force with each side of a threshold's alternatives forced; made once."""
        if threshold.name in self._sides:
            return self._sides[threshold.name]
        kernels = self.in_force.target.kernels

        def wanted(step: Alternatives) -> bool:
            params = [kernels[launch.kernel]["params"] for launch in switches.launches(step.first)]
            stage = any(own.get("stage") in threshold.stages for own in params)
            if step.choice == "tokens":  # one plan of several
                return threshold.choice == "tokens" and step.max_m == threshold.limit(threshold.value)
            return step.choice == threshold.choice and (step.choice != "fusion" or stage)

        first, second = (switches.forced(self.in_force, which, wanted) for which in switches.SIDES)
        self._sides[threshold.name] = (self._prepared(first), self._prepared(second))
        return first, second

    def differing(self, one: Executable, other: Executable) -> list[int]:
        """The M of the plan at which the two launch anything different."""
        return [m for m in self.plan.request.tokens if self._launched(one, m) != self._launched(other, m)]

    def _launched(self, executable: Executable, m: int) -> list[tuple]:
        kernels = executable.target.kernels
        return [
            (kernels[launch.kernel]["template"], kernels[launch.kernel]["params"], launch.tiles)
            for launch in executable[self.plan.entries[0]].launches(m)
        ]

    def failures(self, executable: Executable, m: int) -> list[str]:
        """What `moeloom check` finds wrong of one layer at M = `m`, a line each."""
        return [
            f"{figure.measure} {figure.value:.3g} to {figure.compared}, limit {figure.limit:.3g}"
            for figure in check(executable, self.plan.entries[:1], [m])
            if not figure.passed
        ]

    def differences(self, one: Executable, other: Executable, m: int) -> list[str]:
        """A line where the outputs of the two are not the same bytes at M = `m`."""
        name = self.plan.entries[0]
        inputs = inputs_of(one, name, m, 0)
        same = torch.equal(one[name](**inputs), other[name](**inputs))
        return [] if same else ["the bytes of its two sides differ"]

    def seconds(self, one: Executable, other: Executable, m: int, number: int) -> tuple[float, float]:
        """Seconds of one call of each at M = `m`, medians of calls in turns, on the inputs of round `number`."""
        timed = [self._timed(executable, m, number) for executable in (one, other)]
        times = medians([call for call, _ in timed], shortest=SHORTEST_SECONDS)
        own, others = (taken / count for taken, (_, count) in zip(times, timed, strict=True))
        return own, others

    def _timed(self, executable: Executable, m: int, number: int) -> Timed:
        """The layers and as many inputs in turns, so that weights come from memory; kept for the table in force."""
        if number != self._number:
            self._number, self._turns, self._in_turns = number, {}, {}
        if executable is self.in_force and m in self._in_turns:
            return self._in_turns[m]
        turns = self._inputs(m, number)

        timed: Timed = timing.timed(timing.calls(executable, turns), executable.device)
        if executable is self.in_force:
            self._in_turns[m] = timed
        return timed

    def _inputs(self, m: int, number: int) -> list[timing.Turn]:
        """An entry and its inputs for each turn of round `number`, the same for every variant."""
        if m not in self._turns:
            count = max(INPUTS, len(self.plan.entries))
            self._turns[m] = timing.turns(self.in_force, self.plan.entries, m, count, number * count)
        return self._turns[m]


def _packing(weights: Sequence) -> list[tuple]:
    return [(weight.name, weight.tensor, weight.pack) for weight in weights]


def _processor() -> str:
    """The CPU's name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names: Mapping[str, str] = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    return names.get("model name") or platform.machine()
