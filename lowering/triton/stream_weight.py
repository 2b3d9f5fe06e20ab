"""Weights of the layout `stream` (runtime/pack_stream.py) as the M side of products of many tokens.

A lane's 16 bytes of a chunk are its registers of sm_90's A operand, four bits an element: they are widened to bf16 and
multiplied by wgmma where they are, and no weight is in shared memory but as a copy of the stream.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moeloom.runtime.stream import CHUNK_BYTES, CHUNK_COLUMNS, FRAGMENT_ROWS, Stream

from .numbers import widened
from .products import F4, load_x, load_x_scales

COLUMNS = tl.constexpr(CHUNK_COLUMNS)
ROWS = tl.constexpr(FRAGMENT_ROWS)
WORDS = tl.constexpr(CHUNK_BYTES // 4)
"""i32 of a chunk."""
ROW_WORDS = tl.constexpr(CHUNK_BYTES // 4 // 8)
"""i32 of the scale chunk that rows r and r + 8 have, one a chunk of weights."""

SIGNS, MAGNITUDES = tl.constexpr(0x80008000), tl.constexpr(0x01C001C0)
HIGH = tl.constexpr(0xFFFF0000)
CODES_TO_VALUES = tl.constexpr((253 << 7) * 0x10001)
"""2^126 twice: what a code in those bits is less than its value."""
BF16_NAN, BF16_LEAST_SCALE = tl.constexpr(0x7FC0), tl.constexpr(0x0040)
"""The scales of bytes 255 and 0, the latter a subnormal bf16."""
SUM_SCALE = tl.constexpr(2.0**62)
"""A sum times this is the product: weights are 2^-126 times the code's value, times 2^(byte + 64 - 127). So one
multiplication scales two of them, whatever the byte; f32 holds all bits of what then exceeds 2^-64."""


@triton.constexpr_function
def chunks_of(rows: int, columns: int, warps: int) -> int:
    """Weight chunks of a record."""
    return Stream(rows, columns, warps).chunks


@triton.constexpr_function
def tiles_of(rows: int, columns: int, warps: int) -> int:
    """Tiles of an expert."""
    return Stream(rows, columns, warps).tiles


@triton.constexpr_function
def records_of(rows: int, columns: int, warps: int) -> int:
    """Records of a tile."""
    return Stream(rows, columns, warps).records


@triton.jit
def stream_sums(
    stream,
    expert,
    first,
    x_rows,
    live,
    x_scales,
    row,
    start,
    stop,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
    TARGET: tl.constexpr,
):
    """f32 [BLOCK_N, BLOCK]: rows `first`.. of the packed weight [N, K] of `expert` (i64) times x, over columns `start`
    to `stop`.

    `first` is a multiple of 16, `start` of 64. Rows past the stream's last repeat others. x as in `load_x`.
    """
    chunks: tl.constexpr = chunks_of(N, K, WARPS)
    tiles: tl.constexpr = tiles_of(N, K, WARPS)
    record_words: tl.constexpr = (1 + chunks) * WARPS * WORDS
    tile_words: tl.constexpr = records_of(N, K, WARPS) * record_words
    tl.static_assert(tiles * tile_words < 2**31, "offsets in the stream of an expert are 32 bits wide")
    fragments = tl.minimum(first // ROWS + tl.arange(0, BLOCK_N // ROWS), tiles * WARPS - 1)
    places = fragments // WARPS * tile_words + fragments % WARPS * WORDS
    word_places = places[:, None] + tl.arange(0, WORDS)[None, :]
    scale_places = places[:, None] + tl.arange(0, 8)[None, :] * ROW_WORDS
    sums = tl.zeros([BLOCK_N, BLOCK], tl.float32)
    record = stream + expert * (tiles * tile_words) + start // COLUMNS // chunks * record_words
    number = start // COLUMNS % chunks  # of the chunk in its record
    for k in tl.range(start, stop, BLOCK_K):
        for part in tl.static_range(0, BLOCK_K, COLUMNS):
            words = tl.load(record + (1 + number) * (WARPS * WORDS) + word_places)
            scales = tl.load(record + number + scale_places)
            is_last = number == chunks - 1
            # Past the last column x is 0, and the weights are any of the last record.
            record += tl.where(is_last & (k + part + COLUMNS < K), record_words, 0)
            number = tl.where(is_last, 0, number + 1)
            values = load_x(x_rows, live, k + part, K, COLUMNS, X, False)
            if X == F4:
                groups = load_x_scales(x_scales, row, k + part, K, BLOCK, COLUMNS, X, LAYOUT)
                values = widened_codes(values, groups, TARGET)
            sums = multiply_wide(sums, widened_chunk(words, scales, TARGET), values.T, TARGET)
    return sums * SUM_SCALE


@triton.jit
def widened_chunk(words, scales, TARGET: tl.constexpr):
    """bf16 [16 F, 64], exactly 2^-62 times the weights, of chunks i32 [F, 128] and their scale words i32 [F, 8]."""
    FRAGMENTS: tl.constexpr = words.shape[0]
    lanes = tl.reshape(words.to(tl.uint32, bitcast=True), [FRAGMENTS, 8, 4, 4])  # row, pair of columns, 16 columns
    scales = scales.to(tl.uint32, bitcast=True)[:, :, None, None]
    low, high = row_scales(scales, 0), row_scales(scales, 16)
    # Each of the four numbers of pairs where a bf16 has its sign, low exponent and high mantissa bits.
    upper_0 = multiply_pairs(lanes & (SIGNS | MAGNITUDES), low, TARGET)
    lower_0 = multiply_pairs((lanes << 3) & (SIGNS | MAGNITUDES), high, TARGET)
    upper_8 = multiply_pairs(((lanes >> 3) & MAGNITUDES) | ((lanes << 1) & SIGNS), low, TARGET)
    lower_8 = multiply_pairs(((lanes << 6) & MAGNITUDES) | ((lanes << 2) & SIGNS), high, TARGET)
    tile = split_pairs(tl.join(tl.join(upper_0, lower_0), tl.join(upper_8, lower_8)))
    # [F, 8 rows, 4 pairs, 4 x 16 columns, half of the rows, half of the columns, column of the pair]
    return tl.reshape(tl.permute(tile, [0, 4, 1, 3, 5, 2, 6]), [ROWS * FRAGMENTS, COLUMNS])


@triton.jit
def row_scales(scales, SHIFT: tl.constexpr):
    """Pairs [F, 8, 1, 4]: 2^(byte - 127) twice, of the stored bytes (e8m0 + 64) of the 32 columns that hold each 16."""
    group = tl.arange(0, 4)[None, None, None, :] // 2
    return ((scales >> (SHIFT + 8 * group)) & 0xFF) * (0x10001 << 7)


@triton.jit
def widened_codes(codes, scales, TARGET: tl.constexpr):
    """bf16 [rows, 64] of codes u8 [rows, 32] and their scales u8 [rows, 2], rounded where bf16 ends."""
    TOKENS: tl.constexpr = codes.shape[0]
    byte = tl.reshape(codes, [TOKENS, 2, 16]).to(tl.uint32)
    pairs = ((byte & 0x07) << 6) | ((byte & 0x08) << 12) | ((byte & 0x70) << 18) | ((byte & 0x80) << 24)
    scales = scales.to(tl.uint32)
    powers = tl.where(scales == 255, BF16_NAN, tl.where(scales == 0, BF16_LEAST_SCALE, scales << 7))
    values = multiply_pairs(pairs, tl.full([1, 1, 1], CODES_TO_VALUES, tl.uint32), TARGET)
    values = multiply_pairs(values, (powers * 0x10001)[:, :, None], TARGET)
    return tl.reshape(split_pairs(values), [TOKENS, COLUMNS])


@triton.jit
def multiply_pairs(pairs, factors, TARGET: tl.constexpr):
    """Two bf16 a u32, times two, which are powers of two. Triton's interpreter has neither bf16 arithmetic nor PTX."""
    pairs, factors = tl.broadcast(pairs, factors)
    if TARGET == "":
        low = (pairs << 16).to(tl.float32, bitcast=True) * (factors << 16).to(tl.float32, bitcast=True)
        high = (pairs & HIGH).to(tl.float32, bitcast=True) * (factors & HIGH).to(tl.float32, bitcast=True)
        return (low.to(tl.uint32, bitcast=True) >> 16) | (high.to(tl.uint32, bitcast=True) & HIGH)
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [pairs, factors], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def split_pairs(pairs):
    """bf16 [.., 2] of two a u32, the low half first."""
    low, high = (pairs & 0xFFFF).to(tl.uint16), (pairs >> 16).to(tl.uint16)
    return tl.join(low.to(tl.bfloat16, bitcast=True), high.to(tl.bfloat16, bitcast=True))


@triton.jit
def multiply_wide(sums, weight, x, TARGET: tl.constexpr):
    """sums + weight @ x of bf16, in the interpreter of as many f32."""
    if TARGET == "":
        weight = widened(weight).to(tl.float32, bitcast=True)
        x = widened(x).to(tl.float32, bitcast=True)
    return tl.dot(weight, x, sums)
