"""Which of two programs on an SM is the older one, by the counters of an exchange (decode_exchange.py).

An SM serves its older warps first, so that of two programs with as much to do one is done long before the other, which
then has the SM for itself and too few loads under way. Here a program learns its place and gets a run for it. Programs
begin in the order of their numbers. The last one of a launch clears the counters.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_stream import thread_numbers, threads_layout

MOST_SMS = gl.constexpr(512)
COUNTERS = gl.constexpr(1024)
"""Words: the lowest number of a program on each SM, counted down from PROGRAMS; runs that older programs have taken,
and younger ones; programs done."""
GATE_UP_COUNTERS, DOWN_COUNTERS = gl.constexpr(2048), gl.constexpr(3072)
"""Where they are: down begins while gate_up runs."""


@gluon.jit
def announce(exchange, FIRST: gl.constexpr, PROGRAMS: gl.constexpr):
    """The first thing that a program with a place does: where its SM's are announced.

    Another launch may announce and clear at the same time: nothing but speed may depend on it.
    """
    sm = gl.inline_asm("mov.u32 $0, %smid;", "=r", [], gl.int32, is_pure=False)
    place = exchange + FIRST + sm % MOST_SMS
    gl.atomic_max(place, PROGRAMS - gl.program_id(0), sem="relaxed")
    return place


@gluon.jit
def take_place(exchange, announced, FIRST: gl.constexpr, PROGRAMS: gl.constexpr):
    """Whether this program takes the run of a younger one (1) or of an older one (0), and the number of that: each
    number below PROGRAMS / 2 once."""
    counters = exchange + FIRST + MOST_SMS
    is_younger = (gl.load(announced, cache_modifier=".cg") > PROGRAMS - gl.program_id(0)).to(gl.int32)
    number = gl.atomic_add(counters + is_younger, 1, sem="relaxed")
    if number >= PROGRAMS // 2:  # there were no two on some SM
        is_younger = 1 - is_younger
        number = gl.atomic_add(counters + is_younger, 1, sem="relaxed")
    return is_younger, number


@gluon.jit
def leave_place(exchange, FIRST: gl.constexpr, PROGRAMS: gl.constexpr):
    """The last thing that a program with a place does."""
    counters = exchange + FIRST
    if gl.atomic_add(counters + MOST_SMS + 2, 1, sem="acq_rel") == PROGRAMS - 1:
        thread = thread_numbers(threads_layout(gl.num_warps()))
        for start in gl.static_range(0, COUNTERS, 32 * gl.num_warps()):
            gl.store(counters + start + thread, thread * 0)
