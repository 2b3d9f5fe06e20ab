"""The one workspace of an executable, and the plans that point into it."""

import threading
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from moeloom.runtime.devices import Device
from moeloom.runtime.errors import LaunchError
from moeloom.runtime.plan import Plan, slot_offsets
from moeloom.runtime.program import Program
from moeloom.runtime.segment import Live, Ran


class Workspace:
    """Memory for the intermediate tensors of all `programs`, which therefore run one at a time."""

    def __init__(self, device: Device, programs: Iterable[Program], *, poison: bool):
        self._device, self._programs, self._poison = device, list(programs), poison
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, int], Plan] = {}
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._capacity, self._fixed = 0, False
        # Every launch that takes it leaves its flags as it found them, so one serves all programs.
        words = max((words for program in self._programs for words in program.exchanges.values()), default=0)
        self._exchange = torch.zeros(words, dtype=torch.int32, device=device.torch_device)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._memory.nbytes + self._exchange.nbytes

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
            plan = self._plans.get((entry, m))
            if plan is None:
                plan = self._plans[entry, m] = self._plan(program, m, weights)
            self._device.execute(plan, live, outputs, ran)

    def _plan(self, program: Program, m: int, weights: Mapping[int, Tensor]) -> Plan:
        if self._device.capturing():
            raise LaunchError(f"a graph cannot capture the first call with M = {m}: make one before the capture")
        if m > self._capacity and self._fixed:
            raise LaunchError(f"M is {m}; the workspace is planned for {self._capacity}: call prepare({m}) first")
        if m > self._capacity:
            self._grow(m)
        weights = {**weights, **{value: self._exchange[:words] for value, words in program.exchanges.items()}}
        return Plan(program, m, weights, self._memory, self._capacity, self._device, poison=self._poison)

    def _grow(self, max_tokens: int) -> None:
        self._device.synchronise()  # calls under way on other streams still use the memory that goes
        self._plans.clear()
        alignment = self._device.alignment
        size = max((slot_offsets(program, max_tokens, alignment)[1] for program in self._programs), default=0)
        self._memory = torch.empty(0)
        self._memory = torch.empty(size, dtype=torch.uint8, device=self._device.torch_device)
        self._capacity = max_tokens
