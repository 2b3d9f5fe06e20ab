"""Which units of work a program of a persistent decode kernel does.

A unit is a sort block, a split of K and a tile of weight rows. Units are numbered in this order, tiles fastest, and a
program takes a run of them: it reads memory from one end to the other and changes rows of x only where the block does.
Runs are as long as each other or, where a block of two octets may have one that is padding, cost as much.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import OCTET
from .decode_stream import threads_layout

SHORT, LONG = gl.constexpr(3), gl.constexpr(4)
"""What a unit of one octet costs, and one of two: 1.31 times as much on an H200 (docs/h200.md)."""
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
def own_costly_units(
    num_valid,
    sorted_ids,
    program,
    BLOCK: gl.constexpr,
    PER_BLOCK: gl.constexpr,
    PROGRAMS: gl.constexpr,
    TOPK: gl.constexpr,
    CACHE: gl.constexpr = "",
):
    """`own_units` of blocks of two octets: runs that cost as much as each other."""
    blocks = gl.load(num_valid, cache_modifier=CACHE) // BLOCK
    size: gl.constexpr = 32 * gl.num_warps()
    total = blocks * 0
    for start in range(0, blocks, size):
        total += gl.sum(_costs(sorted_ids, start, blocks, BLOCK, TOPK, CACHE), 0)
    share, rest = total * PER_BLOCK // PROGRAMS, total * PER_BLOCK % PROGRAMS
    begin = program * share + gl.minimum(program, rest)
    end = begin + share + (program < rest).to(gl.int32)
    first, last, before = blocks * 0, blocks * 0, blocks * 0
    for start in range(0, blocks, size):
        costs = _costs(sorted_ids, start, blocks, BLOCK, TOPK, CACHE)
        starts = (before + gl.cumsum(costs, 0) - costs) * PER_BLOCK
        first += gl.sum(_units_before(begin - starts, costs, PER_BLOCK), 0)
        last += gl.sum(_units_before(end - starts, costs, PER_BLOCK), 0)
        before += gl.sum(costs, 0)
    return first, last


@gluon.jit
def _costs(sorted_ids, start, blocks, BLOCK: gl.constexpr, TOPK: gl.constexpr, CACHE: gl.constexpr):
    """i32 [threads]: what a unit of each block from number `start` on costs, 0 behind the last one."""
    block = start + gl.arange(0, 32 * gl.num_warps(), threads_layout(gl.num_warps()))
    exists = block < blocks
    entry = gl.load(sorted_ids + block * BLOCK + OCTET, mask=exists, other=0, cache_modifier=CACHE)
    return gl.where(exists, gl.where(entry.to(gl.uint32, bitcast=True) >> 24 == TOPK, SHORT, LONG), 0)


@gluon.jit
def _units_before(cost, costs, PER_BLOCK: gl.constexpr):
    """i32 [threads]: units of each block that begin before `cost` from its start."""
    begun = (gl.maximum(cost, 0) + costs - 1) // gl.maximum(costs, 1)
    return gl.where(costs == 0, 0, gl.minimum(begun, PER_BLOCK))


@gluon.jit
def expert_of(expert_ids, unit, PER_BLOCK: gl.constexpr, CACHE: gl.constexpr):
    """The expert of a unit."""
    return gl.load(expert_ids + unit // PER_BLOCK, cache_modifier=CACHE)


@gluon.jit
def experts_from(expert_ids, block, last, PER_BLOCK: gl.constexpr):
    """The experts of `block` and of the next one that has units before `last`, of `block` again if none has."""
    return gl.load(expert_ids + block), gl.load(expert_ids + gl.minimum(block + 1, (last - 1) // PER_BLOCK))
