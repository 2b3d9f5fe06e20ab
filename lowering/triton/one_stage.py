"""Template `experts_one_stage`: gate_up and down of a sort block in one launch, h staying in registers.

A tile is a sort block and BLOCK_N columns of h. Its share of the result is the partial sum out[slice, token*k+slot],
made BLOCK_H columns at a time; the second bias is in slice 0.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .gate_up import activated, requantise, store_columns
from .numbers import GROUP
from .product_params import absent, activation_constants, product_constants, sorted_arguments
from .products import F4, load_codes, load_scales, multiply
from .scales import source_rows
from .template import POINTERS, Params, Template


@triton.jit
def experts_one_stage_kernel(
    x,
    x_stride,
    x_scales,
    sorted_ids,
    expert_ids,
    num_valid,
    sorted_weights,
    gate_up,
    gate_up_scales,
    gate_up_bias,
    down,
    down_scales,
    down_bias,
    out,
    M,
    HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    X: tl.constexpr,
    LAYOUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    REQUANTIZE: tl.constexpr,
    ROUTING_WEIGHT_STAGE: tl.constexpr,
    TARGET: tl.constexpr,
):
    follow(TARGET)
    slices: tl.constexpr = (INTERMEDIATE + BLOCK_N - 1) // BLOCK_N
    block, slice = tl.program_id(0) // slices, tl.program_id(0) % slices
    row, used = block.to(tl.int64) * BLOCK, tl.load(num_valid)
    if row >= used:
        return
    tokens, live = source_rows(sorted_ids, row, used, BLOCK, 1, TOPK)
    rows, _ = source_rows(sorted_ids, row, used, BLOCK, 2, TOPK)
    expert = tl.load(expert_ids + block).to(tl.int64)
    first = slice * BLOCK_N
    h = activated(
        x + tokens * x_stride, live, x_scales, row, sorted_weights if ROUTING_WEIGHT_STAGE == 1 else None,
        gate_up, gate_up_scales, gate_up_bias, expert, first,
        HIDDEN, INTERMEDIATE, BLOCK, BLOCK_N, BLOCK_K, X, LAYOUT, ACTIVATION, ALPHA, LIMIT, TARGET,
    )  # fmt: skip
    h, h_scales = operand(h, REQUANTIZE, TARGET)
    share = tl.load(sorted_weights + row + tl.arange(0, BLOCK))[:, None]
    codes = down + expert * (HIDDEN * (INTERMEDIATE // 2))
    scales = down_scales + expert * (HIDDEN * (INTERMEDIATE // GROUP))
    partial = out + slice.to(tl.int64) * M * TOPK * HIDDEN
    for column in tl.range(0, HIDDEN, BLOCK_H):
        outputs = column + tl.arange(0, BLOCK_H)
        w = load_codes(codes, outputs, outputs < HIDDEN, first, INTERMEDIATE, BLOCK_N, False)
        w_scales = load_scales(scales, outputs, outputs < HIDDEN, first, INTERMEDIATE, BLOCK_N)
        sums = tl.zeros([BLOCK, BLOCK_H], tl.float32)
        sums = multiply(sums, h, h_scales, w, w_scales, "bf16" if REQUANTIZE == "none" else F4)
        if down_bias is not None:
            biased = tl.where(slice == 0, HIDDEN, 0)
            sums += tl.load(down_bias + expert * HIDDEN + outputs, mask=outputs < biased, other=0)[None, :]
        if ROUTING_WEIGHT_STAGE == 2:
            sums *= share
        store_columns(partial, sums, rows, live, column, HIDDEN)


@triton.jit
def operand(h, MODE: tl.constexpr, TARGET: tl.constexpr):
    """`h` as the second product takes it: as it is and None, or codes and scales."""
    if MODE == "none":
        return h, None
    else:
        return requantise(h, MODE, TARGET)


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md, x strided."""
    first_bias = [("gate_up_bias", "*fp32")] if params["has_gate_up_bias"] else []
    second_bias = [("down_bias", "*fp32")] if params["has_down_bias"] else []
    return [
        ("x", POINTERS[params["x"]]),
        ("x_stride", "i64"),
        *sorted_arguments(params),
        ("sorted_weights", "*fp32"),
        ("gate_up", "*u8"),
        ("gate_up_scales", "*u8"),
        *first_bias,
        ("down", "*u8"),
        ("down_scales", "*u8"),
        *second_bias,
        ("out", "*fp32"),
    ]


def constants(params: Params) -> dict[str, Any]:
    """Every other parameter."""
    return {
        **absent(("x_scales", "gate_up_bias", "down_bias"), arguments(params)),
        **product_constants(params),
        **activation_constants(params),
        "BLOCK_H": params["block_h"],
        "REQUANTIZE": params["requantize"],
        "ROUTING_WEIGHT_STAGE": params["routing_weight_stage"],
    }


EXPERTS_ONE_STAGE = Template(experts_one_stage_kernel, arguments, constants)
"""Params: gate_up's but has_weights and has_bias, block_h, routing_weight_stage, has_gate_up_bias, has_down_bias."""
