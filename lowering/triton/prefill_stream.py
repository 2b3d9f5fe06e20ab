"""The units of the prefill products on sm_90: what surrounds the loop of `prefill_loop.py`.

A unit is a sort block and 16 * num_warps rows of the packed weight, a fragment a warp. Programs take every PROGRAMS-th
unit, tiles fastest: those at work at a time share weights and rows of x in L2. What the next unit needs is asked for
before the present one ends. A block is multiplied as long as what is in it (`prefill_order.py`).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_stream import CHUNK_WORDS, thread_numbers, threads_layout, units_a_part
from .decode_x import address_of
from .prefill_chunk import tokens_layout
from .prefill_loop import (
    BEGIN_CONSTRAINTS,
    UNIT_CONSTRAINTS,
    begin_assembly,
    declarations,
    ring_of,
    unit_assembly,
)
from .prefill_order import BLOCK_BYTES, block_at, length_of, order_blocks
from .prefill_x import aligned, allocate_steps, row_of
from .shared_words import WORD, put_words


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
    thread = thread_numbers(threads_layout(gl.num_warps()))
    tile = unit % units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    fragment = gl.minimum(tile * gl.num_warps() + thread // 32, TILES * STREAM_WARPS - 1)
    within = fragment // STREAM_WARPS * (RECORDS * RECORD) + fragment % STREAM_WARPS * CHUNK_WORDS + thread % 32 * 4
    return stream + expert.to(gl.int64) * (TILES * RECORDS * RECORD) + within


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
    SHORT_RING: gl.constexpr,
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """Ask for what a program's first unit needs: the order of the blocks, where x is, and what keeps shared memory
    alive."""
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    gl.inline_asm(declarations(BLOCK, max(RING, SHORT_RING), gl.num_warps()))
    # Before x, so that its address is a constant: the other way round ptxas spills between products.
    lists = gl.allocate_shared_memory(
        gl.int32, [lists_bytes(BLOCK, ORDERED) // 128, 32], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    order = address_of(lists)
    table = rows_table(order, ORDERED)
    order_blocks(order, sorted_ids, expert_ids, blocks, BLOCK, TOPK, ORDERED)
    gl.barrier()
    first = gl.program_id(0)
    block, expert, _ = block_at(order, expert_ids, first // UNITS, blocks, ORDERED)
    start = fragment_start(weight, expert, first, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    thread = thread_numbers(threads_layout(gl.num_warps()))
    row = row_of(sorted_ids, block, True, BLOCK, STAGE, TOPK)
    put_words(table + thread * WORD, row, (thread < BLOCK).to(gl.int32), 1)
    shared = allocate_steps(BLOCK, STEP, STEPS)
    x_shared = aligned(address_of(shared))
    gl.barrier()
    address, x_address = start.to(gl.int64, bitcast=True), x.to(gl.int64, bitcast=True)
    gl.inline_asm(
        begin_assembly(
            BLOCK,
            COLUMNS,
            RECORDS,
            CHUNKS,
            STREAM_WARPS,
            ring_of(length_of(BLOCK, 0), RING, SHORT_RING),
            STEP,
            STEPS,
            AHEAD,
            gl.num_warps(),
        ),
        BEGIN_CONSTRAINTS,
        [address, x_address, gl.to_tensor(x_stride * 2).to(gl.int32), x_shared, table],
    )
    return order, x_shared, (lists, shared)


@gluon.constexpr_function
def lists_bytes(block, ordered):
    """Of the order, and of a table of the rows of a block, a multiple of 128."""
    return -(-(BLOCK_BYTES.value * ordered + WORD.value * block) // 128) * 128


@gluon.jit
def rows_table(order, ORDERED: gl.constexpr):
    """Behind the `order`: where the table of the rows of a block is."""
    return order + ORDERED * BLOCK_BYTES


PARTS = (32, 16, 8)
"""Tokens whose sums threads hold apart at a time when they store: more would fill registers."""


@gluon.constexpr_function
def _parts(tokens):
    """(first token, tokens) of each part."""
    found, first = [], 0
    while first < tokens:
        found.append((first, next(part for part in PARTS if first + part <= tokens)))
        first = sum(found[-1])
    return found


@gluon.constexpr_function
def parts(tokens):
    """How many parts there are of so many tokens, a multiple of 8."""
    return len(_parts(tokens))


@gluon.constexpr_function
def part_start(tokens, number):
    """The first token of part `number`."""
    return _parts(tokens)[number][0]


@gluon.constexpr_function
def part_of(tokens, number):
    """How many tokens part `number` has."""
    return _parts(tokens)[number][1]


@gluon.jit
def of_part(value, PART: gl.constexpr):
    """[threads, 1] of a value of each thread, beside a part of so many tokens (`tokens_layout`)."""
    return gl.convert_layout(value, gl.SliceLayout(1, tokens_layout(gl.num_warps(), PART)))[:, None]


@gluon.jit
def own_part(sorted_ids, sorted_weights, first, PART: gl.constexpr):
    """[threads, PART / 4] (`tokens_layout`) of PART tokens from row `first` of the sorted list on: entries, and routing
    weights if there are."""
    layout: gl.constexpr = tokens_layout(gl.num_warps(), PART)
    number = gl.arange(0, PART // 4, gl.SliceLayout(0, layout))
    lane = thread_numbers(gl.SliceLayout(1, layout)) % 4
    places = first + (lane * 2)[:, None] + (number // 2 * 8 + number % 2)[None, :]
    entries = gl.load(sorted_ids + places)
    shares = entries
    if sorted_weights is not None:
        shares = gl.load(sorted_weights + places)
    return entries, shares


@gluon.jit
def multiply_unit(
    unit,
    blocks,
    length,
    order,
    x_shared,
    x,
    x_stride,
    sorted_ids,
    expert_ids,
    weight,
    BLOCK: gl.constexpr,
    COLUMNS: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
    RING: gl.constexpr,
    SHORT_RING: gl.constexpr,
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """Leave the sums of a unit in their registers (`prefill_chunk.py`), and what the next one goes on with in those of
    `prefill_loop.py`.

    Up to AHEAD steps of STEP columns further x is on its way, in a ring of STEPS. Behind the last unit nothing is read
    that was not.
    """
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    following = unit + PROGRAMS
    next_block, next_expert, _ = block_at(order, expert_ids, following // UNITS, blocks, ORDERED)
    next_row = row_of(sorted_ids, next_block, following < blocks * UNITS, BLOCK, STAGE, TOPK)
    next_start = fragment_start(weight, next_expert, following, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    table = rows_table(order, ORDERED)
    if AHEAD == 1 or RECORDS == 1:
        gl.barrier()  # else there was one since the table was read
    x_address, stride = x.to(gl.int64, bitcast=True), gl.to_tensor(x_stride * 2).to(gl.int32)
    gl.inline_asm(
        unit_assembly(
            BLOCK, COLUMNS, RECORDS, CHUNKS, STREAM_WARPS, RING, SHORT_RING, STEP, STEPS, AHEAD, gl.num_warps(),
            ORDERED,
        ),
        UNIT_CONSTRAINTS,
        [next_start.to(gl.int64, bitcast=True), x_address, stride, x_shared, table, next_row, length],
    )  # fmt: skip
