"""The one workspace of an executable, and the plans that point into it."""

import threading
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from moeloom.runtime.cpu import Cpu
from moeloom.runtime.errors import LaunchError
from moeloom.runtime.null import Null
from moeloom.runtime.plan import Live, Plan, Ran, slot_offsets
from moeloom.runtime.program import Program

POISON = 0xFF


class Workspace:
    """Memory for the intermediate tensors of all `programs`, which therefore run one at a time."""

    def __init__(self, device: Cpu | Null, programs: Iterable[Program], *, poison: bool):
        self._device, self._programs, self._poison = device, list(programs), poison
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, int], Plan] = {}
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._capacity, self._fixed = 0, False

    @property
    def size(self) -> int:
        """Bytes."""
        return self._memory.numel()

    def prepare(self, max_tokens: int) -> None:
        """Size the memory for up to `max_tokens` tokens, once and for all."""
        with self._lock:
            self._grow(max_tokens)
            self._fixed = True

    def run(
        self,
        entry: str,
        program: Program,
        m: int,
        weights: Mapping[int, Tensor],
        live: Live,
        outputs: Sequence[Tensor],
        ran: list[Ran] | None,
    ) -> None:
        """Run `program` at M = `m` with inputs `live` and weights by value number; `ran` collects its launches."""
        with self._lock:
            if m > self._capacity and self._fixed:
                raise LaunchError(f"M is {m}; the workspace is planned for {self._capacity}: call prepare({m}) first")
            if m > self._capacity:
                self._grow(m)
            plan = self._plans.get((entry, m))
            if plan is None:
                plan = Plan(program, m, weights, self._memory, self._capacity, self._device)
                self._plans[entry, m] = plan
            if self._poison:
                self._memory.fill_(POISON)
            self._device.execute(plan, live, outputs, ran)

    def _grow(self, max_tokens: int) -> None:
        self._plans.clear()
        size = max((slot_offsets(program, max_tokens)[1] for program in self._programs), default=0)
        self._memory = torch.empty(size, dtype=torch.uint8)
        self._capacity = max_tokens
