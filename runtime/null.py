"""A device that runs nothing: arguments are checked, the program is walked, launches are recorded, outputs are zero."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from moeloom.runtime.plan import Plan
from moeloom.runtime.program import evaluate
from moeloom.runtime.segment import Bound, Live, Ran, Words
from moeloom.runtime.target import Target


class Null:
    """Stands in for any target, so that programs can be loaded and called where no kernel fits."""

    description = "nothing"
    torch_device = torch.device("cpu")

    def __init__(self, target: Target):
        self.alignment = target.alignment
        self.launched: list[str] = []

    def divisible(self, kernel: str) -> Iterable[int]:
        """Anything goes."""
        return repeat(1)

    def commands(self, words: Words, bound: Sequence[Bound]) -> Sequence[Bound]:
        """The launches themselves."""
        return bound

    def run(self, commands: Any) -> None:
        """Nothing."""

    def timed(self, command: Sequence[Bound]) -> tuple[str, int, float]:
        """What would have run, in no time."""
        return command[0].launch.kernel, command[0].tiles, 0.0

    def execute(self, plan: Plan, live: Live, outputs: Sequence[Tensor], ran: list[Ran] | None) -> None:
        """Note the launches of a plan (`launched`: kernels of the last call) and fill the outputs with zeros."""
        self.launched = [launch.kernel for launch in plan.launches]
        if ran is not None:
            ran += [Ran(step.kernel, step.op, evaluate(step.tiles, plan.m), 0.0) for step in plan.launches]
        for out in outputs:
            out.zero_()

    def capturing(self) -> bool:
        """Never."""
        return False

    def synchronise(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""
