"""A machine that runs PTX on the CPU: the threads of a block together, the blocks of a grid one after another.

It follows the PTX ISA and nothing else, so that a whole kernel, Gluon and inline assembly included, is judged by what
the assembler gets. Threads that branch apart go on from the lowest instruction and meet again there. Instructions of a
warp or a warpgroup demand all of its threads. An instruction without a rule, a race or an access out of bounds is an
error with its line. The launch in front may still run when a kernel starts: what that wrote, and what this one writes,
is touched behind `griddepcontrol.wait` alone, which every thread executes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from . import arithmetic, asynchronous, warp
from .memory import Memory, Shared
from .text import Instruction, Kernel, parse

RULES = arithmetic.RULES | warp.RULES | asynchronous.RULES
WIDTHS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
MOST_STEPS = 200_000
"""Of a program."""
SHARED_NAME = "global_smem"
GARBAGE = 0xA5A5A5A5A5A5A5A5
DONE = np.iinfo(np.int64).max


class Fault(Exception):
    """The kernel did what it must not, or the machine has no rule: the instruction and why."""


class Registers(dict[str, np.ndarray]):
    """Those of a block by name, [threads] each. They begin as garbage, the same on every run."""

    def __init__(self, bits: Mapping[str, int], threads: int) -> None:
        super().__init__()
        self._bits, self._threads = bits, threads

    def __missing__(self, name: str) -> np.ndarray:
        bits = self._bits[name]
        if bits == 1:
            made = np.full(self._threads, True)
        else:
            made = np.full(self._threads, GARBAGE & (1 << bits) - 1, WIDTHS[bits])
        self[name] = made
        return made


class Machine:
    """The state that instructions work on. `active` bool [threads]: those that execute the present one;
    `every`: whether all do."""

    def __init__(self, text: str, memory: Memory, shared: np.ndarray, overlaps: bool = True) -> None:
        """`shared` u8: what shared memory holds when a block begins. `overlaps`: the launch in front may run."""
        self.kernel: Kernel = parse(text)
        self.memory, self._shared_content, self._overlaps = memory, shared, overlaps
        self.threads = np.arange(self.kernel.threads)
        self.starts = {0, *self.kernel.labels.values()}
        self.executed = 0

    def launch(
        self,
        blocks: int,
        arguments: Sequence[int],
        order: Sequence[int] | None = None,
        processors: int = 2,
        most_steps: int = MOST_STEPS,
    ) -> None:
        """Run a grid of `blocks`, in `order`, on so many processors in turns. A block of more steps has no end."""
        self._processors, self._most_steps = processors, most_steps
        names = list(self.kernel.params)
        assert len(arguments) <= len(names), f"{self.kernel.name} takes {len(names)} arguments"
        self.params: Mapping[str, int] = dict(zip(names, [*arguments, *[0] * len(names)], strict=False))
        # Wrapping and NaN are what the ISA means.
        with np.errstate(all="ignore"):
            for block in range(blocks) if order is None else order:
                self._run(block, blocks)

    def _run(self, block: int, blocks: int) -> None:
        count = self.kernel.threads
        self._begun = self.executed
        self.shared = Shared(self._shared_content)
        self.flight = asynchronous.InFlight(count, self.shared)
        self.special = {"%tid.x": self.threads, "%ntid.x": count, "%ctaid.x": block, "%nctaid.x": blocks}
        self.special |= {"%laneid": self.threads % 32, "%tid.y": 0, "%tid.z": 0, SHARED_NAME: 0}
        self.special["%smid"] = block % self._processors
        self.special |= {"%ctaid.y": 0, "%ctaid.z": 0}
        self._known: dict[tuple[str, type], np.ndarray] = {}  # operands that are the same for the whole block
        self.registers = Registers(self.kernel.registers, count)
        self.at = np.zeros(count, np.int64)
        self.waiting, self.parked = np.zeros(count, bool), np.zeros(count, bool)  # at a barrier, for their warp
        self.waited = np.full(count, not self._overlaps)  # for the launch in front
        while (alive := self.at != DONE).any():
            free = alive & ~self.waiting & ~self.parked
            if free.any():
                self._run_group(free)
            elif self.parked.any():
                raise Fault(
                    f"{self.kernel.code[self.at[self.parked].min()]}: a part of a warp waits for the rest of it"
                )
            else:
                self.waiting[:] = False
                self.shared.barrier()

    def _run_group(self, free: np.ndarray) -> None:
        """Run the threads that are at the lowest instruction up to where others may join them."""
        here = int(self.at[free].min())
        group = free & (self.at == here)
        every = bool(group.all())
        while True:
            instruction = self.kernel.code[here]
            if instruction.is_collective and not every:
                group = self._whole_units(group, here, instruction.together)
                if not group.any():
                    return
                every = bool(group.all())
            self.executed += 1
            if self.executed - self._begun > self._most_steps:
                raise Fault(f"{instruction}: more than {self._most_steps} instructions; does it end?")
            self.active, self.every = group, every
            if instruction.guard:
                self.active = group & (self.registers[instruction.guard] ^ instruction.unless)
                self.every = bool(self.active.all())
            here += 1
            match instruction.parts[0]:
                case "bra":
                    self.at[group] = here
                    self.at[self.active] = self.kernel.labels[instruction.operands[0]]
                    return
                case "ret" | "exit":
                    if not self.waited[self.active].all():
                        raise Fault(f"{instruction}: a thread ends without griddepcontrol.wait")
                    if self.flight.unfinished(self.active):
                        raise Fault(f"{instruction}: a thread ends before its products do")
                    self.at[group] = here
                    self.at[self.active] = DONE
                    return
                case "bar" | "barrier" if not instruction.is_collective:
                    self.at[group] = here
                    self.waiting |= self.active
                    return
            self._step(instruction)
            if here in self.starts:
                self.at[group] = here
                return

    def _whole_units(self, group: np.ndarray, here: int, together: int) -> np.ndarray:
        """Of the threads at a collective instruction those whose warp, or warpgroup, is there; the rest is parked until
        it is."""
        joined = group | (self.parked & (self.at == here))
        whole = np.repeat(joined.reshape(-1, together).all(1), together)
        rest = joined & ~whole
        self.at[rest], self.parked[joined] = here, rest[joined]
        return joined & whole

    def _step(self, instruction: Instruction) -> None:
        rule = RULES.get(instruction.parts[0])
        if rule is None:
            raise Fault(f"{instruction}: the machine has no rule for it")
        try:
            rule(self, instruction.parts, instruction.operands)
        except Exception as error:
            raise Fault(f"{instruction}: {type(error).__name__}: {error}") from error

    def value(self, operand: str, dtype: type) -> np.ndarray:
        """The operand as `dtype` [threads], not to be changed; registers are reinterpreted, numbers are cut to its
        width."""
        if operand in self.kernel.registers:
            held = self.registers[operand]
            self.flight.check_read(operand, self.active)
            # Instructions of n bits may read wider registers.
            return held if dtype is bool else narrowed(held, dtype)
        known = self._known.get((operand, dtype))
        if known is None:
            known = self._known[operand, dtype] = self._constant(operand, dtype)
        return known

    def _constant(self, operand: str, dtype: type) -> np.ndarray:
        """What is no register: a special one, a parameter or a literal."""
        shape = self.threads.shape
        if operand in self.special:
            made = np.broadcast_to(np.asarray(self.special[operand], np.int64), shape).astype(dtype)
        elif operand in self.params:
            made = np.full(shape, self.params[operand] & 0xFFFFFFFFFFFFFFFF, np.uint64).astype(dtype)
        else:
            made = np.full(shape, number(operand, dtype), dtype)
        made.flags.writeable = False
        return made

    def set(self, name: str, values: np.ndarray) -> None:
        """Write the active threads' registers; `_` is a sink. Values of fewer bits are extended by zeros."""
        if name == "_":
            return
        self.flight.check_write(name, self.active, self.executed)
        register = self.registers[name]
        raw = values if register.dtype == bool else values.view(WIDTHS[8 * values.dtype.itemsize])
        np.copyto(register, raw, "unsafe", True if self.every else self.active)

    def warps(self, what: str) -> np.ndarray:
        """The numbers of the active warps, each whole."""
        whole = self.active.reshape(-1, 32)
        assert (whole.all(1) | ~whole.any(1)).all(), f"{what} by a part of a warp"
        return np.flatnonzero(whole.all(1))


@cache
def _size(dtype: type) -> int:
    return np.dtype(dtype).itemsize


def narrowed(held: np.ndarray, dtype: type) -> np.ndarray:
    """A register's bits as `dtype` of the same or a smaller width."""
    size = _size(dtype)
    assert size <= held.dtype.itemsize, f"{8 * held.dtype.itemsize} bits read as {8 * size}"
    if size < held.dtype.itemsize:
        held = held.astype(WIDTHS[8 * size])
    return held.view(dtype)


def number(text: str, dtype: type) -> np.generic:
    """A literal: 0fHEX, a decimal or hexadecimal integer, or a float."""
    if text.startswith("0f"):
        bits = np.array(int(text[2:], 16), np.uint32)
        return bits.view(np.float32)[()] if dtype is np.float32 else bits[()]
    if "." in text:
        return np.float32(text)
    given = int(text.rstrip("U"), 0)
    size = 8 * np.dtype(dtype).itemsize
    return np.array(given & (1 << size) - 1, WIDTHS[size]).view(dtype)[()]
