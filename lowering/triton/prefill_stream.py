"""The main loop of the prefill products on sm_90, and the ring of weight chunks that each warp keeps in registers.

A unit is a sort block and 16 * num_warps rows of the packed weight, a fragment a warp. Programs take every PROGRAMS-th
unit, tiles fastest: those at work at a time share weights and rows of x in L2. What the next unit needs is asked for
before the present one ends. A block whose second half is padding is multiplied as half a block, after all whole ones,
in a loop of its own: where a branch chooses between the two, ptxas makes every product wait for the one before.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import CHUNK_BYTES as _CHUNK_BYTES

from .decode_chunk import OCTET
from .decode_stream import CHUNK_WORDS, pushed, thread_numbers, units_a_part, words_layout, zero_sums
from .decode_x import address_of
from .prefill_chunk import (
    STEP_BYTES,
    STEP_COLUMNS,
    chunks_pending,
    finished,
    matrix_of,
    multiply_chunk,
    wait_for_products,
)
from .prefill_order import block_at, order_blocks
from .prefill_x import aligned, allocate_steps, copy_step, own_entries, rows_of, wait_for_copies

CHUNK_BYTES = gl.constexpr(_CHUNK_BYTES)
ENTRIES_TOKENS = gl.constexpr(32)
"""Tokens whose entries of the sorted list threads hold at a time when they store: all of them would fill registers."""


@gluon.constexpr_function
def record_words(chunks, stream_warps):
    """i32 of a record of the stream."""
    return (1 + chunks) * stream_warps * CHUNK_WORDS.value


@gluon.jit
def fragment_start(
    stream, expert, unit, TILES: gl.constexpr, RECORDS: gl.constexpr, CHUNKS: gl.constexpr, STREAM_WARPS: gl.constexpr
):
    """Pointers [threads]: where this lane's words of its fragment of a unit begin.

    Past the stream's last fragment it is that one: its rows are not stored.
    """
    RECORD: gl.constexpr = record_words(CHUNKS, STREAM_WARPS)
    thread = thread_numbers(gl.SliceLayout(1, words_layout(gl.num_warps())))
    tile = unit % units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    fragment = gl.minimum(tile * gl.num_warps() + thread // 32, TILES * STREAM_WARPS - 1)
    within = fragment // STREAM_WARPS * (RECORDS * RECORD) + fragment % STREAM_WARPS * CHUNK_WORDS + thread % 32 * 4
    return stream + expert.to(gl.int64) * (TILES * RECORDS * RECORD) + within


@gluon.jit
def load_chunk(start, STEP: gl.constexpr, STREAM_WARPS: gl.constexpr):
    """i32 [threads, 4]: the STEP-th chunk of the record at `start`."""
    kind: gl.constexpr = gl.distributed_type(gl.int32, [32 * gl.num_warps(), 4], words_layout(gl.num_warps()))
    assembly: gl.constexpr = _load_assembly(STEP * STREAM_WARPS * CHUNK_BYTES)
    return gl.inline_asm(assembly, "=r,=r,=r,=r,l", [start.to(gl.int64, bitcast=True)], kind)


@gluon.constexpr_function
def _load_assembly(offset):
    return f"ld.global.v4.b32 {{$0, $1, $2, $3}}, [$4 + {offset}];"


@gluon.jit
def fill_ring(start, STREAM_WARPS: gl.constexpr, RING: gl.constexpr):
    """The first RING chunks of a record."""
    ring = (load_chunk(start, 0, STREAM_WARPS),)
    for step in gl.static_range(1, RING):
        ring = pushed(ring, load_chunk(start, step, STREAM_WARPS))
    return ring


@gluon.jit
def choose(condition, these, those):
    """One of two tuples, by a scalar."""
    chosen = (gl.where(condition, these[0], those[0]),)
    for number in gl.static_range(1, len(these)):
        chosen = pushed(chosen, gl.where(condition, these[number], those[number]))
    return chosen


@gluon.jit
def begin(
    x,
    x_stride,
    sorted_ids,
    expert_ids,
    weight,
    blocks,
    BLOCK: gl.constexpr,
    COLUMNS: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
    RING: gl.constexpr,
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    ALIGNED: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """The state that a program's first unit goes on with (`multiply_unit`), how many blocks are long, their order,
    where x is, and what keeps shared memory alive."""
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    if ORDERED > 0:
        # Before x, so that its address is a constant: the other way round ptxas spills between products.
        order, longs, order_shared = order_blocks(sorted_ids, blocks, BLOCK, TOPK, ORDERED)
    shared = allocate_steps(BLOCK, STEP, STEPS)
    x_shared = aligned(address_of(shared))
    if ORDERED > 0:
        alive = (shared, order_shared)
    else:
        order, longs, alive = x_shared, blocks, (shared, shared)
    first = gl.program_id(0)
    block = block_at(order, first // UNITS, blocks, ORDERED)
    next_block = block_at(order, (first + PROGRAMS) // UNITS, blocks, ORDERED)
    expert, next_expert = gl.load(expert_ids + block), gl.load(expert_ids + next_block)
    start = fragment_start(weight, expert, first, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    ring = fill_ring(start, STREAM_WARPS, RING)
    rows = rows_of(own_entries(sorted_ids, block, True, BLOCK, TOPK), STAGE, TOPK)
    for step in gl.static_range(AHEAD):
        copy_step(x_shared + step * (BLOCK * STEP * 2), x, x_stride, rows, step * STEP, COLUMNS, BLOCK, STEP, ALIGNED)
    return (0, rows, ring, start, block, expert, next_block, next_expert), longs, order, x_shared, alive


@gluon.jit
def units_behind(first, units, PROGRAMS: gl.constexpr):
    """The first unit of the program that begins with unit `first` which is not below `units`."""
    return first + gl.maximum(units - first + PROGRAMS - 1, 0) // PROGRAMS * PROGRAMS


@gluon.jit
def multiply_unit(
    unit,
    blocks,
    state,
    order,
    x_shared,
    x,
    x_stride,
    sorted_ids,
    expert_ids,
    weight,
    TOKENS: gl.constexpr,
    BLOCK: gl.constexpr,
    COLUMNS: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
    RING: gl.constexpr,
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    ALIGNED: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """The sums of this thread, as `decode_stream.zero_sums` has them, of the first TOKENS of a block, and the state
    that the next unit goes on with.

    `state`: how many steps of STEP columns of x all units before have had, `rows_of` this block, the ring, where this
    unit's weights start, its block and expert, those of the next unit. Up to AHEAD steps further x is on its way, in a
    ring of STEPS. Behind the last unit nothing is read that was not.
    """
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    step, rows, ring, start, _, _, next_block, next_expert = state
    following = unit + PROGRAMS
    later_block = block_at(order, (following + PROGRAMS) // UNITS, blocks, ORDERED)
    later_expert = gl.load(expert_ids + later_block)  # so early that nobody waits for it
    next_entries = own_entries(sorted_ids, next_block, following < blocks * UNITS, BLOCK, TOPK)
    next_start = fragment_start(weight, next_expert, following, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    RECORD: gl.constexpr = record_words(CHUNKS, STREAM_WARPS)
    STEP_CHUNKS: gl.constexpr = STEP // STEP_COLUMNS
    BYTES: gl.constexpr = BLOCK * STEP * 2
    sums = zero_sums(TOKENS // OCTET)
    for record in range(RECORDS):
        is_last = record + 1 == RECORDS
        after = gl.where(is_last, next_start, start + RECORD)
        scales = ring[0]
        for chunk in gl.static_range(-1, CHUNKS):
            words = ring[0]
            if chunk + 1 + RING <= CHUNKS:
                fresh = load_chunk(start, chunk + 1 + RING, STREAM_WARPS)
            else:
                fresh = load_chunk(after, chunk + RING - CHUNKS, STREAM_WARPS)
            ring = pushed(ring[1:], fresh)
            if chunk >= 0:
                if chunk % STEP_CHUNKS == 0:
                    column = (record * CHUNKS + chunk + AHEAD * STEP_CHUNKS) * STEP_COLUMNS
                    if chunk + AHEAD * STEP_CHUNKS == CHUNKS:
                        rows = choose(is_last, rows_of(next_entries, STAGE, TOPK), rows)
                    if chunk + AHEAD * STEP_CHUNKS >= CHUNKS:
                        column = gl.where(is_last, (chunk + AHEAD * STEP_CHUNKS - CHUNKS) * STEP_COLUMNS, column)
                    # After this no warp multiplies the step before the last one either: STEPS is AHEAD + 2 or more.
                    if chunks_pending(len(sums)) >= STEP_CHUNKS:
                        wait_for_products(STEP_CHUNKS)  # else the last step's own chunks have waited
                    wait_for_copies(AHEAD - 1)
                    free = x_shared + (step + AHEAD) % STEPS * BYTES
                    copy_step(free, x, x_stride, rows, column, COLUMNS, BLOCK, STEP, ALIGNED)
                    matrix = matrix_of(x_shared + step % STEPS * BYTES)
                    step += 1
                here = matrix + chunk % STEP_CHUNKS * (BLOCK * STEP_BYTES // 16)
                sums = multiply_chunk(sums, words, scales, here, chunk)
        start = after
    return finished(sums), (step, rows, ring, next_start, next_block, next_expert, later_block, later_expert)
