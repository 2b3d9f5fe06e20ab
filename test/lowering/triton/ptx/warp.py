"""Instructions that touch memory or other threads of a warp, by the PTX ISA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from .arithmetic import TYPES, Rule, bf16_pairs, listed, registry

SIZES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8, "u8": 1, "u16": 2, "u32": 4, "s32": 4, "u64": 8, "f32": 4}
RULES: dict[str, Rule] = {}
rule = registry(RULES)


def in_shared(parts: list[str]) -> bool:
    """Whether an instruction means shared memory: .shared or .shared::cta."""
    return any(part.startswith("shared") for part in parts)


def address(machine, place: str, kind: type) -> np.ndarray:
    """i64 [threads]: the address in the operand `place`, [register + offset]."""
    base, offset = _base_and_offset(place)
    return machine.value(base, kind).astype(np.int64) + offset


@cache
def _base_and_offset(place: str) -> tuple[str, int]:
    base, _, offset = (part.strip() for part in place.strip("[] ").partition("+"))
    return base, int(offset or 0)


@rule("ld", "st")
def _memory(machine, parts, operands):
    """ld and st of param, global and shared memory, one element a thread or a vector; cache hints mean nothing here."""
    data, place = (operands[0], operands[1]) if parts[0] == "ld" else (operands[1], operands[0])
    kind, names = parts[-1], listed(data)
    if "param" in parts:
        machine.set(names[0], machine.value(place.strip("[] "), TYPES[kind]))
        return
    shared = in_shared(parts)
    who = slice(None) if machine.every else machine.active
    memory, threads, size = machine.shared if shared else machine.memory, machine.threads[who], SIZES[kind]
    places = address(machine, place, np.uint32 if shared else np.uint64)[who]
    if not len(threads):
        return
    early = ~machine.waited[who]
    if not shared and early.any():
        assert parts[0] == "ld", "writes before griddepcontrol.wait"
        machine.memory.check_early(places[early], size * len(names), past_l1="cg" in parts)
    if parts[0] == "ld":
        found = memory.load(places, size * len(names), threads).reshape(-1, len(names), size)
        for i, name in enumerate(names):
            every = np.zeros(len(machine.threads), TYPES[f"u{8 * size}"])
            every[who] = np.ascontiguousarray(found[:, i]).view(every.dtype)[:, 0]
            machine.set(name, every)
    else:
        values = [machine.value(name, TYPES[f"u{8 * size}"])[who] for name in names]
        raw = np.stack(values, 1).view(np.uint8).reshape(len(threads), -1)
        memory.store(places, raw, threads)


@rule("createpolicy", "membar", "fence")
def _nothing(machine, parts, operands):
    """Changes no value here; a proxy fence lets products see what its threads wrote."""
    if parts[:3] == ["fence", "proxy", "async"]:
        machine.shared.fence(machine.active)


@rule("griddepcontrol")
def _griddepcontrol(machine, parts, operands):
    """Waits for the launch in front, or lets the one behind start, which must not be before that."""
    if parts[1] == "wait":
        machine.waited |= machine.active
    else:
        assert machine.waited[machine.active].all(), "lets the next launch start before it has waited itself"


@rule("bar")
def _bar_warp(machine, parts, operands):
    machine.warps("bar.warp.sync")


@rule("shfl")
def _shfl(machine, parts, operands):
    """shfl.sync of b32; lanes outside of their segment get their own value."""
    *to, given, by, clamp, members = [*listed(operands[0].replace("|", ",")), *operands[1:]]
    machine.warps("shfl")
    assert (machine.value(members, np.uint32)[machine.active] == 0xFFFFFFFF).all(), "shfl of a part of a warp"
    value, lane = machine.value(given, np.uint32), machine.threads % 32
    by, limits = machine.value(by, np.uint32).astype(np.int64), machine.value(clamp, np.uint32).astype(np.int64)
    bound, segment = limits & 31, limits >> 8 & 31
    most, least = (lane & segment) | (bound & ~segment & 31), lane & segment
    match parts[2]:
        case "idx":
            source = least | (by & ~segment & 31)
            inside = source <= most
        case "bfly":
            source = lane ^ by
            inside = source <= most
        case "down":
            source = lane + by
            inside = source <= most
        case _:
            source = lane - by
            inside = source >= most
    chosen = machine.threads - lane + np.where(inside, source, lane)
    machine.set(to[0], value[chosen])
    if len(to) > 1:
        machine.set(to[1], inside)


REDUCE = {"max": np.maximum, "min": np.minimum, "add": np.add, "and": np.bitwise_and, "or": np.bitwise_or}


@rule("redux")
def _redux(machine, parts, operands):
    """All lanes of a warp get what their values are together."""
    to, given, members = operands
    machine.warps("redux")
    assert (machine.value(members, np.uint32)[machine.active] == 0xFFFFFFFF).all(), "redux of a part of a warp"
    values = machine.value(given, TYPES[parts[-1]])
    machine.set(to, np.repeat(REDUCE[parts[2]].reduce(values.reshape(-1, 32), axis=1), 32).astype(values.dtype))


@rule("atom", "red")
def _atom(machine, parts, operands):
    """atom.add and atom.max of 32 bits, in shared memory add alone."""
    *to, place, given = operands
    before, active, kind = np.zeros(len(machine.threads), np.uint32), machine.active, TYPES[parts[-1]]
    if in_shared(parts):
        assert "add" in parts and kind is np.uint32, parts
        places = address(machine, place, np.uint32)
        before[active] = machine.shared.add(places[active], machine.value(given, np.uint32)[active])
    else:
        combine = np.add if "add" in parts else np.maximum
        assert combine is np.add or "max" in parts, parts
        places = address(machine, place, np.uint64)[active]
        values, early = machine.value(given, kind)[active], ~machine.waited[active]
        before[active] = machine.memory.combine(places, values, combine, early).view(np.uint32)
    for name in to:
        machine.set(name, before)


LANE = np.arange(32)


@rule("ldmatrix")
def _ldmatrix(machine, parts, operands):
    """Lane 8i + j gives the address of row j of matrix i; lane 4r + c gets word c of row r of each, or of its
    transpose."""
    assert "b16" in parts
    names, warps = listed(operands[0]), machine.warps("ldmatrix")
    places = address(machine, operands[1], np.uint32).reshape(-1, 32)[warps, : 8 * len(names)]
    rows = machine.shared.load(places.ravel(), 16, np.repeat(32 * warps, 8 * len(names)))
    matrices = rows.view(np.uint16).reshape(len(warps), len(names), 8, 8)
    words = np.ascontiguousarray(matrices.swapaxes(2, 3) if "trans" in parts else matrices).view(np.uint32)
    for i, name in enumerate(names):
        machine.registers[name].reshape(-1, 32)[warps] = words[:, i].reshape(-1, 32)


@rule("stmatrix")
def _stmatrix(machine, parts, operands):
    """As ldmatrix, to memory: lane 4r + c has word c of row r of each matrix."""
    assert "b16" in parts and "trans" not in parts
    names, warps = listed(operands[1]), machine.warps("stmatrix")
    places = address(machine, operands[0], np.uint32).reshape(-1, 32)[warps, : 8 * len(names)]
    rows = np.ascontiguousarray(held(machine, names, np.uint32, warps)).view(np.uint8).reshape(-1, 16)
    machine.shared.store(places.ravel(), rows, np.repeat(32 * warps, 8 * len(names)))


def held(machine, names: Sequence[str], kind: type, warps: np.ndarray) -> np.ndarray:
    """[warps, registers, lanes]."""
    return np.stack([machine.value(name, kind).reshape(-1, 32)[warps] for name in names], 1)


def left_operand(pairs: np.ndarray) -> np.ndarray:
    """float64 [warps, 16, 16] of the `bf16_pairs` of registers a0 to a3: a1 and a3 are 8 rows down, a2 and a3 8 columns
    right."""
    halves = pairs.reshape(len(pairs), 2, 2, 8, 4, 2)  # right, down, row, column, half
    return halves.transpose(0, 2, 3, 1, 4, 5).reshape(len(pairs), 16, 16).astype(np.float64)


@rule("mma")
def _mma(machine, parts, operands):
    """m16n8k16 of bf16; b1 is 8 rows of K on."""
    assert parts[3:] == ["m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"], parts
    warps = machine.warps("mma")
    a, b = (bf16_pairs(held(machine, listed(operand), np.uint32, warps)) for operand in operands[1:3])
    count = len(warps)
    right = b.reshape(count, 2, 8, 4, 2).transpose(0, 1, 3, 4, 2).reshape(count, 16, 8).astype(np.float64)
    c = held(machine, listed(operands[3]), np.float32, warps).reshape(count, 2, 2, 8, 4)  # down, right, row, column
    sums = (left_operand(a) @ right).reshape(count, 2, 8, 4, 2).transpose(0, 1, 4, 2, 3) + c
    sums = sums.astype(np.float32).view(np.uint32).reshape(count, 4, 32)
    for i, name in enumerate(listed(operands[0])):
        machine.registers[name].reshape(-1, 32)[warps] = sums[:, i]
