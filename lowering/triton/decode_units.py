"""Which units of work a program of a persistent decode kernel does.

A unit is a sort block, a split of K and a tile of weight rows. Units are numbered in this order, tiles fastest, and a
program takes a run of them: it reads memory from one end to the other and changes rows of x only where the block does.
Runs are as long as each other or, where a block of two octets may have one that is padding, cost as much. Those of
gate_up, whose units have all of K, are counted in records and may end inside a unit (decode_exchange.py).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import OCTET
from .decode_places import take_place
from .decode_stream import threads_layout

SHORT, LONG = gl.constexpr(5), gl.constexpr(6)
"""What a record costs with one octet, and with two: 1.31 times as much on an H200 (docs/h200.md)."""
OLDER, YOUNGER = gl.constexpr(5), gl.constexpr(4)
"""What two programs of an SM do in the same time, the one that began first and the other: an SM serves older warps
first (docs/h200.md)."""
BESIDE_L1 = gl.constexpr(".cg")
"""Reads memory past the SM's own cache, which may hold what lay there before."""


@gluon.jit
def own_units(
    num_valid,
    program,
    BLOCK: gl.constexpr,
    PER_BLOCK: gl.constexpr,
    PROGRAMS: gl.constexpr,
    CACHE: gl.constexpr = "",
):
    """The first unit of the program numbered `program` and the one behind its last. CACHE: how memory is read."""
    return run_of(gl.load(num_valid, cache_modifier=CACHE) // BLOCK * PER_BLOCK, program, PROGRAMS)


@gluon.jit
def run_of(units, program, PROGRAMS: gl.constexpr):
    """The first of `units` of the program numbered `program` and the one behind its last."""
    share, rest = units // PROGRAMS, units % PROGRAMS
    first = program * share + gl.minimum(program, rest)
    return first, first + share + (program < rest).to(gl.int32)


@gluon.jit
def shared_run_of(units, program, RECORDS: gl.constexpr, PROGRAMS: gl.constexpr):
    """The first of the records of `units` of the program numbered `program` and the one behind its last.

    Runs may begin and end inside a unit. Of so few units that programs are left over, as many programs as can share
    each. Runs that others wait for go to programs from the last one to the first, because of decode_exchange.py.
    """
    if units < PROGRAMS:
        parts = gl.minimum(PROGRAMS // gl.maximum(units, 1), RECORDS)
        run = gl.where(parts > 1, units * parts - 1 - program, program)
        start, part = run // parts * RECORDS, run % parts
        first = start + part * RECORDS // parts
        last = gl.where(program < units * parts, start + (part + 1) * RECORDS // parts, first)
    else:
        first, last = run_of(units * RECORDS, PROGRAMS - 1 - program, PROGRAMS)
    return first, last


@gluon.jit
def own_costly_records(
    num_valid,
    sorted_ids,
    exchange,
    announced,
    COUNTERS: gl.constexpr,
    BLOCK: gl.constexpr,
    PER_BLOCK: gl.constexpr,
    RECORDS: gl.constexpr,
    PROGRAMS: gl.constexpr,
    PAIRED: gl.constexpr,
    TOPK: gl.constexpr,
    CACHE: gl.constexpr = "",
):
    """The same of blocks of two octets, of PER_BLOCK units each, by what their records cost.

    PAIRED: the older one of two programs on an SM gets more (decode_places.py). Runs then are whole units: nobody may
    wait for a program that another one has to make room for.
    """
    blocks = gl.load(num_valid, cache_modifier=CACHE) // BLOCK
    size: gl.constexpr = 32 * gl.num_warps()
    total = blocks * 0
    for start in range(0, blocks, size):
        total += gl.sum(_costs(sorted_ids, start, blocks, BLOCK, TOPK, CACHE), 0)
    STEPS: gl.constexpr = PER_BLOCK * (1 if PAIRED else RECORDS)
    if PAIRED:
        is_younger, number = take_place(exchange, announced, COUNTERS, PROGRAMS)
        begin, end = run_of(total * STEPS, number, PROGRAMS // 2)
        middle = begin + (end - begin) * OLDER // (OLDER + YOUNGER)
        begin, end = gl.where(is_younger > 0, middle, begin), gl.where(is_younger > 0, end, middle)
    else:
        begin, end = run_of(total * STEPS, PROGRAMS - 1 - gl.program_id(0), PROGRAMS)
    first, last, before = blocks * 0, blocks * 0, blocks * 0
    for start in range(0, blocks, size):
        costs = _costs(sorted_ids, start, blocks, BLOCK, TOPK, CACHE)
        starts = (before + gl.cumsum(costs, 0) - costs) * STEPS
        first += gl.sum(_steps_before(begin - starts, costs, STEPS), 0)
        last += gl.sum(_steps_before(end - starts, costs, STEPS), 0)
        before += gl.sum(costs, 0)
    if PAIRED:
        first, last = first * RECORDS, last * RECORDS
    elif total * PER_BLOCK < PROGRAMS * LONG:
        # A run may be shorter than a unit: it then has the units that begin in it.
        first, last = (first + RECORDS - 1) // RECORDS * RECORDS, (last + RECORDS - 1) // RECORDS * RECORDS
    return first, last


@gluon.jit
def _costs(sorted_ids, start, blocks, BLOCK: gl.constexpr, TOPK: gl.constexpr, CACHE: gl.constexpr):
    """i32 [threads]: what a record of each block from number `start` on costs, 0 behind the last one."""
    block = start + gl.arange(0, 32 * gl.num_warps(), threads_layout(gl.num_warps()))
    exists = block < blocks
    entry = gl.load(sorted_ids + block * BLOCK + OCTET, mask=exists, other=0, cache_modifier=CACHE)
    return gl.where(exists, gl.where(entry.to(gl.uint32, bitcast=True) >> 24 == TOPK, SHORT, LONG), 0)


@gluon.jit
def _steps_before(cost, costs, STEPS: gl.constexpr):
    """i32 [threads]: of each block's STEPS units, or records, those that begin before `cost` from its start."""
    begun = (gl.maximum(cost, 0) + costs - 1) // gl.maximum(costs, 1)
    return gl.where(costs == 0, 0, gl.minimum(begun, STEPS))


@gluon.jit
def expert_of(expert_ids, unit, PER_BLOCK: gl.constexpr, CACHE: gl.constexpr):
    """The expert of a unit."""
    return gl.load(expert_ids + unit // PER_BLOCK, cache_modifier=CACHE)


@gluon.jit
def experts_from(expert_ids, block, last, PER_BLOCK: gl.constexpr):
    """The experts of `block` and of the next one that has units before `last`, of `block` again if none has."""
    return gl.load(expert_ids + block), gl.load(expert_ids + gl.minimum(block + 1, (last - 1) // PER_BLOCK))
