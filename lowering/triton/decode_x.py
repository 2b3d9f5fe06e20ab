"""x of a sort block in shared memory, as the decode kernels read it.

bf16 [octets][K / 8][8 tokens][8 columns], times 2^32 (decode_chunk.py): what one `ldmatrix` of four 8x8 matrices reads
lies together, so no bank is asked twice. Padding rows, and columns that only pad the last record, are 0.

x may come as MXFP4, or be rounded to it on its way: the values are the same to the bit, and neither codes nor scales go
through memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import OCTET
from .decode_stream import COLUMN_BYTES, pushed, thread_numbers
from .numbers import E8M0_NAN, GROUP, e8m0_scale
from .products import F4
from .scales import sorted_offset

PIECE = gl.constexpr(8)
"""Columns of a token that a thread moves at once: 16 bytes."""
PIECE_BYTES = gl.constexpr(16)
AT_ONCE = gl.constexpr(6)
"""The most steps whose loads are under way together: 24 registers beside the ring."""
WARP_PIECES = gl.constexpr(4)
"""Pieces of a token that the lanes of a warp move at once: a group."""


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
    QUANTISE: gl.constexpr,
):
    """Put PADDED columns of the rows of sort block `block`, from column `first` of COLUMNS, at `address`.

    A thread moves pieces of one token. A warp moves those of an octet, and neighbouring ones of a token are a group.
    Waits for the threads that still read what was there; others wait for a barrier. STAGE as in `source_rows`.
    QUANTISE: the scale mode of MXFP4 that x is rounded to, or "none".
    """
    size: gl.constexpr = PIECE // 2 if X == F4 else PIECE  # bytes of codes, or elements
    layout: gl.constexpr = pieces_layout(gl.num_warps(), size)
    thread = thread_numbers(gl.SliceLayout(1, layout))
    octets: gl.constexpr = BLOCK // OCTET
    octet = thread // 32 % octets
    own = octet * OCTET + thread % OCTET
    entry = gl.load(sorted_ids + block * BLOCK + own)
    slot, token = entry.to(gl.uint32, bitcast=True) >> 24, (entry & 0xFFFFFF).to(gl.int64)
    row = token if STAGE == 1 else token * TOPK + slot.to(gl.int64)
    live = slot != TOPK
    column = (thread // (32 * octets) * WARP_PIECES + thread % 32 // OCTET) * PIECE
    place = address + octet * (PADDED * COLUMN_BYTES) + column * COLUMN_BYTES + thread % OCTET * PIECE_BYTES
    step: gl.constexpr = thread.shape[0] // BLOCK * PIECE
    rows = x + row * x_stride
    if X == F4:
        gl.barrier()
        sorted_row = (block * BLOCK).to(gl.int64) + own
        _gather_codes(place, rows, live, x_scales, sorted_row, first, column, step, COLUMNS, PADDED, layout, LAYOUT)
    elif octets > 1:
        gl.barrier()
        _gather_rows(place, rows, live, first, column, OCTET, step, COLUMNS, PADDED, layout, QUANTISE, "")
    else:
        # With few tokens most blocks have one row: then all threads move it, a piece each.
        alone = gl.load(sorted_ids + block * BLOCK + 1).to(gl.uint32, bitcast=True) >> 24 == TOPK
        entry = gl.load(sorted_ids + block * BLOCK)
        token = (entry & 0xFFFFFF).to(gl.int64)
        row = token if STAGE == 1 else token * TOPK + (entry.to(gl.uint32, bitcast=True) >> 24).to(gl.int64)
        gl.barrier()
        only = x + row * x_stride
        _gather_octet(address, place, only, rows, alone, live, first, column, COLUMNS, PADDED, layout, QUANTISE, "")


@gluon.jit
def gather_tokens(
    address, x, x_stride, M, COLUMNS: gl.constexpr, PADDED: gl.constexpr, QUANTISE: gl.constexpr, CACHE: gl.constexpr
):
    """Put rows 0 to M - 1 of bf16 x at `address`, up to OCTET of them: an octet as `gather_x` puts it, for the first
    time. Others wait for a barrier. CACHE: how memory is read."""
    layout: gl.constexpr = pieces_layout(gl.num_warps(), PIECE)
    thread = thread_numbers(gl.SliceLayout(1, layout))
    own = thread % OCTET
    column = (thread // 32 * WARP_PIECES + thread % 32 // OCTET) * PIECE
    place = address + column * COLUMN_BYTES + own * PIECE_BYTES
    rows = x + own.to(gl.int64) * x_stride
    _gather_octet(address, place, x, rows, M == 1, own < M, 0, column, COLUMNS, PADDED, layout, QUANTISE, CACHE)


@gluon.jit
def _gather_octet(
    address,
    place,
    only,
    rows,
    alone,
    live,
    first,
    column,
    COLUMNS: gl.constexpr,
    PADDED: gl.constexpr,
    layout: gl.constexpr,
    QUANTISE: gl.constexpr,
    CACHE: gl.constexpr,
):
    """An octet: the row at `only` where it is `alone`, else the `live` of each thread's `rows`, from `column` on."""
    thread = thread_numbers(gl.SliceLayout(1, layout))
    step: gl.constexpr = thread.shape[0] // OCTET * PIECE
    if alone:
        column = thread * PIECE
        rows = only + gl.zeros_like(column).to(gl.int64)
        place = address + column * COLUMN_BYTES
        wide: gl.constexpr = 32 * gl.num_warps() * PIECE
        _clear_others(address, thread, PADDED)
        _gather_rows(place, rows, column >= 0, first, column, 1, wide, COLUMNS, PADDED, layout, QUANTISE, CACHE)
    else:
        _gather_rows(place, rows, live, first, column, OCTET, step, COLUMNS, PADDED, layout, QUANTISE, CACHE)


@gluon.jit
def _clear_others(address, thread, PADDED: gl.constexpr):
    """Zeros in every row of an octet but the first one."""
    for start in range(0, PADDED, 32 * gl.num_warps()):
        piece = start + thread
        other = (piece < PADDED) & (piece % OCTET != 0)
        gl.inline_asm(
            "{ .reg .b32 z; .reg .pred p; setp.ne.s32 p, $1, 0; mov.b32 z, 0;@p st.shared.v4.b32 [$0], {z, z, z, z}; }",
            "r,r",
            [address + piece * PIECE_BYTES, other.to(gl.int32)],
        )


@gluon.constexpr_function
def _steps_together(columns, step):
    """Steps of so many columns whose loads are under way together: as even as can be, up to AT_ONCE."""
    steps = -(-columns // step)
    return -(-steps // -(-steps // AT_ONCE.value))


@gluon.jit
def load_piece(rows, live, column, COLUMNS: gl.constexpr, layout: gl.constexpr, CACHE: gl.constexpr):
    """i16 [threads, 8]; zeros past COLUMNS, which are whole pieces: a multiple of 32."""
    places = column[:, None] + gl.arange(0, PIECE, gl.SliceLayout(0, layout))[None, :]
    inside = live & (column < COLUMNS)
    piece = gl.load(rows[:, None] + places, mask=inside[:, None], other=0.0, cache_modifier=CACHE)
    return piece.to(gl.int16, bitcast=True)


@gluon.jit
def _gather_rows(
    place,
    rows,
    live,
    first,
    own_column,
    APART: gl.constexpr,
    STEP: gl.constexpr,
    COLUMNS: gl.constexpr,
    PADDED: gl.constexpr,
    layout: gl.constexpr,
    QUANTISE: gl.constexpr,
    CACHE: gl.constexpr,
):
    """Eight elements of each thread's `rows` a step. APART: lanes between neighbouring pieces of a group."""
    together: gl.constexpr = _steps_together(PADDED, STEP)
    for start in range(0, PADDED, together * STEP):
        column = start + own_column
        pieces = (load_piece(rows, live, first + column, COLUMNS, layout, CACHE),)
        for number in gl.static_range(1, together):
            pieces = pushed(pieces, load_piece(rows, live, first + column + number * STEP, COLUMNS, layout, CACHE))
        for number in gl.static_range(together):
            there = place + (start + number * STEP) * COLUMN_BYTES
            if QUANTISE == "none":
                _put(there, column + number * STEP, PADDED, pieces[number])
            else:
                _put_quantised(there, column + number * STEP, PADDED, pieces[number], APART, QUANTISE)


@gluon.jit
def _put(place, column, PADDED: gl.constexpr, piece):
    """Eight elements, times 2^32, where `column` is below PADDED."""
    gl.inline_asm(
        "{ .reg .b32 v<4>, k; .reg .pred p; setp.lt.s32 p, $1, $2; mov.b32 k, 0x4f804f80;"
        "mov.b32 v0, {$3, $4}; mov.b32 v1, {$5, $6}; mov.b32 v2, {$7, $8}; mov.b32 v3, {$9, $10};"
        "mul.rn.bf16x2 v0, v0, k; mul.rn.bf16x2 v1, v1, k; mul.rn.bf16x2 v2, v2, k; mul.rn.bf16x2 v3, v3, k;"
        "@p st.shared.v4.b32 [$0], {v0, v1, v2, v3}; }",
        "r,r,r,h,h,h,h,h,h,h,h",
        [place, column, PADDED, piece],
    )


@gluon.constexpr_function
def largest_assembly(apart):
    """Of eight bf16 $1 to $8, and those of the three other lanes of the group, the largest magnitude's bits."""
    pairs = " ".join(f"mov.b32 v{i}, {{${1 + 2 * i}, ${2 + 2 * i}}}; and.b32 v{i}, v{i}, 0x7fff7fff;" for i in range(4))
    # As integers magnitudes order like the values, NaN above Inf.
    return (
        "{ .reg .b32 v<4>, w;"
        + pairs
        + "max.u16x2 v0, v0, v1; max.u16x2 v2, v2, v3; max.u16x2 v0, v0, v2;"
        + f"shfl.sync.bfly.b32 w, v0, {apart}, 0x1f, 0xffffffff; max.u16x2 v0, v0, w;"
        + f"shfl.sync.bfly.b32 w, v0, {2 * apart}, 0x1f, 0xffffffff; max.u16x2 v0, v0, w;"
        + "shl.b32 w, v0, 16; max.u16x2 v0, v0, w; shr.u32 $0, v0, 16; }"
    )


@gluon.constexpr_function
def rounding_constants():
    """Bits of the bf16 that `rounding_lines` reads, each twice in a register of its name."""
    halves = {"two": 0x4000, "one": 0x3F80, "half": 0x3F00}
    return {**halves, "i128": 0x4300, "i130": 0x4302, "i132": 0x4304, "i135": 0x4307}


@gluon.constexpr_function
def rounding_lines(pair):
    """PTX that makes of a `pair` of bf16 `a`, 128 + the codes of their sizes; `m`, `b` and `c` are written, and $1 is
    the pair of their scale's reciprocal.

    Sums with 128 are rounded to whole numbers: each of three lines is the code where the grid is as fine as that, and
    no less elsewhere.
    """
    return [
        f"and.b32 m, {pair}, 0x7fff7fff;",
        "mul.rn.bf16x2 m, m, $1;",
        "fma.rn.bf16x2 a, m, two, i128;",
        "fma.rn.bf16x2 b, m, one, i130;",
        "fma.rn.bf16x2 c, m, half, i132;",
        "min.bf16x2 a, a, b;",
        "min.bf16x2 a, a, c;",
        "min.bf16x2 a, a, i135;",
    ]


@gluon.constexpr_function
def _quantising_assembly():
    """Eight bf16 $5 to $12, divided by a scale, rounded to e2m1, multiplied with it again, to $0 in shared memory.

    $1 is the pair of the scale's reciprocal, $2 that of the scale times 2^32; column $3 is to be below $4. A code is a
    bf16 as in decode_chunk.py.
    """
    constants = {**rounding_constants(), "unit": 0x7E80}
    lines = [f".reg .b32 v<4>, m, a, b, c, s, {', '.join(constants)}; .reg .pred p;", "setp.lt.s32 p, $3, $4;"]
    lines += [f"mov.b32 {name}, {bits << 16 | bits};" for name, bits in constants.items()]
    for i in range(4):
        lines += [
            f"mov.b32 v{i}, {{${5 + 2 * i}, ${6 + 2 * i}}};",
            *rounding_lines(f"v{i}"),
            "shl.b32 a, a, 6;",
            "and.b32 a, a, 0x01c001c0;",
            f"and.b32 s, v{i}, 0x80008000;",
            "or.b32 a, a, s;",
            "mul.rn.bf16x2 a, a, unit;",
            f"mul.rn.bf16x2 v{i}, a, $2;",
        ]
    lines.append("@p st.shared.v4.b32 [$0], {v0, v1, v2, v3};")
    return "{" + " ".join(lines) + "}"


@gluon.jit
def _put_quantised(place, column, PADDED: gl.constexpr, piece, APART: gl.constexpr, MODE: gl.constexpr):
    """The values of eight elements' codes and scale, as `_gather_codes` has them."""
    amax = gl.inline_asm(largest_assembly(APART), "=r,h,h,h,h,h,h,h,h", [piece], place.type, is_pure=False)
    # A group with a NaN becomes NaN by its scale, whatever its codes.
    scale = e8m0_scale(amax << 16, MODE)
    reciprocal = gl.where(scale >= 254, 0x0040, (254 - scale) << 7)  # 2^(127-scale)
    exponent = gl.where(scale == E8M0_NAN, 0x7FC0, gl.minimum(scale + 32, 255) << 7)
    gl.inline_asm(
        _quantising_assembly(),
        "r,r,r,r,r,h,h,h,h,h,h,h,h",
        [place, reciprocal | reciprocal << 16, exponent | exponent << 16, column, PADDED, piece],
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
    together: gl.constexpr = _steps_together(PADDED, STEP)
    for start in range(0, PADDED, together * STEP):
        for number in gl.static_range(together):
            column = start + number * STEP + own_column
            inside = live & (first + column < COLUMNS)
            places = ((first + column) // 2)[:, None] + gl.arange(0, PIECE // 2, gl.SliceLayout(0, layout))[None, :]
            byte = gl.load(rows[:, None] + places, mask=inside[:, None], other=0).to(gl.int32)
            places = sorted_offset(sorted_row, (first + column) // GROUP, width, LAYOUT)
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
                [
                    place + (start + number * STEP) * COLUMN_BYTES,
                    exponent | exponent << 16,
                    column,
                    PADDED,
                    pairs,
                ],
            )
