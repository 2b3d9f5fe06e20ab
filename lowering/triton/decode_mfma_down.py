"""Template `decode_mfma_down`: down for sort blocks of 16 rows on CDNA GPUs, of weights as MFMA streams."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_mfma_ring import entries_of, experts_of, fill_ring, multiply_unit, place_of, program_number
from .decode_mfma_step import ROWS, TOKENS, sum_scale, sums_layout
from .decode_params import decode_arguments, mfma_constants, x_argument
from .decode_units import own_units
from .product_params import OPTIONAL, absent
from .products import F4
from .template import Params, Template


@gluon.jit
def decode_mfma_down_kernel(
    x,
    x_scales,
    sorted_ids,
    expert_ids,
    num_valid,
    sorted_weights,
    weight,
    bias,
    out,
    M,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
    TILES: gl.constexpr,
    STEPS: gl.constexpr,
    SPLITS: gl.constexpr,
    SPAN: gl.constexpr,
    RING: gl.constexpr,
    PROGRAMS: gl.constexpr,
    TARGET: gl.constexpr,
):
    PARTS: gl.constexpr = SPLITS * TILES
    ROW: gl.constexpr = INTERMEDIATE // 2 if X == F4 else INTERMEDIATE
    first, last = own_units(num_valid, program_number(PROGRAMS), TOKENS, PARTS, PROGRAMS)
    if first >= last:
        return
    here = place_of(
        experts_of(expert_ids, first, last, PARTS, X), entries_of(sorted_ids, first, last, PARTS, X), first, last,
        x, ROW, x_scales, TILES, SPLITS, 2, TOPK, INTERMEDIATE, X, LAYOUT,
    )  # fmt: skip
    ring = fill_ring(weight, here, STEPS, SPAN, INTERMEDIATE, X, LAYOUT, RING)
    experts = experts_of(expert_ids, first + 1, last, PARTS, X)
    next_entries = entries_of(sorted_ids, first + 1, last, PARTS, X)
    for unit in range(first, last):
        there = place_of(
            experts, next_entries, unit + 1, last, x, ROW, x_scales, TILES, SPLITS, 2, TOPK, INTERMEDIATE, X, LAYOUT
        )  # fmt: skip
        # So early that nobody waits for them; likewise what the end needs.
        experts = experts_of(expert_ids, unit + 2, last, PARTS, X)
        next_entries = entries_of(sorted_ids, unit + 2, last, PARTS, X)
        form: gl.constexpr = sums_layout(X, TARGET)
        outputs = unit % TILES * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, form))
        token = unit // PARTS * TOKENS + gl.arange(0, TOKENS, gl.SliceLayout(0, form))
        entries = gl.load(sorted_ids + token)
        if bias is not None:
            biased = gl.where(here[1] == 0, HIDDEN, 0)
            biases = bias + (here[0] // TILES).to(gl.int64) * HIDDEN + outputs
            own_bias = gl.load(biases, mask=outputs < biased, other=0.0)
        if sorted_weights is not None:
            shares = gl.load(sorted_weights + token)

        sums, ring = multiply_unit(ring, weight, here, there, STEPS, SPAN, INTERMEDIATE, X, LAYOUT, RING, TARGET)
        sums *= sum_scale(X, TARGET)
        if bias is not None:
            sums += own_bias[:, None]
        if sorted_weights is not None:
            sums *= shares[None, :]
        slot = entries.to(gl.uint32, bitcast=True) >> 24
        rows = here[1].to(gl.int64) * M * TOPK + (entries & 0xFFFFFF).to(gl.int64) * TOPK + slot.to(gl.int64)
        mask = (outputs < HIDDEN)[:, None] & (slot != TOPK)[None, :]
        gl.store(out + (rows * HIDDEN)[None, :] + outputs[:, None], sums, mask=mask)
        here = there


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md; x is dense."""
    return [x_argument(params), *decode_arguments(params), ("out", "*fp32")]


def constants(params: Params) -> dict[str, Any]:
    return {
        **absent(OPTIONAL, arguments(params)),
        **mfma_constants(params, params["hidden"], params["intermediate"], params["splits"]),
        "SPLITS": params["splits"],
    }


DECODE_MFMA_DOWN = Template(decode_mfma_down_kernel, arguments, constants)
