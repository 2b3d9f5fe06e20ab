"""Template `expand`: MXFP4 rows to bf16 at their source row, for products that take no codes.

Values are exact; what exceeds bf16 becomes Inf, and a NaN scale NaN. A token's rows in the sorted list have the same
scales: its row is written by each, to the same bytes.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .numbers import GROUP
from .products import scale_width
from .scales import BLOCK_ROWS, sorted_offset, source_rows
from .template import Params, Template

HIGH = tl.constexpr(0xFFFF0000)
CODES_TO_VALUES = tl.constexpr((253 << 7) * 0x10001)
"""2^126 twice, as bf16: what a code in a bf16's low exponent bits and highest mantissa bit is less than its value."""
BF16_NAN, BF16_LEAST_SCALE = tl.constexpr(0x7FC0), tl.constexpr(0x0040)
"""The scales of bytes 255 and 0, the latter a subnormal bf16."""


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
def widened_codes(codes, scales, TARGET: tl.constexpr):
    """bf16 [rows, 32 G] of codes u8 [rows, G, 16] and their scales u8 [rows, G]; rounded where bf16 ends."""
    byte = codes.to(tl.uint32)
    pairs = ((byte & 0x07) << 6) | ((byte & 0x08) << 12) | ((byte & 0x70) << 18) | ((byte & 0x80) << 24)
    scales = scales.to(tl.uint32)
    powers = tl.where(scales == 255, BF16_NAN, tl.where(scales == 0, BF16_LEAST_SCALE, scales << 7))
    values = multiply_pairs(pairs, tl.full([1, 1, 1], CODES_TO_VALUES, tl.uint32), TARGET)
    values = multiply_pairs(values, (powers * 0x10001)[:, :, None], TARGET)
    low, high = (values & 0xFFFF).to(tl.uint16), (values >> 16).to(tl.uint16)
    halves = tl.join(low.to(tl.bfloat16, bitcast=True), high.to(tl.bfloat16, bitcast=True))
    return tl.reshape(halves, [codes.shape[0], codes.shape[1] * GROUP])


@triton.jit
def expand_kernel(
    x,
    x_stride,
    x_scales,
    sorted_ids,
    num_valid,
    out,
    M,
    TARGET: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGE: tl.constexpr,
    TOPK: tl.constexpr,
    LAYOUT: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A tile is 32 sorted rows and GROUPS groups. Rows without an expert are not written."""
    follow(TARGET)
    groups: tl.constexpr = COLUMNS // GROUP
    column_tiles: tl.constexpr = (groups + GROUPS - 1) // GROUPS
    row, used = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_ROWS, tl.load(num_valid)
    if row < used:
        source, live = source_rows(sorted_ids, row, used, BLOCK_ROWS, STAGE, TOPK)
        first = tl.program_id(0) % column_tiles * GROUPS
        byte = first * (GROUP // 2) + tl.arange(0, GROUPS * (GROUP // 2))
        mask = live[:, None] & (byte < COLUMNS // 2)[None, :]
        codes = tl.load(x + source[:, None] * x_stride + byte[None, :], mask=mask, other=0)
        group, own = first + tl.arange(0, GROUPS), row + tl.arange(0, BLOCK_ROWS)
        places = sorted_offset(own[:, None], group[None, :], scale_width(COLUMNS, LAYOUT), LAYOUT)
        scales = tl.load(x_scales + places, mask=live[:, None] & (group < groups)[None, :], other=0)
        values = widened_codes(tl.reshape(codes, [BLOCK_ROWS, GROUPS, GROUP // 2]), scales, TARGET)
        column = first * GROUP + tl.arange(0, GROUPS * GROUP)
        mask = live[:, None] & (column < COLUMNS)[None, :]
        tl.store(out + source[:, None] * COLUMNS + column[None, :], values, mask=mask)


def _arguments(params: Params) -> list[tuple[str, str]]:
    operands = [("x", "*u8"), ("x_stride", "i64"), ("x_scales", "*u8"), ("sorted_ids", "*i32"), ("num_valid", "*i32")]
    return [*operands, ("out", "*bf16")]


def _constants(params: Params) -> dict[str, Any]:
    return {name.upper(): params[name] for name in ("columns", "stage", "topk", "layout", "groups")}


EXPAND = Template(expand_kernel, _arguments, _constants)
"""Params: columns, stage, topk, layout, groups (a power of two)."""
