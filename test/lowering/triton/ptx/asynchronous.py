"""Copies and products that go on while their threads do: `cp.async` and `wgmma` of sm_90, by the PTX ISA.

The machine carries them out late or at once, as it likes, and faults where a kernel could tell. Until a `wait_group`
covers it and, for other warps, a barrier has followed

- no one touches what a copy writes,
- no one reads or writes a product's sums, or writes its registers and the shared memory it reads: a product that has
  the same sums alone goes on with them.

What threads wrote to shared memory themselves, copies included, they have to fence before a barrier (`fence.proxy`),
and registers that they wrote before a product (`wgmma.fence`). Not checked: what hardware does where a register is
written by `mma` or `ldmatrix`, or for some threads after and for others before a fence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arithmetic import Rule, bf16_pairs, listed, registry
from .memory import Shared
from .warp import address, held, left_operand

RULES: dict[str, Rule] = {}
rule = registry(RULES)
WARPGROUP = 128
SWIZZLE_128 = 1
NEVER = -1


@dataclass
class Copy:
    """16 bytes a thread; `group` is how many groups the thread had committed before."""

    threads: np.ndarray
    group: np.ndarray
    addresses: np.ndarray
    values: np.ndarray


@dataclass
class Product:
    """Of one warpgroup: its threads, how many groups they had committed before, registers and what it reads."""

    threads: slice
    group: int
    sums: tuple[str, ...]
    weights: tuple[str, ...]
    places: np.ndarray


class Counts:
    """How many products of each thread take a register: one array for all registers that an instruction names."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._of_names: dict[tuple[str, ...], np.ndarray] = {}
        self._of_register: dict[str, list[np.ndarray]] = {}

    def add(self, names: tuple[str, ...], threads: slice, change: int) -> None:
        counts = self._of_names.get(names)
        if counts is None:
            counts = self._of_names[names] = np.zeros(self._threads, np.int64)
            for name in names:
                self._of_register.setdefault(name, []).append(counts)
        counts[threads] += change

    def any(self, register: str, active: np.ndarray) -> bool:
        """Whether a product of one of the `active` threads takes it."""
        return any(counts[active].any() for counts in self._of_register.get(register, ()))


class InFlight:
    """What a block has under way."""

    def __init__(self, threads: int, shared: Shared) -> None:
        self.shared = shared
        self.copies: list[Copy] = []
        self.products: list[Product] = []
        self.copy_groups, self.product_groups = np.zeros(threads, np.int64), np.zeros(threads, np.int64)
        self._summed, self._read = Counts(threads), Counts(threads)
        self._written: dict[str, int] = {}
        self._fenced = np.full(threads, NEVER)

    def check_read(self, register: str, active: np.ndarray) -> None:
        """That no product of `active` threads has yet to write it."""
        if self.products:
            assert not self._summed.any(register, active), f"reads {register}, which a product has yet to write"

    def check_write(self, register: str, active: np.ndarray, now: int) -> None:
        """That no product reads or writes it; `now` counts instructions."""
        self._written[register] = now
        if self.products:
            taken = self._summed.any(register, active) or self._read.any(register, active)
            assert not taken, f"writes {register}, which a product still takes"

    def fence_registers(self, active: np.ndarray, now: int) -> None:
        self._fenced[active] = now

    def start(self, product: Product) -> None:
        fenced = self._fenced[product.threads].min()
        for name in (*product.sums, *product.weights):
            written = self._written.get(name, NEVER)
            assert fenced > written, f"multiplies by way of {name}, written since the last wgmma.fence"
        self._count(product, 1)
        self.products.append(product)

    def wait_for_products(self, active: np.ndarray, pending: int) -> None:
        """End those of `active` threads but for the latest `pending` groups."""
        for product in [*self.products]:
            own = product.threads.start
            if active[own] and product.group < self.product_groups[own] - pending:
                self.products.remove(product)
                self._count(product, -1)
                self.shared.end_product(product.places)

    def _count(self, product: Product, change: int) -> None:
        self._summed.add(product.sums, product.threads, change)
        self._read.add(product.weights, product.threads, change)

    def wait_for_copies(self, active: np.ndarray, pending: int) -> None:
        for copy in self.copies:
            over = active[copy.threads] & (copy.group < self.copy_groups[copy.threads] - pending)
            if over.any():
                self.shared.end_copy(copy.addresses[over], copy.values[over], copy.threads[over])
                for name in ("threads", "group", "addresses", "values"):
                    setattr(copy, name, getattr(copy, name)[~over])
        self.copies = [copy for copy in self.copies if len(copy.threads)]

    def unfinished(self, active: np.ndarray) -> bool:
        """Whether `active` threads have products that they did not wait for."""
        return any(active[product.threads].any() for product in self.products)


@rule("cp")
def _cp(machine, parts, operands):
    """cp.async of 16 bytes, or of none and zeros in their place."""
    flight, active = machine.flight, machine.active
    match parts[2]:
        case "commit_group":
            flight.copy_groups[active] += 1
        case "wait_group":
            flight.wait_for_copies(active, int(operands[0]))
        case _:
            assert parts[2:] == ["cg", "shared", "global"] and operands[2] == "16", parts
            to, source = address(machine, operands[0], np.uint32), address(machine, operands[1], np.uint64)
            count = _copied(machine, operands[3:])
            assert np.isin(count[active], (0, 16)).all(), "copies a part of 16 bytes"
            assert machine.waited[active].all(), "copies before griddepcontrol.wait"
            threads, copied = machine.threads[active], (count == 16)[active]
            values = np.zeros((len(threads), 16), np.uint8)
            values[copied] = machine.memory.load(source[active][copied], 16, threads[copied])
            flight.shared.begin_copy(to[active], 16, threads)
            flight.copies.append(Copy(threads, flight.copy_groups[active], to[active], values))


def _copied(machine, rest: tuple[str, ...]) -> np.ndarray:
    """How many bytes come from memory: all, as many as a register says, or none where a predicate is true."""
    if not rest:
        return np.full(len(machine.active), 16)
    if machine.kernel.registers[rest[0]] == 1:
        return np.where(machine.value(rest[0], bool), 0, 16)
    return machine.value(rest[0], np.uint32)


@rule("wgmma")
def _wgmma(machine, parts, operands):
    flight, active = machine.flight, machine.active
    match parts[1]:
        case "fence":
            flight.fence_registers(active, machine.executed)
        case "commit_group":
            flight.product_groups[active] += 1
        case "wait_group":
            flight.wait_for_products(active, int(operands[0]))
        case _:
            _multiply(machine, parts, operands)


def _multiply(machine, parts, operands):
    """m64nNk16 of bf16: 16 rows a warp from registers, in the form of mma, times tokens in shared memory, K-major."""
    tokens = int(parts[4].removeprefix("m64n").removesuffix("k16"))
    assert parts[2:] == ["sync", "aligned", f"m64n{tokens}k16", "f32", "bf16", "bf16"], parts
    assert operands[3:] == ("1", "1", "1", "0"), f"scales and order {operands[3:]}"
    sums, weights = listed(operands[0]), listed(operands[1])
    assert len(sums) == tokens // 2 and len(weights) == 4
    matrices = machine.value(operands[2], np.uint64)
    for first in np.flatnonzero(machine.active)[::WARPGROUP]:
        threads = slice(int(first), int(first) + WARPGROUP)
        warps = np.arange(first // 32, first // 32 + 4)
        assert (matrices[threads] == matrices[first]).all(), "a matrix a thread"
        places = _places(int(matrices[first]), tokens)
        x = machine.shared.begin_product(places).view(np.uint16).reshape(tokens, 16)
        right = (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        left = left_operand(bf16_pairs(held(machine, weights, np.uint32, warps)))
        product = left @ right.T
        # Before it starts: products that are under way have written these.
        before = np.stack([machine.registers[name][threads].view(np.float32).reshape(4, 32) for name in sums], 1)
        # Warp, down, row, octet, column, right -> warp, register: octet, down, right; lane: row, column.
        own = product.reshape(4, 2, 8, -1, 4, 2).transpose(0, 3, 1, 5, 2, 4).reshape(4, len(sums), 32)
        after = (own + before).astype(np.float32)
        machine.flight.start(
            Product(threads, int(machine.flight.product_groups[first]), tuple(sums), tuple(weights), places)
        )
        for number, name in enumerate(sums):
            machine.registers[name][threads] = after[:, number].reshape(-1).view(np.uint32)


def _places(descriptor: int, tokens: int) -> np.ndarray:
    """i64 [tokens, 2]: where the two pieces of 16 bytes of each token's 16 columns lie."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    assert descriptor >> 62 == SWIZZLE_128 and descriptor >> 49 & 7 == 0, "the matrix is not swizzled by 128 bytes"
    token = np.arange(tokens)[:, None]
    place = start + token // 8 * stride + token % 8 * 128 + np.arange(2)[None, :] * 16
    return place ^ (place >> 7 & 7) << 4
