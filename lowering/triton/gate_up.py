"""Template `gate_up`: h[token*k+slot] = act(x[token] @ W1[expert].T + b1), rounded to bf16, or quantised.

A tile is a sort block and BLOCK_N outputs.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .activation import gated
from .dependents import follow
from .mfma_weight import expert_bytes, gate_rows
from .numbers import GROUP, quantise
from .product_params import (
    OPTIONAL,
    absent,
    activation_constants,
    product_arguments,
    product_constants,
    weights,
)
from .products import by_lanes, load_codes, load_scales, load_x, load_x_scales, multiply, scale_width, scales_ahead
from .scales import BLOCK_COLUMNS, BLOCK_ROWS, sorted_offset, source_rows, store_scales
from .template import POINTERS, Params, Template


@triton.jit
def gate_up_kernel(
    x,
    x_stride,
    x_scales,
    sorted_ids,
    expert_ids,
    num_valid,
    sorted_weights,
    weight,
    weight_scales,
    bias,
    h,
    h_scales,
    M,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    REQUANTIZE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TARGET: tl.constexpr,
):
    follow(TARGET)
    tiles: tl.constexpr = (INTERMEDIATE + BLOCK_N - 1) // BLOCK_N
    block, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK_N
    row, used = block.to(tl.int64) * BLOCK, tl.load(num_valid)
    if row >= used:
        return
    tokens, live = source_rows(sorted_ids, row, used, BLOCK, 1, TOPK)
    expert = tl.load(expert_ids + block).to(tl.int64)
    values = activated(
        x + tokens * x_stride, live, x_scales, row, sorted_weights, weight, weight_scales, bias, expert, first,
        HIDDEN, INTERMEDIATE, BLOCK, BLOCK_N, BLOCK_K, X, LAYOUT, ACTIVATION, ALPHA, LIMIT, TARGET, WEIGHTS,
    )  # fmt: skip
    rows, _ = source_rows(sorted_ids, row, used, BLOCK, 2, TOPK)
    if REQUANTIZE == "none":
        store_columns(h, values, rows, live, first, INTERMEDIATE)
    else:
        codes, scales = requantise(values, REQUANTIZE, TARGET)
        store_columns(h, codes, rows, live, first // 2, INTERMEDIATE // 2)
        store_slice(h_scales, scales, row, first // GROUP, used, INTERMEDIATE, LAYOUT)


@triton.jit
def activated(
    x_rows,
    live,
    x_scales,
    row,
    routing,
    weight,
    weight_scales,
    bias,
    expert,
    first,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    TARGET: tl.constexpr,
    WEIGHTS: tl.constexpr = "row_major",
):
    """bf16 [BLOCK, BLOCK_N] of the sort block at `row`, outputs from `first`: act(x @ W1[expert].T, * routing, + bias).

    0 where not `live` and past INTERMEDIATE. `expert` and `row` are i64.
    """
    outputs = first + tl.arange(0, BLOCK_N)
    present = outputs < INTERMEDIATE
    ups = INTERMEDIATE + outputs
    gate, up = gate_up_of_rows(
        x_rows, live, x_scales, row, weight, weight_scales, expert, outputs, ups, present,
        HIDDEN, INTERMEDIATE, BLOCK, BLOCK_N, BLOCK_K, X, LAYOUT, TARGET, WEIGHTS,
    )  # fmt: skip
    if routing is not None:
        share = tl.load(routing + row + tl.arange(0, BLOCK))[:, None]
        gate, up = gate * share, up * share
    if bias is not None:
        bias += expert * (2 * INTERMEDIATE)
        gate += tl.load(bias + outputs, mask=present, other=0)[None, :]
        up += tl.load(bias + ups, mask=present, other=0)[None, :]
    values = gated(gate, up, ACTIVATION, ALPHA, LIMIT)
    return tl.where(live[:, None] & present[None, :], values, 0.0).to(tl.bfloat16)


@triton.jit
def gate_up_of_rows(
    x_rows,
    live,
    x_scales,
    row,
    weight,
    weight_scales,
    expert,
    outputs,
    ups,
    present,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
    TARGET: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """Gate and up sums f32 [BLOCK, BLOCK_N] each, of a weight row_major (its rows `outputs` and `ups`) or
    an MFMA stream."""
    tl.static_assert(HIDDEN * INTERMEDIATE < 2**31, "offsets in the weight of an expert are 32 bits wide")
    if WEIGHTS == "mfma_stream":
        codes = weight + expert * expert_bytes(2 * INTERMEDIATE, HIDDEN)
        scales = codes
        outputs = gate_rows(outputs)
        ups = outputs + 2
    else:
        codes = weight + expert * (INTERMEDIATE * HIDDEN)
        scales = weight_scales + expert * (2 * INTERMEDIATE * (HIDDEN // GROUP))
    gate = tl.zeros([BLOCK, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK, BLOCK_N], tl.float32)
    lanes: tl.constexpr = by_lanes(BLOCK, X, TARGET)
    ahead: tl.constexpr = BLOCK_K if scales_ahead(TARGET) else 0
    a_scales = load_x_scales(x_scales, row, 0, HIDDEN, BLOCK, BLOCK_K, X, LAYOUT)
    gate_scales = load_scales(scales, outputs, present, 0, HIDDEN, BLOCK_K, WEIGHTS)
    up_scales = load_scales(scales, ups, present, 0, HIDDEN, BLOCK_K, WEIGHTS)
    for k in tl.range(0, HIDDEN, BLOCK_K):
        a = load_x(x_rows, live, k, HIDDEN, BLOCK_K, X, lanes)
        gate_codes = load_codes(codes, outputs, present, k, HIDDEN, BLOCK_K, lanes, WEIGHTS)
        up_codes = load_codes(codes, ups, present, k, HIDDEN, BLOCK_K, lanes, WEIGHTS)
        next_a_scales = load_x_scales(x_scales, row, k + ahead, HIDDEN, BLOCK, BLOCK_K, X, LAYOUT)
        next_gate_scales = load_scales(scales, outputs, present, k + ahead, HIDDEN, BLOCK_K, WEIGHTS)
        next_up_scales = load_scales(scales, ups, present, k + ahead, HIDDEN, BLOCK_K, WEIGHTS)
        if ahead == 0:
            a_scales, gate_scales, up_scales = next_a_scales, next_gate_scales, next_up_scales
        gate = multiply(gate, a, a_scales, gate_codes, gate_scales, X)
        up = multiply(up, a, a_scales, up_codes, up_scales, X)
        a_scales, gate_scales, up_scales = next_a_scales, next_gate_scales, next_up_scales
    return gate, up


@triton.jit
def requantise(values, MODE: tl.constexpr, TARGET: tl.constexpr):
    """Codes u8 [rows, columns/2] and scales u8 [rows, columns/32] of bf16 `values`."""
    ROWS: tl.constexpr = values.shape[0]
    COLUMNS: tl.constexpr = values.shape[1]
    codes, scales = quantise(tl.reshape(values, [ROWS, COLUMNS // GROUP, GROUP]), MODE, TARGET)
    return tl.reshape(codes, [ROWS, COLUMNS // 2]), scales


@triton.jit
def store_columns(out, tile, rows, live, first, COLUMNS: tl.constexpr):
    """Store `tile` at `rows` (i64) and column `first` of rows of COLUMNS elements; not where not `live`."""
    columns = first + tl.arange(0, tile.shape[1])
    mask = live[:, None] & (columns < COLUMNS)[None, :]
    tl.store(out + rows[:, None] * COLUMNS + columns[None, :], tile, mask=mask)


@triton.jit
def store_slice(sorted_scales, tile, row, column, used, COLUMNS: tl.constexpr, LAYOUT: tl.constexpr):
    """Store scales [rows, groups] of a slice at its sorted place, and the zeros that complete the layout's blocks.

    The last slice fills the columns the layout pads, the last of `used` rows the rest of its 32 rows.
    """
    ROWS: tl.constexpr = tile.shape[0]
    GROUPS: tl.constexpr = tile.shape[1]
    width: tl.constexpr = scale_width(COLUMNS, LAYOUT)
    store_scales(sorted_scales, tile, row, column, width, LAYOUT)
    is_last = (column + GROUPS) * GROUP >= COLUMNS
    if is_last:
        store_zeros(sorted_scales, row, column + GROUPS, ROWS, BLOCK_COLUMNS, width, LAYOUT)
    if ROWS < BLOCK_ROWS and (row + ROWS == used) & (used % BLOCK_ROWS != 0):
        store_zeros(sorted_scales, row + ROWS, column, ROWS, GROUPS, width, LAYOUT)
        if is_last:
            store_zeros(sorted_scales, row + ROWS, column + GROUPS, ROWS, BLOCK_COLUMNS, width, LAYOUT)


@triton.jit
def store_zeros(
    sorted_scales, row, column, ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, LAYOUT: tl.constexpr
):
    """Zero scales [ROWS, GROUPS] from sorted row `row` (i64) and `column` on; columns from WIDTH on are left out."""
    rows, columns = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, GROUPS)[None, :]
    mask = tl.broadcast_to(columns < WIDTH, [ROWS, GROUPS])
    tl.store(sorted_scales + sorted_offset(rows, columns, WIDTH, LAYOUT), 0, mask=mask)


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands and results of docs/program.md, x strided."""
    results = [("h", "*bf16")] if params["requantize"] == "none" else [("h", "*u8"), ("h_scales", "*u8")]
    return [("x", POINTERS[params["x"]]), ("x_stride", "i64"), *product_arguments(params), *results]


def constants(params: Params) -> dict[str, Any]:
    """Every other parameter."""
    return {
        **absent((*OPTIONAL, "weight_scales", "h_scales"), arguments(params)),
        **product_constants(params),
        **activation_constants(params),
        "WEIGHTS": weights(params),
        "REQUANTIZE": params["requantize"],
    }


GATE_UP = Template(gate_up_kernel, arguments, constants)
"""Params: hidden, intermediate, topk, block, activation, alpha, limit, x, layout, has_bias, has_weights, requantize,
weights, block_n (a multiple of 32), block_k (of 64)."""
