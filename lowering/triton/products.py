"""Rows of a sort block times rows of an MXFP4 weight, accumulated in f32 (docs/contract.md, section 5).

A tile is BLOCK sorted rows by BLOCK_N outputs; K runs in steps of BLOCK_K.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mfma_weight import code_places, scale_places
from .numbers import GROUP
from .scales import BLOCK_COLUMNS, sorted_offset

F4 = tl.constexpr("f4E2M1FN")
"""The param `x` of products whose rows are codes."""


@triton.jit
def load_columns(rows, present, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """[rows, WIDTH] from column `first` on of the rows at pointers `rows`; 0 where not `present` and past COLUMNS."""
    columns = first + tl.arange(0, WIDTH)
    return tl.load(rows[:, None] + columns[None, :], mask=present[:, None] & (columns < COLUMNS)[None, :], other=0)


@triton.constexpr_function
def scale_width(columns: int, layout: str) -> int:
    """Bytes of a row of sorted scales of `columns` elements."""
    groups = columns // GROUP.value
    return triton.cdiv(groups, BLOCK_COLUMNS.value) * BLOCK_COLUMNS.value if layout == "tiled_32x8" else groups


@triton.constexpr_function
def by_lanes(block: int, x: str, target: str) -> bool:
    """Whether K is in an order that gives each lane of sm_90's wgmma 4 bytes of codes in a row, not 4 single ones.

    The copies of the weight are 16 bytes wide then. Those of x are 4 wide, which pays while x has few rows.
    """
    return target == "sm_90" and x != F4.value and block <= 32


@triton.constexpr_function
def scales_ahead(target: str) -> bool:
    """Whether a step of K loads the scales of the next one.

    On NVIDIA rows of scales are too short and too unaligned for asynchronous copies: a load and its use in one step
    would wait for memory each time. AMD's pipeliner does it by itself.
    """
    return target.startswith("sm_")


@triton.jit
def load_x(rows, live, k, K: tl.constexpr, BLOCK_K: tl.constexpr, X: tl.constexpr, BY_LANES: tl.constexpr):
    """Values, or codes, of columns k to k + BLOCK_K of the rows at pointers `rows`; 0 where not `live`."""
    if X == F4:
        return load_columns(rows, live, k // 2, BLOCK_K // 2, K // 2)
    elif BY_LANES:
        # Of the 16 bytes of a group, bit pairs (lane, byte) of the place are swapped; load_codes does the same.
        place = tl.arange(0, BLOCK_K)
        columns = k + place // 32 * 32 + place // 2 % 4 * 8 + place // 8 % 4 * 2 + place % 2
        return tl.load(rows[:, None] + columns[None, :], mask=live[:, None] & (columns < K)[None, :], other=0)
    else:
        return load_columns(rows, live, k, BLOCK_K, K)


@triton.jit
def load_x_scales(
    sorted_scales,
    row,
    k,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """The scales of `load_x` for the sort block that starts at sorted row `row`; zeros where x has none."""
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    if X == F4:
        width: tl.constexpr = scale_width(K, LAYOUT)
        groups = k // GROUP + tl.arange(0, GROUPS)
        places = sorted_offset(row + tl.arange(0, BLOCK)[:, None], groups[None, :], width, LAYOUT)
        return tl.load(sorted_scales + places, mask=(groups < K // GROUP)[None, :], other=0)
    else:
        return tl.zeros([BLOCK, GROUPS], tl.uint8)


@triton.jit
def load_codes(
    codes,
    rows,
    present,
    k,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BY_LANES: tl.constexpr,
    WEIGHTS: tl.constexpr = "row_major",
):
    """Codes of columns k to k + BLOCK_K of `rows` of an expert's weight [rows, K]; 0 where not `present`."""
    if WEIGHTS == "mfma_stream":
        bytes = k // 2 + tl.arange(0, BLOCK_K // 2)
        mask = present[:, None] & (bytes < K // 2)[None, :]
        return tl.load(codes + code_places(rows[:, None], bytes[None, :], K), mask=mask, other=0)
    tile = load_columns(codes + rows * (K // 2), present, k // 2, BLOCK_K // 2, K // 2)
    if BY_LANES:
        shape: tl.constexpr = tile.shape
        tile = tl.permute(tl.reshape(tile, [shape[0], shape[1] // 16, 4, 4]), [0, 1, 3, 2])
        tile = tl.reshape(tile, shape)
    return tile


@triton.jit
def load_scales(scales, rows, present, k, K: tl.constexpr, BLOCK_K: tl.constexpr, WEIGHTS: tl.constexpr = "row_major"):
    """Their scales."""
    if WEIGHTS == "mfma_stream":
        groups = k // GROUP + tl.arange(0, BLOCK_K // GROUP)
        mask = present[:, None] & (groups < K // GROUP)[None, :]
        return tl.load(scales + scale_places(rows[:, None], groups[None, :], K), mask=mask, other=0)
    return load_columns(scales + rows * (K // GROUP), present, k // GROUP, BLOCK_K // GROUP, K // GROUP)


@triton.jit
def multiply(sums, x, x_scales, weight, weight_scales, X: tl.constexpr):
    """sums + x @ weight.T, f32 [rows, outputs].

    dot_scaled is what each target has: a scaled MFMA for codes times codes on gfx950, else both sides widened to bf16
    in registers, exactly. Where x is bf16 the weight becomes the 64-row operand of sm_90's wgmma.
    """
    if X == F4:
        return tl.dot_scaled(x, x_scales, "e2m1", weight.T, weight_scales, "e2m1", sums)
    elif X == "f16":
        # Scales exceed the range of f16, so x becomes the exact sum of two bf16.
        high = x.to(tl.bfloat16)
        wide, rounded = x.to(tl.float32), high.to(tl.float32)
        low = tl.where(wide == rounded, 0.0, wide - rounded).to(tl.bfloat16)
        sums = tl.dot_scaled(low, None, "bf16", weight.T, weight_scales, "e2m1", sums)
        return tl.dot_scaled(high, None, "bf16", weight.T, weight_scales, "e2m1", sums)
    else:
        return tl.dot_scaled(x, None, "bf16", weight.T, weight_scales, "e2m1", sums)
