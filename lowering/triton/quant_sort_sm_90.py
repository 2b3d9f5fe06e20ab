"""Template `quant_sort_sm_90`: quant_sort of bf16, thread by thread.

Four neighbouring lanes have a group of a row, eight elements each. They agree on its scale, and each writes its codes,
and of the eight sorted rows that are written together two. Where a sort block has 16 rows or more, its rows and the
padding behind them are written by words of the tiled layout instead, or by the half of each that the block has: a row
alone in a block of 32 takes two stores.
"""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_stream import pushed, thread_numbers
from .decode_x import (
    PIECE,
    largest_assembly,
    load_piece,
    pieces_layout,
    rounding_constants,
    rounding_lines,
)
from .dependents import follow
from .numbers import E8M0_NAN, GROUP, e8m0_scale
from .quant_sort import RUN, quant_sort_arguments, sorted_run
from .scales import BLOCK_COLUMNS, BLOCK_ROWS, sort_constants, sorted_offset
from .template import Params, Template
from .tiles import GROUP_LANES

_LANES = gl.constexpr(GROUP_LANES)


@gluon.constexpr_function
def _codes_assembly():
    """The codes $0 of eight bf16 $2 to $9 and the pair $1 of their scale's reciprocal: `encode_sm_90`, four bytes."""
    constants = rounding_constants()
    lines = [f".reg .b32 m, a, b, c, s, v<4>, {', '.join(constants)};"]
    lines += [f"mov.b32 {name}, {bits << 16 | bits};" for name, bits in constants.items()]
    for i in range(4):
        lines += [
            f"mov.b32 v{i}, {{${2 + 2 * i}, ${3 + 2 * i}}};",
            *rounding_lines(f"v{i}"),
            f"shr.u32 s, v{i}, 12;",
            "and.b32 s, s, 0x00080008;",
            f"lop3.b32 v{i}, a, 0x00070007, s, 0xea;",
        ]
    # Of each pair bits 0 to 3 and 16 to 19 are the codes.
    lines += [
        "shl.b32 a, v1, 8; or.b32 a, a, v0;",
        "shl.b32 b, v3, 8; or.b32 b, b, v2;",
        "prmt.b32 c, a, b, 0x5410;",
        "prmt.b32 s, a, b, 0x7632;",
        "shl.b32 s, s, 4; or.b32 $0, c, s;",
    ]
    return "{" + " ".join(lines) + "}"


@gluon.jit
def _quantised(piece, MODE: gl.constexpr):
    """Codes u32 and scale byte i32 [threads] of i16 [threads, 8]: bf16, a group four neighbours."""
    kind: gl.constexpr = gl.SliceLayout(1, piece.type.layout)
    threads: gl.constexpr = piece.shape[0]
    amax = gl.inline_asm(
        largest_assembly(1),
        "=r,h,h,h,h,h,h,h,h",
        [piece],
        gl.distributed_type(gl.int32, [threads], kind),
        is_pure=False,
    )
    byte = e8m0_scale(amax << 16, MODE)
    reciprocal = gl.where(byte >= 254, 0x0040, (254 - byte) << 7)  # 2^(127-byte)
    packed = gl.inline_asm(
        _codes_assembly(),
        "=&r,r,h,h,h,h,h,h,h,h",
        [reciprocal | reciprocal << 16, piece],
        gl.distributed_type(gl.uint32, [threads], kind),
        is_pure=True,
    )
    return gl.where(byte == E8M0_NAN, 0, packed), byte


@gluon.constexpr_function
def _tiles_of_block(block):
    """The most blocks of 32 rows of the tiled layout that a sort block touches."""
    rows = BLOCK_ROWS.value
    apart = min(block & -block, rows)  # a sort block begins at a multiple of it
    return -(-(rows - apart + block) // rows)


@gluon.jit
def _of_lane(values, lane):
    """Each thread's i32 of `values` in lane `lane` of its warp."""
    return gl.inline_asm(
        "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", "=r,r,r", [values, lane], values.type, is_pure=False
    )


@gluon.jit
def _pairs(byte):
    """Of the scales of a warp's eight groups the two that share a lane's first word in a block of the layout, in bits 0
    to 7 and 16 to 23; and those of its other word (`_store_tiles`)."""
    column = thread_numbers(byte.type.layout) % 32 // 16
    found = ()
    for half in gl.static_range(2):
        lane = (column + 2 * half) * _LANES
        found = pushed(found, _of_lane(byte, lane) | _of_lane(byte, lane + 4 * _LANES) << 16)
    return found


@gluon.jit
def _store_words(places, pair, to, end, first):
    """Words at `places` u8 pointers [threads]: bytes 0 and 2 are sorted row `first`, 1 and 3 the one 16 behind it.

    Sorted row `to` has the `pair` in bits 0 to 7 and 16 to 23, those behind it up to `end` 0. Others' bytes stay.
    """
    behind = first + 16
    word = gl.where(first == to, pair, 0) | gl.where(behind == to, pair << 8, 0)
    has_first, has_behind = (first >= to) & (first < end), (behind >= to) & (behind < end)
    gl.store(places.to(gl.pointer_type(gl.int32), bitcast=True), word, mask=has_first & has_behind)
    alone = has_first ^ has_behind
    own = has_behind.to(gl.int32)
    gl.store(places + own, (word >> own * 8).to(gl.uint8), mask=alone)
    gl.store(places + own + 2, (word >> own * 8 + 16).to(gl.uint8), mask=alone)


@gluon.jit
def _store_tiles(sorted_scales, pairs, to, end, group, COUNT: gl.constexpr, WIDTH: gl.constexpr):
    """Scales at sorted row `to`, zeros behind it up to `end`, in the tiled layout; COUNT blocks of 32 rows at most.

    A warp has eight scale columns, a block's: 256 bytes that lie together. A lane has two of their words, the first of
    columns c and c + 4, the other of c + 2 and c + 6, `pairs` of scales.
    """
    lane = thread_numbers(group.type.layout) % 32
    column = group // BLOCK_COLUMNS * (BLOCK_ROWS * BLOCK_COLUMNS) + lane * 4
    for tile in gl.static_range(COUNT):
        number = to // BLOCK_ROWS + tile
        places = sorted_scales + (number.to(gl.int64) * (BLOCK_ROWS * WIDTH) + column)
        row = number * BLOCK_ROWS + (lane % 16).to(gl.uint32)
        for half in gl.static_range(2):
            _store_words(places + half * 128, pairs[half], to, end, row)


@gluon.jit
def _store_rows(sorted_scales, byte, to, end, steps, group, lane, WIDTH: gl.constexpr, LAYOUT: gl.constexpr):
    """`byte` at sorted row `to`, zeros behind it up to `end`, of scale column `group`; `steps` eights at most."""
    for step in range(0, steps):
        for half in gl.static_range(RUN // _LANES):
            own = to // RUN * RUN + step * RUN + half * _LANES + lane.to(gl.uint32)
            places = sorted_scales + sorted_offset(own, group, WIDTH, LAYOUT)
            gl.store(places, gl.where(own == to, byte, 0).to(gl.uint8), mask=(own >= to) & (own < end))


@gluon.jit
def quant_sort_sm_90_kernel(
    x,
    x_stride,
    slot_rows,
    num_valid,
    codes,
    sorted_scales,
    M,
    TARGET: gl.constexpr,
    COLUMNS: gl.constexpr,
    SCALE_MODE: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    BLOCK: gl.constexpr,
    LAYOUT: gl.constexpr,
    WIDTH: gl.constexpr,
    EARLY: gl.constexpr,
):
    layout: gl.constexpr = pieces_layout(gl.num_warps(), PIECE)
    places: gl.constexpr = TOPK if STAGE == 1 else 1  # of a row of x
    thread = thread_numbers(gl.SliceLayout(1, layout))
    lane = thread % _LANES
    # The groups of all rows are numbered through.
    first = gl.program_id(0).to(gl.int64) * (thread.shape[0] // _LANES)
    number = (first % WIDTH).to(gl.int32) + thread // _LANES
    row, group = first // WIDTH + number // WIDTH, number % WIDTH
    there = row < M.to(gl.int64) * (TOPK // places)
    column = group * GROUP + lane * PIECE
    if EARLY:  # past the SM's own cache, which may hold what lay there before
        piece = load_piece(x + row * x_stride, there, column, COLUMNS, layout, ".cg")
    follow(TARGET)
    # All that the sort says is asked for at once.
    used = gl.load(num_valid).to(gl.uint32)
    said = (gl.load(slot_rows + row * places, mask=there, other=-1),)
    for place in gl.static_range(1, places):
        said = pushed(said, gl.load(slot_rows + row * places + place, mask=there, other=-1))
    live = said[0] >= 0
    for place in gl.static_range(1, places):
        live = live | (said[place] >= 0)
    if not EARLY:
        piece = load_piece(x + row * x_stride, live, column, COLUMNS, layout, "")
    packed, byte = _quantised(piece, SCALE_MODE)
    words = codes.to(gl.pointer_type(gl.uint32), bitcast=True) + row * (COLUMNS // PIECE)
    gl.store(words + column // PIECE, packed, mask=live & (column < COLUMNS))
    by_words: gl.constexpr = LAYOUT == "tiled_32x8" and BLOCK >= BLOCK_ROWS // 2
    pairs = _pairs(byte) if by_words else None
    for place in gl.static_range(places):
        to, end = sorted_run(said[place], BLOCK)
        if by_words:
            _store_tiles(sorted_scales, pairs, to, end, group, _tiles_of_block(BLOCK), WIDTH)
        else:
            steps = 1
            if RUN // BLOCK * BLOCK != RUN:  # else a block lies within so many rows
                steps = gl.max(((end + RUN - 1) // RUN - to // RUN).to(gl.int32), 0)
            _store_rows(sorted_scales, byte, to, end, steps, group, lane, WIDTH, LAYOUT)
    # Zeros from the last block in use on to the end of the layout's, by the first row of x.
    if BLOCK // BLOCK_ROWS * BLOCK_ROWS != BLOCK and first < WIDTH:
        padded = (used + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
        zero = gl.zeros_like(group)
        front, behind = zero.to(gl.uint32) + used, gl.where(row == 0, padded, used)
        eights = (padded // RUN - used // RUN).to(gl.int32)
        _store_rows(sorted_scales, zero, front, behind, eights, group, lane, WIDTH, LAYOUT)


def _constants(params: Params) -> dict[str, Any]:
    own = {name.upper(): params[name] for name in ("scale_mode", "block", "early")}
    return sort_constants(params, params["columns"] // GROUP.value) | own


QUANT_SORT_SM_90 = Template(quant_sort_sm_90_kernel, quant_sort_arguments, _constants)
"""Params: quant_sort's, x being bf16, without those of a program."""
