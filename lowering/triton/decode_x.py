"""x of a sort block in shared memory, as the decode kernels read it.

bf16 [octets][K / 8][8 tokens][8 columns], times 2^32 (decode_chunk.py): what one `ldmatrix` of four 8x8 matrices reads
lies together, so no bank is asked twice. Padding rows, and columns that only pad the last record, are 0.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import OCTET
from .decode_stream import COLUMN_BYTES, thread_numbers
from .numbers import GROUP
from .products import F4
from .scales import sorted_offset

PIECE = gl.constexpr(8)
"""Columns of a token that a thread moves at once: 16 bytes."""
PIECE_BYTES = gl.constexpr(16)


@gluon.constexpr_function
def pieces_layout(warps, size):
    """[threads, size]: `size` neighbours a thread."""
    return gl.BlockedLayout([1, size], [32, 1], [warps, 1], [1, 0])


@gluon.jit
def allocate_x(COLUMNS: gl.constexpr, BLOCK: gl.constexpr):
    """Shared memory for COLUMNS columns of a block of BLOCK rows."""
    pieces: gl.constexpr = COLUMNS // PIECE * (BLOCK // OCTET)
    return gl.allocate_shared_memory(gl.int32, [pieces, 32], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def address_of(shared):
    """The i32 address of shared memory; its holder keeps it alive."""
    return gl.inline_asm("mov.b32 $0, $1;", "=r,r", [shared], gl.int32, is_pure=False)


@gluon.jit
def gather_x(
    address,
    x,
    x_stride,
    x_scales,
    sorted_ids,
    block,
    first,
    BLOCK: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    COLUMNS: gl.constexpr,
    PADDED: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Put PADDED columns of the rows of sort block `block`, from column `first` of COLUMNS, at `address`.

    A thread moves pieces of one token: number thread % BLOCK. Waits for the threads that still read what was there, and
    for those that write. STAGE as in `source_rows`.
    """
    size: gl.constexpr = PIECE // 2 if X == F4 else PIECE  # bytes of codes, or elements
    layout: gl.constexpr = pieces_layout(gl.num_warps(), size)
    thread = thread_numbers(gl.SliceLayout(1, layout))
    entry = gl.load(sorted_ids + block * BLOCK + thread % BLOCK)
    slot, token = entry.to(gl.uint32, bitcast=True) >> 24, (entry & 0xFFFFFF).to(gl.int64)
    row = token if STAGE == 1 else token * TOPK + slot.to(gl.int64)
    live = slot != TOPK
    octet = thread % BLOCK // OCTET
    column = thread // BLOCK * PIECE
    place = address + octet * (PADDED * COLUMN_BYTES) + column * COLUMN_BYTES + thread % OCTET * PIECE_BYTES
    step: gl.constexpr = thread.shape[0] // BLOCK * PIECE
    gl.barrier()
    if X == F4:
        sorted_row = (block * BLOCK).to(gl.int64) + thread % BLOCK
        _gather_codes(
            place, x + row * x_stride, live, x_scales, sorted_row, first, column, step, COLUMNS, PADDED, layout, LAYOUT
        )
    else:
        _gather_bf16(place, x + row * x_stride, live, first, column, step, COLUMNS, PADDED, layout)
    gl.barrier()


@gluon.jit
def _gather_bf16(
    place,
    rows,
    live,
    first,
    own_column,
    STEP: gl.constexpr,
    COLUMNS: gl.constexpr,
    PADDED: gl.constexpr,
    layout: gl.constexpr,
):
    """Eight elements become as many, times 2^32."""
    for start in gl.static_range(0, PADDED, STEP):
        column = start + own_column
        inside = live & (first + column < COLUMNS)  # whole pieces: COLUMNS is a multiple of 32
        places = (first + column)[:, None] + gl.arange(0, PIECE, gl.SliceLayout(0, layout))[None, :]
        values = gl.load(rows[:, None] + places, mask=inside[:, None], other=0.0)
        gl.inline_asm(
            "{ .reg .b32 v<4>, k; .reg .pred p; setp.lt.s32 p, $1, $2; mov.b32 k, 0x4f804f80;"
            "mov.b32 v0, {$3, $4}; mov.b32 v1, {$5, $6}; mov.b32 v2, {$7, $8}; mov.b32 v3, {$9, $10};"
            "mul.rn.bf16x2 v0, v0, k; mul.rn.bf16x2 v1, v1, k; mul.rn.bf16x2 v2, v2, k; mul.rn.bf16x2 v3, v3, k;"
            "@p st.shared.v4.b32 [$0], {v0, v1, v2, v3}; }",
            "r,r,r,h,h,h,h,h,h,h,h",
            [
                place + start * COLUMN_BYTES,
                column,
                PADDED,
                values.to(gl.int16, bitcast=True),
            ],
        )


@gluon.jit
def _gather_codes(
    place,
    rows,
    live,
    x_scales,
    sorted_row,
    first,
    own_column,
    STEP: gl.constexpr,
    COLUMNS: gl.constexpr,
    PADDED: gl.constexpr,
    layout: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Four bytes of codes and their scale become eight bf16, exactly: e2m1 times a power of two."""
    groups: gl.constexpr = COLUMNS // GROUP
    width: gl.constexpr = (groups + 7) // 8 * 8 if LAYOUT == "tiled_32x8" else groups
    for start in gl.static_range(0, PADDED, STEP):
        column = start + own_column
        inside = live & (first + column < COLUMNS)
        places = ((first + column) // 2)[:, None] + gl.arange(0, PIECE // 2, gl.SliceLayout(0, layout))[None, :]
        byte = gl.load(rows[:, None] + places, mask=inside[:, None], other=0).to(gl.int32)
        group = first // GROUP + start // GROUP + own_column // GROUP
        places = sorted_offset(sorted_row, group, width, LAYOUT)
        scale = gl.load(x_scales + places, mask=inside, other=0).to(gl.int32)
        # Both codes of a byte as bf16 / 2^126; then times 2^126, and 2^(scale - 127 + 32).
        pairs = (byte & 0x07) << 6 | (byte & 0x08) << 12 | (byte & 0x70) << 18 | (byte & 0x80) << 24
        exponent = gl.where(scale == 255, 0x7FC0, gl.minimum(scale + 32, 255) << 7)
        gl.inline_asm(
            "{ .reg .b32 v<4>, k; .reg .pred p; setp.lt.s32 p, $2, $3; mov.b32 k, 0x7e807e80;"
            "mul.rn.bf16x2 v0, $4, k; mul.rn.bf16x2 v1, $5, k; mul.rn.bf16x2 v2, $6, k; mul.rn.bf16x2 v3, $7, k;"
            "mul.rn.bf16x2 v0, v0, $1; mul.rn.bf16x2 v1, v1, $1;"
            "mul.rn.bf16x2 v2, v2, $1; mul.rn.bf16x2 v3, v3, $1;"
            "@p st.shared.v4.b32 [$0], {v0, v1, v2, v3}; }",
            "r,r,r,r,r,r,r,r",
            [place + start * COLUMN_BYTES, exponent | exponent << 16, column, PADDED, pairs],
        )
