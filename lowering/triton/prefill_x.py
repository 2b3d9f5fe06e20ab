"""x of a sort block in shared memory, as the prefill products read it: a ring of steps of a few columns.

64 columns of a step are bf16 [`room` for tokens, 64], 128 bytes a token, as wgmma reads a K-major matrix of that
swizzle: the 16 bytes number p of token t lie at place p ^ (t % 8) of its row. A thread moves piece thread % 8 of some
tokens.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import SWIZZLE_BYTES

from .decode_stream import pushed, thread_numbers, threads_layout
from .decode_x import PIECE, PIECE_BYTES, pieces_layout
from .prefill_chunk import PIECES, STEP_BYTES, STEP_COLUMNS
from .shared_words import WORD, put_words

ALIGNMENT = gl.constexpr(SWIZZLE_BYTES)


@gluon.jit
def allocate_steps(BLOCK: gl.constexpr, STEP: gl.constexpr, STEPS: gl.constexpr):
    """Shared memory for STEPS steps, and for `aligned` to move them."""
    words: gl.constexpr = STEPS * step_bytes(BLOCK, STEP, gl.num_warps()) // 4
    shape: gl.constexpr = [words // 32 + ALIGNMENT // 128, 32]
    return gl.allocate_shared_memory(gl.int32, shape, gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.constexpr_function
def room(block, warps):
    """Tokens that a step has room for: so many that all threads move as many pieces. A branch between products, for
    those that would not, can make the assembler wait for each of them."""
    return -(-block // tokens_a_pass(warps)) * tokens_a_pass(warps)


@gluon.constexpr_function
def step_bytes(block, step, warps):
    """Of a step of `step` columns."""
    return room(block, warps) * step * 2


@gluon.jit
def aligned(address):
    """The first place from `address` on where a step may begin."""
    return (address + (ALIGNMENT - 1)) & -ALIGNMENT


@gluon.constexpr_function
def tokens_a_pass(warps):
    """Tokens that all threads move pieces of at once."""
    return 32 * warps // PIECES.value


@gluon.jit
def rows_of(sorted_ids, block, exists, BLOCK: gl.constexpr, STAGE: gl.constexpr, TOPK: gl.constexpr):
    """i32 [threads] each: the rows of x of the tokens of `block`, one a thread; -1 for padding, and where no such block
    `exists`. STAGE as in `source_rows`."""
    size: gl.constexpr = 32 * gl.num_warps()
    rows = (_row_of(sorted_ids, block, exists, 0, BLOCK, STAGE, TOPK),)
    for first in gl.static_range(size, BLOCK, size):
        rows = pushed(rows, _row_of(sorted_ids, block, exists, first, BLOCK, STAGE, TOPK))
    return rows


@gluon.jit
def _row_of(sorted_ids, block, exists, first, BLOCK: gl.constexpr, STAGE: gl.constexpr, TOPK: gl.constexpr):
    own = first + thread_numbers(threads_layout(gl.num_warps()))
    entry = gl.load(sorted_ids + block * BLOCK + own, mask=exists & (own < BLOCK), other=TOPK << 24)
    slot, token = entry.to(gl.uint32, bitcast=True) >> 24, entry & 0xFFFFFF
    row = token if STAGE == 1 else token * TOPK + slot.to(gl.int32)
    return gl.where(slot != TOPK, row, -1)


@gluon.jit
def put_rows(table, rows, where, BLOCK: gl.constexpr):
    """Store `rows_of` a block to shared memory at `table`, where scalar `where` is not 0."""
    for number in gl.static_range(len(rows)):
        own = number * (32 * gl.num_warps()) + thread_numbers(threads_layout(gl.num_warps()))
        put_words(table + own * WORD, rows[number], where * (own < BLOCK).to(gl.int32), 1)


@gluon.jit
def no_rows(BLOCK: gl.constexpr):
    """i32 [threads] each: -1 for every token that a thread moves pieces of."""
    kind: gl.constexpr = gl.SliceLayout(1, pieces_layout(gl.num_warps(), PIECE))
    rows = (gl.full([32 * gl.num_warps()], -1, gl.int32, kind),)
    for _ in gl.static_range(tokens_a_pass(gl.num_warps()), BLOCK, tokens_a_pass(gl.num_warps())):
        rows = pushed(rows, rows[0])
    return rows


@gluon.jit
def get_rows(table, rows, where, BLOCK: gl.constexpr):
    """For the tokens that a thread moves pieces of: where scalar `where` is not 0 what `put_rows` stored, or `rows`."""
    token = thread_numbers(gl.SliceLayout(1, pieces_layout(gl.num_warps(), PIECE))) // PIECES
    found = (_row_at(table, token, rows[0], where, BLOCK),)
    for number in gl.static_range(1, len(rows)):
        found = pushed(
            found, _row_at(table, number * tokens_a_pass(gl.num_warps()) + token, rows[number], where, BLOCK)
        )
    return found


@gluon.jit
def _row_at(table, token, row, where, BLOCK: gl.constexpr):
    kind: gl.constexpr = row.type
    return gl.inline_asm(
        "{ .reg .pred p; setp.ne.s32 p, $3, 0; mov.b32 $0, $2; @p ld.shared.b32 $0, [$1]; }",
        "=&r,r,r,r",
        [table + token * WORD, row, where * (token < BLOCK).to(gl.int32)],
        kind,
        is_pure=False,
    )


@gluon.jit
def copy_step(
    place,
    x,
    x_stride,
    rows,
    column,
    TOKENS: gl.constexpr,
    COLUMNS: gl.constexpr,
    PADDED: gl.constexpr,
    BLOCK: gl.constexpr,
    STEP: gl.constexpr,
):
    """Copy STEP columns from `column` on of bf16 `rows` to the step at `place`; zeros in padding and from COLUMNS on.

    PADDED: columns of all steps. Rows behind the first TOKENS need not be there: no later block has more of them in
    their order.

    The copies are under way on return. Rows lie on multiples of 16 bytes, less than 4 GiB apart (runtime/arguments.py).
    """
    layout: gl.constexpr = pieces_layout(gl.num_warps(), PIECE)
    thread = thread_numbers(gl.SliceLayout(1, layout))
    piece, token = thread % PIECES, thread // PIECES
    to = place + token * STEP_BYTES + ((piece ^ (token % 8)) * PIECE_BYTES)
    PASS: gl.constexpr = tokens_a_pass(gl.num_warps())
    COUNT: gl.constexpr = (TOKENS + PASS - 1) // PASS
    for part in gl.static_range(0, STEP, STEP_COLUMNS):
        own = column + part + piece * PIECE
        # Whole pieces: COLUMNS is a multiple of 32.
        copied = _within(rows, own < COLUMNS) if COLUMNS < PADDED else rows
        first = to + part // STEP_COLUMNS * step_bytes(BLOCK, STEP_COLUMNS, gl.num_warps())
        given = (first, (x + own).to(gl.int64, bitcast=True), gl.to_tensor(x_stride * 2).to(gl.int32))
        gl.inline_asm(_copies(COUNT, PASS * STEP_BYTES), _operands(COUNT), given + copied[:COUNT])
    gl.inline_asm("cp.async.commit_group;")


@gluon.jit
def _within(rows, inside):
    """`rows` where `inside`, else -1."""
    kept = (gl.where(inside, rows[0], -1),)
    for number in gl.static_range(1, len(rows)):
        kept = pushed(kept, gl.where(inside, rows[number], -1))
    return kept


@gluon.constexpr_function
def _copies(count, apart):
    """PTX that copies 16 bytes each from rows $3, $4 .. of rows $2 bytes apart, the first one's at $1, to $0 and places
    `apart` bytes from one to the next; zeros if a row is negative."""
    lines = [
        f"setp.lt.s32 p, ${3 + i}, 0; mad.wide.u32 a, ${3 + i}, $2, $1; "
        f"cp.async.cg.shared.global [$0 + {i * apart}], [a], 16, p;"
        for i in range(count)
    ]
    return "{ .reg .pred p; .reg .b64 a; " + " ".join(lines) + " }"


@gluon.constexpr_function
def _operands(count):
    return ",".join(["r", "l", "r"] + ["r"] * count)


@gluon.jit
def wait_for_copies(PENDING: gl.constexpr):
    """Wait for the copies of all threads, except those of the latest PENDING steps, and let wgmma see them."""
    gl.inline_asm(_waiting(PENDING))
    gl.barrier()


@gluon.constexpr_function
def _waiting(pending):
    return f"cp.async.wait_group {pending}; fence.proxy.async.shared::cta;"
