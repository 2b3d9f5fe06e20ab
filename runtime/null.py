"""A device that runs nothing: arguments are checked, the program is walked, launches are recorded, outputs are zero."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from moeloom.runtime.plan import Live, Plan, Ran
from moeloom.runtime.program import evaluate


class Null:
    """Stands in for any target, so that programs can be loaded and called where no kernel fits."""

    threads = 1

    def __init__(self, target: str):
        self.target = target
        self._names: list[str] = []
        self.launched: list[str] = []

    def kernel(self, name: str) -> int:
        """A number that stands for the kernel's address."""
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name) + 1

    def run(self, commands: np.ndarray) -> None:
        """Nothing."""

    def execute(self, plan: Plan, live: Live, outputs: Sequence[Tensor], ran: list[Ran] | None) -> None:
        """Note the launches of a plan (`launched`: kernels of the last call) and fill the outputs with zeros."""
        self.launched = [launch.kernel for launch in plan.launches]
        if ran is not None:
            ran += [Ran(step.kernel, step.op, evaluate(step.tiles, plan.m), 0.0) for step in plan.launches]
        for out in outputs:
            out.zero_()

    def close(self) -> None:
        """Nothing is held."""
