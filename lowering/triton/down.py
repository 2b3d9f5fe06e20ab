"""Template `down`: out[split, token*k+slot] = (h[token*k+slot] @ W2[expert].T + b2) * routing weight, in f32.

A tile is a sort block, BLOCK_N outputs and a split of K; the bias is in split 0.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .mfma_weight import expert_bytes
from .numbers import GROUP
from .product_params import OPTIONAL, absent, product_arguments, product_constants, weights
from .products import F4, by_lanes, load_codes, load_scales, load_x, load_x_scales, multiply, scales_ahead
from .scales import source_rows
from .template import POINTERS, Params, Template


@triton.jit
def down_kernel(
    x,
    x_scales,
    sorted_ids,
    expert_ids,
    num_valid,
    sorted_weights,
    weight,
    weight_scales,
    bias,
    out,
    M,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
    TARGET: tl.constexpr,
):
    follow(TARGET)
    tiles: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    block = tile // tiles
    row, used = block.to(tl.int64) * BLOCK, tl.load(num_valid)
    if row >= used:
        return
    rows, live = source_rows(sorted_ids, row, used, BLOCK, 2, TOPK)
    outputs = tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    present = outputs < HIDDEN
    expert = tl.load(expert_ids + block).to(tl.int64)
    x_rows = x + rows * (INTERMEDIATE // 2 if X == F4 else INTERMEDIATE)
    span: tl.constexpr = ((INTERMEDIATE + BLOCK_K - 1) // BLOCK_K + SPLITS - 1) // SPLITS * BLOCK_K
    start = split * span
    stop = min(start + span, INTERMEDIATE)
    sums = sums_of_rows(
        x_rows, live, x_scales, row, weight, weight_scales, expert, outputs, present, start, stop,
        HIDDEN, INTERMEDIATE, BLOCK, BLOCK_N, BLOCK_K, X, LAYOUT, TARGET, WEIGHTS,
    )  # fmt: skip
    if bias is not None:
        biased = tl.where(split == 0, HIDDEN, 0)
        sums += tl.load(bias + expert * HIDDEN + outputs, mask=outputs < biased, other=0)[None, :]
    if sorted_weights is not None:
        sums *= tl.load(sorted_weights + row + tl.arange(0, BLOCK))[:, None]
    places = (split.to(tl.int64) * M * TOPK + rows)[:, None] * HIDDEN + outputs[None, :]
    tl.store(out + places, sums, mask=live[:, None] & present[None, :])


@triton.jit
def sums_of_rows(
    x_rows,
    live,
    x_scales,
    row,
    weight,
    weight_scales,
    expert,
    outputs,
    present,
    start,
    stop,
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
    """f32 [BLOCK, BLOCK_N] over columns `start` to `stop` of a weight row_major or an MFMA stream, rows `outputs`."""
    if WEIGHTS == "mfma_stream":
        codes = weight + expert * expert_bytes(HIDDEN, INTERMEDIATE)
        scales = codes
    else:
        codes = weight + expert * (HIDDEN * (INTERMEDIATE // 2))
        scales = weight_scales + expert * (HIDDEN * (INTERMEDIATE // GROUP))
    lanes: tl.constexpr = by_lanes(BLOCK, X, TARGET)
    ahead: tl.constexpr = BLOCK_K if scales_ahead(TARGET) else 0
    sums = tl.zeros([BLOCK, BLOCK_N], tl.float32)
    a_scales = load_x_scales(x_scales, row, start, INTERMEDIATE, BLOCK, BLOCK_K, X, LAYOUT)
    w_scales = load_scales(scales, outputs, present, start, INTERMEDIATE, BLOCK_K, WEIGHTS)
    for k in tl.range(start, stop, BLOCK_K):
        a = load_x(x_rows, live, k, INTERMEDIATE, BLOCK_K, X, lanes)
        w = load_codes(codes, outputs, present, k, INTERMEDIATE, BLOCK_K, lanes, WEIGHTS)
        next_a_scales = load_x_scales(x_scales, row, k + ahead, INTERMEDIATE, BLOCK, BLOCK_K, X, LAYOUT)
        next_w_scales = load_scales(scales, outputs, present, k + ahead, INTERMEDIATE, BLOCK_K, WEIGHTS)
        if ahead == 0:
            a_scales, w_scales = next_a_scales, next_w_scales
        sums = multiply(sums, a, a_scales, w, w_scales, X)
        a_scales, w_scales = next_a_scales, next_w_scales
    return sums


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md; x is dense."""
    return [("x", POINTERS[params["x"]]), *product_arguments(params), ("out", "*fp32")]


def constants(params: Params) -> dict[str, Any]:
    return {
        **absent((*OPTIONAL, "weight_scales"), arguments(params)),
        **product_constants(params),
        "WEIGHTS": weights(params),
        "SPLITS": params["splits"],
    }


DOWN = Template(down_kernel, arguments, constants)
