"""x of a sort block in shared memory, as the prefill products read it: a ring of steps of a few columns.

64 columns of a step are bf16 [BLOCK tokens, 64], 128 bytes a token, as wgmma reads a K-major matrix of that swizzle:
the 16 bytes number p of token t lie at place p ^ (t % 8) of its row. A thread moves piece thread % 8 of some tokens.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import SWIZZLE_BYTES

from .decode_stream import pushed, thread_numbers
from .decode_x import PIECE, PIECE_BYTES, pieces_layout
from .prefill_chunk import PIECES, STEP_BYTES, STEP_COLUMNS

ALIGNMENT = gl.constexpr(SWIZZLE_BYTES)


@gluon.jit
def allocate_steps(BLOCK: gl.constexpr, STEP: gl.constexpr, STEPS: gl.constexpr):
    """Shared memory for STEPS steps, and for `aligned` to move them."""
    words: gl.constexpr = STEPS * BLOCK * STEP // 2
    shape: gl.constexpr = [words // 32 + ALIGNMENT // 128, 32]
    return gl.allocate_shared_memory(gl.int32, shape, gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def aligned(address):
    """The first place from `address` on where a step may begin."""
    return (address + (ALIGNMENT - 1)) & -ALIGNMENT


@gluon.constexpr_function
def tokens_a_pass(warps):
    """Tokens that all threads move pieces of at once."""
    return 32 * warps // PIECES.value


@gluon.jit
def own_entries(sorted_ids, block, exists, BLOCK: gl.constexpr, TOPK: gl.constexpr):
    """i32 [threads]: the entry of each token that this thread moves, padding where no such block `exists`."""
    step: gl.constexpr = tokens_a_pass(gl.num_warps())
    token = thread_numbers(gl.SliceLayout(1, pieces_layout(gl.num_warps(), PIECE))) // PIECES
    exists = exists & (token < BLOCK)
    place = block * BLOCK + token
    entries = (gl.load(sorted_ids + place, mask=exists, other=TOPK << 24),)
    for first in gl.static_range(step, BLOCK, step):
        entries = pushed(entries, gl.load(sorted_ids + place + first, mask=exists, other=TOPK << 24))
    return entries


@gluon.jit
def rows_of(entries, STAGE: gl.constexpr, TOPK: gl.constexpr):
    """i32 [threads]: the row of x for each of `own_entries`, -1 for padding; STAGE as in `source_rows`."""
    rows = (_row_of(entries[0], STAGE, TOPK),)
    for number in gl.static_range(1, len(entries)):
        rows = pushed(rows, _row_of(entries[number], STAGE, TOPK))
    return rows


@gluon.jit
def _row_of(entry, STAGE: gl.constexpr, TOPK: gl.constexpr):
    slot, token = entry.to(gl.uint32, bitcast=True) >> 24, entry & 0xFFFFFF
    row = token if STAGE == 1 else token * TOPK + slot.to(gl.int32)
    return gl.where(slot != TOPK, row, -1)


@gluon.jit
def copy_step(
    place,
    x,
    x_stride,
    rows,
    column,
    COLUMNS: gl.constexpr,
    BLOCK: gl.constexpr,
    STEP: gl.constexpr,
    ALIGNED: gl.constexpr,
):
    """Copy STEP columns from `column` on of bf16 `rows` to the step at `place`; zeros in padding and from COLUMNS on.

    The copies are under way on return. Where x is not ALIGNED to 16 bytes they go through registers.
    """
    layout: gl.constexpr = pieces_layout(gl.num_warps(), PIECE)
    thread = thread_numbers(gl.SliceLayout(1, layout))
    piece, token = thread % PIECES, thread // PIECES
    to = place + token * STEP_BYTES + ((piece ^ (token % 8)) * PIECE_BYTES)
    for number in gl.static_range(len(rows)):
        source = x + gl.maximum(rows[number], 0).to(gl.int64) * x_stride
        for part in gl.static_range(0, STEP, STEP_COLUMNS):
            own = column + part + piece * PIECE
            inside = (rows[number] >= 0) & (own < COLUMNS)  # whole pieces: COLUMNS is a multiple of 32
            offset = part * BLOCK * 2 + number * (tokens_a_pass(gl.num_warps()) * STEP_BYTES)
            from_ = source + gl.where(own < COLUMNS, own, 0)
            if ALIGNED:
                gl.inline_asm(
                    _copy_assembly(BLOCK, gl.num_warps()),
                    "r,l,r,r",
                    [to + offset, from_.to(gl.int64, bitcast=True), gl.where(inside, PIECE_BYTES, 0), token],
                )
            else:
                places = from_[:, None] + gl.arange(0, PIECE, gl.SliceLayout(0, layout))[None, :]
                values = gl.load(places, mask=inside[:, None], other=0.0)
                gl.inline_asm(
                    "{ .reg .b32 v<4>; .reg .pred p; setp.lt.s32 p, $1, $2;"
                    "mov.b32 v0, {$3, $4}; mov.b32 v1, {$5, $6}; mov.b32 v2, {$7, $8}; mov.b32 v3, {$9, $10};"
                    "@p st.shared.v4.b32 [$0], {v0, v1, v2, v3}; }",
                    "r,r,r,h,h,h,h,h,h,h,h",
                    [to + offset, token, BLOCK, values.to(gl.int16, bitcast=True)],
                )
    gl.inline_asm("cp.async.commit_group;")


@gluon.constexpr_function
def _copy_assembly(block, warps):
    """PTX for 16 bytes from $1 to $0, of which $2 are copied and the rest is zero. Only where there are more threads
    than pieces it asks for the token $3: a branch between products can make the assembler wait for each of them."""
    copy = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
    return copy if block >= tokens_a_pass(warps) else f"{{ .reg .pred p; setp.lt.s32 p, $3, {block}; @p {copy} }}"


@gluon.jit
def wait_for_copies(PENDING: gl.constexpr):
    """Wait for the copies of all threads, except those of the latest PENDING steps, and let wgmma see them."""
    gl.inline_asm(_waiting(PENDING))
    gl.barrier()


@gluon.constexpr_function
def _waiting(pending):
    return f"cp.async.wait_group {pending}; fence.proxy.async.shared::cta;"
