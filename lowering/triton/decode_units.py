"""Which units of work a program of a persistent decode kernel does.

A unit is a sort block, a split of K and a tile of weight rows. Units are numbered in this order, tiles fastest, and a
program takes a run of them: it reads memory from one end to the other and changes rows of x only where the block does.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

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
    units = gl.load(num_valid, cache_modifier=CACHE) // BLOCK * PER_BLOCK
    share, rest = units // PROGRAMS, units % PROGRAMS
    first = program * share + gl.minimum(program, rest)
    return first, first + share + (program < rest).to(gl.int32)


@gluon.jit
def expert_of(expert_ids, unit, last, PER_BLOCK: gl.constexpr, CACHE: gl.constexpr = ""):
    """The expert of a unit, or of the last one behind it."""
    return gl.load(expert_ids + gl.minimum(unit, last - 1) // PER_BLOCK, cache_modifier=CACHE)
