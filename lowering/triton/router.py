"""Template `router`: logits = x @ weight.T + bias for few tokens, each rounded once (docs/contract.md, section 2).

A sum's order is part of its definition, so that the reference has the same bits, whatever M, alignment or layout: steps
of STEP columns, the later half upon the earlier one until one is left, then neighbours. Products of bf16 are exact in
f32, so a multiply-add changes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moeloom.runtime.stream import ROUTER_STEP

from .dependents import release, wait
from .route import total_of
from .template import POINTERS, Params, Template

STEP = tl.constexpr(ROUTER_STEP)


@triton.jit
def _sum_of_steps(values):
    """[rows, steps (a power of two), STEP] to [rows, STEP]."""
    steps: tl.constexpr = values.shape[1]
    if steps == 1:
        return tl.reshape(values, [values.shape[0], STEP])
    else:
        return _sum_of_steps(tl.sum(tl.reshape(values, [values.shape[0], 2, steps // 2 * STEP]), 1).reshape(
            [values.shape[0], steps // 2, STEP]
        ))  # fmt: skip


@triton.jit
def router_kernel(
    x,
    x_stride,
    weight,
    bias,
    logits,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile is ROWS tokens by one expert, whose weights are read before the wait: they are nobody's result."""
    steps: tl.constexpr = triton.next_power_of_2((COLUMNS + STEP - 1) // STEP)
    expert = tl.program_id(0) % EXPERTS
    token = tl.program_id(0) // EXPERTS * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, steps)[:, None] * STEP + tl.arange(0, STEP)[None, :]
    inside = column < COLUMNS
    own = tl.load(weight + expert * COLUMNS + column, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    offset = 0.0
    if bias is not None:
        offset = tl.load(bias + expert, cache_modifier=".cg").to(tl.float32)
    wait(TARGET)
    release(TARGET)
    rows = x + tl.minimum(token, M - 1).to(tl.int64)[:, None, None] * x_stride
    values = tl.load(rows + column[None, :, :], mask=inside[None, :, :], other=0.0).to(tl.float32)
    sums = tl.reshape(total_of(_sum_of_steps(values * own[None, :, :])), [ROWS])
    tl.store(logits + token * EXPERTS + expert, (sums + offset).to(logits.dtype.element_ty), mask=token < M)


def _arguments(params: Params) -> list[tuple[str, str]]:
    kind = POINTERS[params["x"]]
    bias = [("bias", kind)] if params["has_bias"] else []
    return [("x", kind), ("x_stride", "i64"), ("weight", kind), *bias, ("logits", kind)]


def _constants(params: Params) -> dict[str, object]:
    absent = {} if params["has_bias"] else {"bias": None}
    return {name.upper(): params[name] for name in ("experts", "columns", "rows")} | absent


ROUTER = Template(router_kernel, _arguments, _constants)
"""Params: columns, experts, x ("bf16" or "f16"), has_bias, rows (tokens a tile)."""
