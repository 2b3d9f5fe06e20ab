"""The main loop of the prefill products on sm_90, and the ring of weight chunks that each warp keeps in registers.

A unit is a sort block and 16 * num_warps rows of the packed weight, a fragment a warp. Programs take every PROGRAMS-th
unit, tiles fastest: those at work at a time share weights and rows of x in L2. What the next unit needs is asked for
before the present one ends. A block is multiplied as long as what is in it (`prefill_order.py`), each length in a
loop of its own: where a branch chooses between two, ptxas makes every product wait for the one before.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import CHUNK_BYTES as _CHUNK_BYTES

from .decode_stream import CHUNK_WORDS, own_tokens, pushed, thread_numbers, units_a_part, words_layout
from .decode_x import address_of
from .prefill_chunk import (
    STEP_COLUMNS,
    chunks_pending,
    declare_sums,
    matrix_of,
    multiply_chunk,
    wait_for_products,
    zero_sums,
)
from .prefill_order import BLOCK_BYTES, block_at, order_blocks
from .prefill_x import (
    aligned,
    allocate_steps,
    copy_step,
    get_rows,
    no_rows,
    put_rows,
    rows_of,
    step_bytes,
    wait_for_copies,
)
from .shared_words import WORD

CHUNK_BYTES = gl.constexpr(_CHUNK_BYTES)


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
    ORDERED: gl.constexpr,
):
    """The state that a program's first unit goes on with (`multiply_unit`), where the blocks of each length end, their
    order, where x is, and what keeps shared memory alive."""
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    declare_sums(BLOCK)
    # Before x, so that its address is a constant: the other way round ptxas spills between products.
    lists = gl.allocate_shared_memory(
        gl.int32, [lists_bytes(BLOCK, ORDERED) // 128, 32], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    order = address_of(lists)
    table = rows_table(order, ORDERED)
    ends = order_blocks(order, sorted_ids, expert_ids, blocks, BLOCK, TOPK, ORDERED)
    gl.barrier()
    first = gl.program_id(0)
    block, expert = block_at(order, expert_ids, first // UNITS, blocks, ORDERED)
    start = fragment_start(weight, expert, first, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    ring = fill_ring(start, STREAM_WARPS, RING)
    put_rows(table, rows_of(sorted_ids, block, True, BLOCK, STAGE, TOPK), 1, BLOCK)
    shared = allocate_steps(BLOCK, STEP, STEPS)
    x_shared = aligned(address_of(shared))
    gl.barrier()
    rows = get_rows(table, no_rows(BLOCK), 1, BLOCK)
    for step in gl.static_range(AHEAD):
        copy_step(
            x_shared + step * step_bytes(BLOCK, STEP, gl.num_warps()),
            x,
            x_stride,
            rows,
            step * STEP,
            BLOCK,
            COLUMNS,
            RECORDS * CHUNKS * STEP_COLUMNS,
            BLOCK,
            STEP,
        )
    return (0, rows, ring, start), ends, order, x_shared, (lists, shared)


@gluon.constexpr_function
def lists_bytes(block, ordered):
    """Of the order, and of a table of the rows of a block, a multiple of 128."""
    return -(-(BLOCK_BYTES.value * ordered + WORD.value * block) // 128) * 128


@gluon.jit
def rows_table(order, ORDERED: gl.constexpr):
    """Behind the `order`: where the table of the rows of a block is."""
    return order + ORDERED * BLOCK_BYTES


@gluon.jit
def first_unit(ends, NUMBER: gl.constexpr, UNITS: gl.constexpr, PROGRAMS: gl.constexpr):
    """This program's first unit of blocks of length number NUMBER."""
    first = gl.program_id(0)
    if NUMBER > 0:
        first += gl.maximum(ends[NUMBER - 1] * UNITS - first + PROGRAMS - 1, 0) // PROGRAMS * PROGRAMS
    return first


@gluon.constexpr_function
def part_of(tokens):
    """Tokens whose sums threads hold apart at a time when they store: more would fill registers."""
    return next(part for part in (32, 16, 8) if tokens % part == 0)


@gluon.jit
def own_part(sorted_ids, sorted_weights, first, PART: gl.constexpr):
    """`own_tokens` of PART tokens from row `first` of the sorted list on: entries, and routing weights if there are."""
    entries = own_tokens(sorted_ids + first, 0, PART)
    shares = entries
    if sorted_weights is not None:
        shares = own_tokens(sorted_weights + first, 0, PART)
    return entries, shares


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
    ORDERED: gl.constexpr,
):
    """Leave the sums of the first TOKENS of a block in their registers (`prefill_chunk.py`) when all products are over;
    the state that the next unit goes on with.

    `state`: how many steps of STEP columns of x all units before have had, the rows of this block, the ring, where this
    unit's weights start. Up to AHEAD steps further x is on its way, in a ring of STEPS. Behind the last unit nothing is
    read that was not.
    """
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    step, rows, ring, start = state
    following = unit + PROGRAMS
    next_block, next_expert = block_at(order, expert_ids, following // UNITS, blocks, ORDERED)
    next_rows = rows_of(sorted_ids, next_block, following < blocks * UNITS, BLOCK, STAGE, TOPK)
    table = rows_table(order, ORDERED)
    next_start = fragment_start(weight, next_expert, following, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    RECORD: gl.constexpr = record_words(CHUNKS, STREAM_WARPS)
    STEP_CHUNKS: gl.constexpr = STEP // STEP_COLUMNS
    PADDED: gl.constexpr = RECORDS * CHUNKS * STEP_COLUMNS
    BYTES: gl.constexpr = step_bytes(BLOCK, STEP, gl.num_warps())
    if AHEAD == 1 or RECORDS == 1:
        gl.barrier()  # else there was one since the table was read
    zero_sums(TOKENS)
    for record in range(RECORDS):
        is_last = record + 1 == RECORDS
        after = gl.where(is_last, next_start, start + RECORD)
        put_rows(table, next_rows, is_last.to(gl.int32), BLOCK)
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
                    if chunk + AHEAD * STEP_CHUNKS >= CHUNKS:
                        column = gl.where(is_last, (chunk + AHEAD * STEP_CHUNKS - CHUNKS) * STEP_COLUMNS, column)
                    # After this no warp multiplies the step before the last one either: STEPS is AHEAD + 2 or more.
                    if chunks_pending(TOKENS) >= STEP_CHUNKS:
                        wait_for_products(STEP_CHUNKS)  # else the last step's own chunks have waited
                    wait_for_copies(AHEAD - 1)
                    if chunk + AHEAD * STEP_CHUNKS == CHUNKS:
                        rows = get_rows(table, rows, is_last.to(gl.int32), BLOCK)
                    free = x_shared + (step + AHEAD) % STEPS * BYTES
                    copy_step(free, x, x_stride, rows, column, TOKENS, COLUMNS, PADDED, BLOCK, STEP)
                    matrix = matrix_of(x_shared + step % STEPS * BYTES)
                    step += 1
                here = matrix + chunk % STEP_CHUNKS * (BYTES // STEP_CHUNKS // 16)
                multiply_chunk(words, scales, here, chunk, TOKENS)
        start = after
    return step, rows, ring, next_start
