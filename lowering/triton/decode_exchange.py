"""Sums of a unit that neighbouring programs of a launch share, through memory (`kernel.exchange`).

Where a run ends inside a unit, the runs behind have the unit's other records, do them first of all and put their sums
here, to which the unit's first owner then adds its own. Runs are given out from the last one to the first, so nobody
waits for a program that has not begun.

The exchange is i32 words: FLAGS of them, a run's each or counters (decode_places.py), 0 before a launch and 0 behind
it; then the sums.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import EXCHANGE_FLAGS

from .decode_stream import pushed, thread_numbers, threads_layout

FLAGS = gl.constexpr(EXCHANGE_FLAGS)
EXCHANGE = ("exchange", "*i32")
"""The operand."""
MORE, LAST = gl.constexpr(1), gl.constexpr(2)
"""Flags of a run's sums: the next run has put some of the same unit too, or these are of its last records."""


@gluon.constexpr_function
def _store_assembly(order):
    return f"{{ .reg .pred p; setp.ne.s32 p, $2, 0; @p st{order}.global.b32 [$0], $1; }}"


@gluon.jit
def _store_flag(exchange, run, value, ORDER: gl.constexpr):
    """Store `value` as a run's flag, by the first thread."""
    thread = thread_numbers(threads_layout(gl.num_warps()))
    place = (exchange + run).to(gl.int64) + thread * 0
    gl.inline_asm(_store_assembly(ORDER), "l,r,r", [place, thread * 0 + value, (thread == 0).to(gl.int32)])


@gluon.jit
def _sums_of(exchange, run, sums):
    """Where the first of a run's sums lie, those of a token in one run."""
    size: gl.constexpr = 32 * gl.num_warps()
    own = exchange + FLAGS + run * (len(sums) * size)
    return own + thread_numbers(threads_layout(gl.num_warps())), size


@gluon.jit
def run_of_program(RUNS: gl.constexpr):
    """Of RUNS. Asked for anew at each call, or addresses that follow from it would fill registers."""
    return RUNS - 1 - gl.inline_asm("mov.u32 $0, %ctaid.x;", "=r", [], gl.int32, is_pure=False)


@gluon.jit
def own_records(position, end, RECORDS: gl.constexpr):
    """Which records of the unit at record `position` a run up to record `end` has, from the unit's start: the first one
    and the one behind the last."""
    first = position % RECORDS
    return first, gl.minimum(first + end - position, RECORDS)


@gluon.jit
def put_sums(exchange, run, sums, is_last):
    """Put the sums of records of a unit with which a `run` begins, the unit's last ones or not, where its first owner
    finds them."""
    place, size = _sums_of(exchange, run, sums)
    for number in gl.static_range(len(sums)):
        gl.store(place + number * size, sums[number].to(gl.int32, bitcast=True))
    gl.barrier()
    _store_flag(exchange, run, gl.where(is_last, LAST, MORE), ".release.gpu")


@gluon.jit
def take_sums(exchange, run, sums):
    """What `run` has put, in the form of `sums`: waits for it, and clears its flag, which is given too."""
    flag = _flag(exchange, run)
    while flag == 0:
        flag = _flag(exchange, run)
    gl.barrier()
    _store_flag(exchange, run, 0, "")
    place, size = _sums_of(exchange, run, sums)
    found = (gl.load(place, cache_modifier=".cg").to(gl.float32, bitcast=True),)
    for number in gl.static_range(1, len(sums)):
        found = pushed(found, gl.load(place + number * size, cache_modifier=".cg").to(gl.float32, bitcast=True))
    return found, flag


@gluon.jit
def add_all_sums(exchange, run, sums):
    """`sums` and what the runs from `run` on have put of the same unit, in their order."""
    flag = run * 0 + MORE
    while flag == MORE:
        found, flag = take_sums(exchange, run, sums)
        added = (sums[0] + found[0],)
        for number in gl.static_range(1, len(sums)):
            added = pushed(added, sums[number] + found[number])
        sums = added
        run += 1
    return sums


@gluon.jit
def _flag(exchange, run):
    place = exchange + run
    return gl.inline_asm("ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [place.to(gl.int64)], gl.int32, is_pure=False)
