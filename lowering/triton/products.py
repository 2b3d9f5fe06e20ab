"""Rows of a sort block times rows of an MXFP4 weight, accumulated in f32 (docs/contract.md, section 5).

A tile is BLOCK sorted rows by BLOCK_N outputs; K runs in steps of BLOCK_K.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import GROUP
from .scales import BLOCK_COLUMNS, sorted_offset

F4 = tl.constexpr("f4E2M1FN")
"""The param `x` of products whose rows are codes."""


@triton.jit
def load_columns(rows, present, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """[rows, WIDTH] from column `first` on of the rows at pointers `rows`; 0 where not `present` and past COLUMNS."""
    columns = first + tl.arange(0, WIDTH)
    mask = present[:, None] if COLUMNS % WIDTH == 0 else present[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(rows[:, None] + columns[None, :], mask=mask, other=0)


@triton.constexpr_function
def scale_width(columns: int, layout: str) -> int:
    """Bytes of a row of sorted scales of `columns` elements."""
    groups = columns // GROUP.value
    return triton.cdiv(groups, BLOCK_COLUMNS.value) * BLOCK_COLUMNS.value if layout == "tiled_32x8" else groups


@triton.jit
def load_x(
    rows,
    live,
    scales,
    row,
    k,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Columns k to k + BLOCK_K of a sort block, whose scales start at sorted row `row`: values and None, or codes and
    scales."""
    if X == F4:
        codes = load_columns(rows, live, k // 2, BLOCK_K // 2, K // 2)
        width: tl.constexpr = scale_width(K, LAYOUT)
        groups = k // GROUP + tl.arange(0, BLOCK_K // GROUP)
        places = sorted_offset(row + tl.arange(0, BLOCK)[:, None], groups[None, :], width, LAYOUT)
        return codes, tl.load(scales + places, mask=(groups < K // GROUP)[None, :], other=0)
    else:
        return load_columns(rows, live, k, BLOCK_K, K), None


@triton.jit
def load_weight(codes, scales, rows, present, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Codes and scales of columns k to k + BLOCK_K of `rows` of an expert's weight [rows, K]; 0 where not `present`."""
    return (
        load_columns(codes + rows * (K // 2), present, k // 2, BLOCK_K // 2, K // 2),
        load_columns(scales + rows * (K // GROUP), present, k // GROUP, BLOCK_K // GROUP, K // GROUP),
    )


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
