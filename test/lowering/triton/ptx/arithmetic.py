"""What PTX instructions do, by the PTX ISA. A rule takes the machine, the parts of the name and the operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .machine import Machine

Operands = Sequence[str]
Rule = Callable[["Machine", list[str], Operands], None]
RULES: dict[str, Rule] = {}

TYPES: dict[str, Any] = {
    "pred": bool,
    "f32": np.float32,
    "f16": np.float16,
    **{f"b{8 * n}": getattr(np, f"uint{8 * n}") for n in (1, 2, 4, 8)},
    **{f"u{8 * n}": getattr(np, f"uint{8 * n}") for n in (1, 2, 4, 8)},
    **{f"s{8 * n}": getattr(np, f"int{8 * n}") for n in (1, 2, 4, 8)},
}
DOUBLED = {np.uint16: np.uint32, np.int16: np.int32, np.uint32: np.uint64, np.int32: np.int64}


def registry(rules: dict[str, Rule]):
    """A decorator that puts a rule into `rules` under the first parts of names."""

    def rule(*names: str):
        def register(function):
            rules.update(dict.fromkeys(names, function))
            return function

        return register

    return rule


rule = registry(RULES)


@cache
def listed(operand: str) -> tuple[str, ...]:
    """The members of a vector operand; the operand alone where it is none."""
    return tuple(name.strip() for name in operand.strip("{} ").split(","))


def bf16_pairs(register: np.ndarray) -> np.ndarray:
    """f32 [.., 2]: the two bf16 of u32 registers, low half first."""
    pairs = np.empty((*register.shape, 2), np.uint32)
    pairs[..., 0], pairs[..., 1] = register << 16, register & 0xFFFF0000
    return pairs.view(np.float32)


def rounded_bf16(values: np.ndarray) -> np.ndarray:
    """u16 bits of f32 `values`, to nearest even; NaN is 0x7FFF, as the ISA has it."""
    bits = values.astype(np.float32).view(np.uint32)
    near = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), near)


def packed_pairs(pairs: np.ndarray) -> np.ndarray:
    """u32 of f32 [.., 2] rounded to bf16."""
    bits = rounded_bf16(pairs).astype(np.uint32)
    return bits[..., 0] | bits[..., 1] << 16


@rule("mov", "cvta")
def _mov(machine, parts, operands):
    to, given = operands
    if parts[-1] == "pred":
        machine.set(to, machine.value(given, bool))
        return
    kind = TYPES[parts[-1]]
    if given.startswith("{"):
        names = listed(given)
        size = 8 * np.dtype(kind).itemsize // len(names)
        words = [
            machine.value(name, TYPES[f"u{size}"]).astype(np.uint64) << np.uint64(size * i)
            for i, name in enumerate(names)
        ]
        machine.set(to, np.bitwise_or.reduce(words).astype(TYPES[f"u{size * len(names)}"]))
    elif to.startswith("{"):
        names = listed(to)
        size = 8 * np.dtype(kind).itemsize // len(names)
        whole = machine.value(given, TYPES[f"u{size * len(names)}"])
        for i, name in enumerate(names):
            machine.set(name, (whole >> np.array(size * i, whole.dtype)).astype(TYPES[f"u{size}"]))
    else:
        machine.set(to, machine.value(given, kind))


def _elementwise(names: str, compute: Callable[..., np.ndarray]) -> None:
    """Instructions whose operands and result have the type at the end of the name."""

    def run(machine, parts, operands):
        kind = TYPES[parts[-1]]
        to, *given = operands
        machine.set(to, compute(*(machine.value(operand, kind) for operand in given)).astype(kind))

    for name in names.split():
        RULES[name] = run


_elementwise("and", lambda a, b: a & b)
_elementwise("or", lambda a, b: a | b)
_elementwise("xor", lambda a, b: a ^ b)
_elementwise("not", lambda a: ~a)
_elementwise("neg", lambda a: -a)
_elementwise("sub", lambda a, b: a - b)
_elementwise("rem", np.fmod)
_elementwise("popc", np.bitwise_count)
_elementwise("rcp", lambda a: np.float32(1) / a)
_elementwise("ex2", np.exp2)
_elementwise("lg2", np.log2)


@rule("abs")
def _abs(machine, parts, operands):
    to, given = operands
    if parts[-1] == "bf16x2":
        machine.set(to, machine.value(given, np.uint32) & np.uint32(0x7FFF7FFF))
    elif parts[-1] == "bf16":
        machine.set(to, machine.value(given, np.uint16) & np.uint16(0x7FFF))
    else:
        machine.set(to, np.abs(machine.value(given, TYPES[parts[-1]])))


@rule("add", "mul", "fma", "mad", "min", "max", "div")
def _arithmetic(machine, parts, operands):
    """Integers wrap; products in their modes lo, hi, wide; f32 and pairs of bf16 round once."""
    to, *given = operands
    name, last = parts[0], parts[-1]
    if last == "bf16x2":
        values = [bf16_pairs(machine.value(operand, np.uint32)).astype(np.float64) for operand in given]
        machine.set(to, packed_pairs(_computed(name, values).astype(np.float32)))
        return
    if last in ("s16x2", "u16x2"):
        halves = [machine.value(operand, np.uint32).view(TYPES[last[:3]]) for operand in given]
        machine.set(to, _computed(name, halves).view(np.uint32))
        return
    kind = TYPES[last]
    if kind is np.float32:
        values = [machine.value(operand, kind).astype(np.float64) for operand in given]
        machine.set(to, _computed(name, values).astype(kind))
        return
    if name in ("mul", "mad") and "wide" in parts:
        wide = DOUBLED[kind]
        product = machine.value(given[0], kind).astype(wide) * machine.value(given[1], kind).astype(wide)
        machine.set(to, product + (machine.value(given[2], wide) if name == "mad" else 0))
        return
    values = [machine.value(operand, kind) for operand in given]
    if "hi" in parts:
        whole = [value.astype(DOUBLED.get(kind, object)) for value in values[:2]]  # of 64 bits Python's own
        high = whole[0] * whole[1] >> np.array(8 * np.dtype(kind).itemsize, whole[0].dtype)
        machine.set(to, high.astype(kind) + (values[2] if name == "mad" else 0))
    elif name == "div":
        sign = np.sign(values[0].astype(np.int64)) * np.sign(values[1].astype(np.int64))
        machine.set(
            to, (sign * (np.abs(values[0].astype(np.int64)) // np.abs(values[1].astype(np.int64)))).astype(kind)
        )
    else:
        machine.set(to, _computed(name, values).astype(kind))


def _computed(name: str, values: list[np.ndarray]) -> np.ndarray:
    match name:
        case "add":
            return values[0] + values[1]
        case "mul":
            return values[0] * values[1]
        case "fma" | "mad":
            return values[0] * values[1] + values[2]
        case "div":
            return values[0] / values[1]
        case "min":  # of a number and a NaN the number
            return np.fmin(*values) if values[0].dtype.kind == "f" else np.minimum(*values)
        case _:
            return np.fmax(*values) if values[0].dtype.kind == "f" else np.maximum(*values)


@rule("shl", "shr")
def _shift(machine, parts, operands):
    """By the width or more, everything is shifted out."""
    to, given, by = operands
    kind = TYPES[parts[-1]]
    value, count = machine.value(given, kind), machine.value(by, np.uint32)
    most = 8 * np.dtype(kind).itemsize - 1
    cut = np.minimum(count, most).astype(kind)
    shifted = value << cut if parts[0] == "shl" else value >> cut
    out = shifted if parts[0] == "shr" and np.issubdtype(kind, np.signedinteger) else np.where(count > most, 0, shifted)
    machine.set(to, out.astype(kind))


@rule("shf")
def _funnel(machine, parts, operands):
    """The upper word of both, shifted to the left by the low five bits of the count."""
    assert parts[1:3] == ["l", "wrap"], parts
    to, low, high, by = operands
    low, high = (machine.value(each, np.uint32).astype(np.uint64) for each in (low, high))
    count = machine.value(by, np.uint32).astype(np.uint64) & np.uint64(31)
    machine.set(to, ((high << np.uint64(32) | low) << count >> np.uint64(32)).astype(np.uint32))


@rule("lop3")
def _lop3(machine, parts, operands):
    to, *given, table = operands
    a, b, c = (machine.value(operand, np.uint32) for operand in given)
    out = np.zeros_like(a)
    for minterm in range(8):
        if int(table, 0) >> minterm & 1:
            terms = [value if minterm >> bit & 1 else ~value for value, bit in ((a, 2), (b, 1), (c, 0))]
            out |= terms[0] & terms[1] & terms[2]
    machine.set(to, out)


@rule("bfe")
def _bfe(machine, parts, operands):
    to, given, start, count = operands
    kind = TYPES[parts[-1]]
    first, bits = (machine.value(operand, np.uint32).astype(np.uint64) & np.uint64(0xFF) for operand in (start, count))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    if np.issubdtype(kind, np.signedinteger):
        assert ((bits > 0) & (first + bits <= 8 * np.dtype(kind).itemsize)).all(), "bfe past the sign"
        found = machine.value(given, kind).astype(np.int64).view(np.uint64) >> first & mask
        negative = (found >> bits - np.uint64(1) & np.uint64(1)).astype(bool)
        machine.set(to, np.where(negative, found | ~mask, found).astype(kind))
        return
    machine.set(to, (machine.value(given, kind).astype(np.uint64) >> first & mask).astype(kind))


@rule("prmt")
def _prmt(machine, parts, operands):
    to, low, high, selector = operands
    first, second = (machine.value(operand, np.uint32).astype(np.uint64) for operand in (low, high))
    both = first | second << np.uint64(32)
    chosen, out = machine.value(selector, np.uint32), np.zeros(len(both), np.uint32)
    for byte in range(4):
        nibble = chosen >> np.uint32(4 * byte) & 0xF
        value = (both >> (8 * (nibble & 7)).astype(np.uint64) & np.uint64(0xFF)).astype(np.uint32)
        value = np.where(nibble & 8, np.where(value & 0x80, 0xFF, 0), value).astype(np.uint32)
        out |= value << np.uint32(8 * byte)
    machine.set(to, out)


COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@rule("setp")
def _setp(machine, parts, operands):
    to, a, b, *other = operands
    kind = TYPES[parts[-1]]
    a, b = machine.value(a, kind), machine.value(b, kind)
    name = parts[1]
    if kind is np.float32 and name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        found = COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    elif kind is np.float32 and name in ("nan", "num"):
        found = (np.isnan(a) | np.isnan(b)) ^ (name == "num")
    elif kind is np.float32:  # ordered: false for a NaN, `ne` too
        found = COMPARE[name](a, b) & ~np.isnan(a) & ~np.isnan(b)
    else:
        found = COMPARE[name](a, b)
    if len(parts) == 4:
        found = COMBINE[parts[2]](found, machine.value(other[0], bool))
    machine.set(to, found)


@rule("selp")
def _selp(machine, parts, operands):
    to, a, b, chosen = operands
    kind = TYPES[parts[-1]]
    machine.set(to, np.where(machine.value(chosen, bool), machine.value(a, kind), machine.value(b, kind)))


@rule("cvt")
def _cvt(machine, parts, operands):
    to, *given = operands
    target, source = parts[-2], parts[-1]
    if target == "bf16":
        assert source == "f32" and "rn" in parts
        machine.set(to, rounded_bf16(machine.value(given[0], np.float32)))
    elif target == "bf16x2":
        high, low = (machine.value(operand, np.float32) for operand in given)
        machine.set(to, packed_pairs(np.stack([low, high], -1)))
    elif source == "bf16":
        machine.set(to, (machine.value(given[0], np.uint16).astype(np.uint32) << 16).view(np.float32))
    else:
        value = machine.value(given[0], TYPES[source])
        assert target in ("f32", "f16") or value.dtype.kind != "f", "a float to an integer"
        if target in ("f32", "f16"):
            machine.set(to, value.astype(TYPES[target]))
            return
        size = 8 * machine.registers[to].dtype.itemsize
        out = value.astype(TYPES[target])
        # Into a wider register by the sign, as the ISA says of cvt.
        machine.set(to, out.astype(TYPES[f"{target[0]}{size}"]))
