"""Template `decode_mfma_gate_up`: gate_up for sort blocks of 16 rows on CDNA GPUs, of weights as MFMA streams."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .activation import gated
from .decode_mfma_ring import entries_of, experts_of, fill_ring, multiply_unit, place_of, program_number
from .decode_mfma_step import ROWS, TOKENS, sum_scale
from .decode_params import decode_arguments, mfma_constants, x_argument
from .decode_units import own_units
from .product_params import OPTIONAL, absent, activation_constants
from .template import Params, Template

OUTPUTS = gl.constexpr(32)
"""Of a tile: their gates and ups are its rows."""


@gluon.jit
def decode_mfma_gate_up_kernel(
    x,
    x_stride,
    x_scales,
    sorted_ids,
    expert_ids,
    num_valid,
    sorted_weights,
    weight,
    bias,
    h,
    M,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
    TILES: gl.constexpr,
    STEPS: gl.constexpr,
    SPAN: gl.constexpr,
    RING: gl.constexpr,
    PROGRAMS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    TARGET: gl.constexpr,
):
    first, last = own_units(num_valid, program_number(PROGRAMS), TOKENS, TILES, PROGRAMS)
    if first >= last:
        return
    here = place_of(
        experts_of(expert_ids, first, last, TILES, X), entries_of(sorted_ids, first, last, TILES, X), first, last,
        x, x_stride, x_scales, TILES, 1, 1, TOPK, HIDDEN, X, LAYOUT,
    )  # fmt: skip
    ring = fill_ring(weight, here, STEPS, SPAN, HIDDEN, X, LAYOUT, RING)
    experts = experts_of(expert_ids, first + 1, last, TILES, X)
    next_entries = entries_of(sorted_ids, first + 1, last, TILES, X)
    for unit in range(first, last):
        there = place_of(
            experts, next_entries, unit + 1, last, x, x_stride, x_scales, TILES, 1, 1, TOPK, HIDDEN, X, LAYOUT
        )  # fmt: skip
        # So early that nobody waits for them; likewise what the end needs.
        experts = experts_of(expert_ids, unit + 2, last, TILES, X)
        next_entries = entries_of(sorted_ids, unit + 2, last, TILES, X)
        form: gl.constexpr = outputs_layout()
        outputs = unit % TILES * OUTPUTS + gl.arange(0, OUTPUTS, gl.SliceLayout(1, form))
        present = outputs < INTERMEDIATE
        token = unit // TILES * TOKENS + gl.arange(0, TOKENS, gl.SliceLayout(0, form))
        entries = gl.load(sorted_ids + token)
        if bias is not None:
            biases = bias + (here[0] // TILES).to(gl.int64) * (2 * INTERMEDIATE) + outputs
            gate_bias = gl.load(biases, mask=present, other=0.0)
            up_bias = gl.load(biases + INTERMEDIATE, mask=present, other=0.0)
        if sorted_weights is not None:
            shares = gl.load(sorted_weights + token)

        sums, ring = multiply_unit(
            ring, weight, here, there, STEPS, SPAN, HIDDEN, X, LAYOUT, RING, TARGET
        )  # fmt: skip
        gate, up = gates_and_ups(sums * sum_scale(X, TARGET), form)
        if sorted_weights is not None:
            gate, up = gate * shares[None, :], up * shares[None, :]
        if bias is not None:
            gate, up = gate + gate_bias[:, None], up + up_bias[:, None]
        values = gated(gate, up, ACTIVATION, ALPHA, LIMIT).to(gl.bfloat16)
        slot = entries.to(gl.uint32, bitcast=True) >> 24
        rows = (entries & 0xFFFFFF).to(gl.int64) * TOPK + slot.to(gl.int64)
        mask = present[:, None] & (slot != TOPK)[None, :]
        gl.store(h + (rows * INTERMEDIATE)[None, :] + outputs[:, None], values, mask=mask)
        here = there


@gluon.jit
def gates_and_ups(sums, form: gl.constexpr):
    """f32 [32, 16] each of [64, 16]: of rows 4q .. 4q + 3 of a fragment two are gates, two the ups of their outputs."""
    halves = gl.permute(gl.reshape(sums, [ROWS // 4, 2, 2, TOKENS]), [0, 2, 3, 1])
    gate, up = gl.split(gl.reshape(halves, [OUTPUTS, TOKENS, 2]))
    return gl.convert_layout(gate, form, assert_trivial=True), gl.convert_layout(up, form, assert_trivial=True)


@gluon.constexpr_function
def outputs_layout():
    """Of what `gates_and_ups` gives."""
    fragment, quarter, pair = [[8, 0], [16, 0]], [[2, 0], [4, 0]], [[1, 0]]
    tokens = [[0, 1], [0, 2], [0, 4], [0, 8]]
    return gl.DistributedLinearLayout([*pair, *fragment], [*tokens, *quarter], [], [], [32, 16])


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md, x with its row stride."""
    return [x_argument(params), ("x_stride", "i64"), *decode_arguments(params), ("h", "*bf16")]


def constants(params: Params) -> dict[str, Any]:
    return {
        **absent(OPTIONAL, arguments(params)),
        **mfma_constants(params, 2 * params["intermediate"], params["hidden"], 1),
        **activation_constants(params),
    }


DECODE_MFMA_GATE_UP = Template(decode_mfma_gate_up_kernel, arguments, constants)
