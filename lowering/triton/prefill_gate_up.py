"""Template `prefill_gate_up`: gate_up of weight streams for sort blocks of many rows on sm_90."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import Stream

from .activation import gated
from .decode_gate_up import store_gated
from .decode_params import x_argument
from .decode_stream import thread_numbers, threads_layout
from .dependents import follow
from .prefill_chunk import sums_of
from .prefill_order import block_at, rows_of_length, uniform
from .prefill_params import prefill_arguments, prefill_constants
from .prefill_stream import (
    begin,
    multiply_unit,
    of_part,
    own_part,
    part_of,
    part_start,
    parts,
    units_a_part,
)
from .product_params import absent, activation_constants
from .template import Params, Template


@gluon.jit
def prefill_gate_up_kernel(
    x,
    x_stride,
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
    BLOCK: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
    RING: gl.constexpr,
    SHORT_RING: gl.constexpr,
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    ORDERED: gl.constexpr,
    TARGET: gl.constexpr,
):
    follow(TARGET)
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    first, blocks = gl.program_id(0), uniform(gl.load(num_valid) // BLOCK)
    if first >= blocks * UNITS:
        return
    order, x_shared, alive = begin(
        x, x_stride, sorted_ids, expert_ids, weight, blocks, BLOCK, HIDDEN, TILES, RECORDS, CHUNKS, STREAM_WARPS, RING,
        SHORT_RING, STEP, STEPS, AHEAD, PROGRAMS, 1, TOPK, ORDERED,
    )  # fmt: skip
    for unit in range(first, blocks * UNITS, PROGRAMS):
        _unit(
            unit, blocks, order, x_shared, x, x_stride, sorted_ids, expert_ids, sorted_weights, weight,
            bias, h, BLOCK, HIDDEN, INTERMEDIATE, TOPK, TILES, RECORDS, CHUNKS, STREAM_WARPS, RING, SHORT_RING, STEP,
            STEPS, AHEAD, PROGRAMS, ACTIVATION, ALPHA, LIMIT, ORDERED,
        )  # fmt: skip
    alive[0]._keep_alive()
    alive[1]._keep_alive()


@gluon.jit
def _unit(
    unit,
    blocks,
    order,
    x_shared,
    x,
    x_stride,
    sorted_ids,
    expert_ids,
    sorted_weights,
    weight,
    bias,
    h,
    BLOCK: gl.constexpr,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
    RING: gl.constexpr,
    SHORT_RING: gl.constexpr,
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """Multiply a unit, and store it."""
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    block, expert, length = block_at(order, expert_ids, unit // UNITS, blocks, ORDERED)
    multiply_unit(
        unit, blocks, length, order, x_shared, x, x_stride, sorted_ids, expert_ids, weight, BLOCK, HIDDEN, TILES,
        RECORDS, CHUNKS, STREAM_WARPS, RING, SHORT_RING, STEP, STEPS, AHEAD, PROGRAMS, 1, TOPK, ORDERED,
    )  # fmt: skip
    block, expert, length = block_at(order, expert_ids, unit // UNITS, blocks, ORDERED)
    tokens = rows_of_length(length, BLOCK, ORDERED)
    thread = thread_numbers(threads_layout(gl.num_warps()))
    output = (unit % UNITS * gl.num_warps() + thread // 32) * 8 + thread % 32 // 4
    present = output < INTERMEDIATE
    if bias is not None:
        biases = bias + expert.to(gl.int64) * (2 * INTERMEDIATE) + output
        gate_bias = gl.load(biases, mask=present, other=0.0)
        up_bias = gl.load(biases + INTERMEDIATE, mask=present, other=0.0)
    else:
        gate_bias, up_bias = None, None
    for number in gl.static_range(parts(BLOCK)):
        if tokens > part_start(BLOCK, number):
            _store_part(
                h, sorted_ids, sorted_weights, block, gate_bias, up_bias, output, part_start(BLOCK, number),
                part_of(BLOCK, number), BLOCK, INTERMEDIATE, TOPK, ACTIVATION, ALPHA, LIMIT,
            )  # fmt: skip


@gluon.jit
def _store_part(
    h,
    sorted_ids,
    sorted_weights,
    block,
    gate_bias,
    up_bias,
    output,
    FIRST: gl.constexpr,
    PART: gl.constexpr,
    BLOCK: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
):
    """Rows FIRST.. of a block, PART of them; rows behind those that were multiplied have no token."""
    # Asked for at once: a store would hold back every load behind it.
    entries, shares = own_part(sorted_ids, sorted_weights, block * BLOCK + FIRST, PART)
    gate, up = sums_of(FIRST, PART)
    if sorted_weights is not None:
        gate, up = gate * shares, up * shares
    if gate_bias is not None:
        gate, up = gate + of_part(gate_bias, PART), up + of_part(up_bias, PART)
    values = gated(gate, up, ACTIVATION, ALPHA, LIMIT)
    store_gated(h, values, entries, of_part(output, PART), INTERMEDIATE, TOPK)


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md, x with its row stride."""
    return [x_argument(params), ("x_stride", "i64"), *prefill_arguments(params), ("h", "*bf16")]


def constants(params: Params) -> dict[str, Any]:
    stream = Stream(2 * params["intermediate"], params["hidden"], params["stream_warps"])
    return {
        **absent(("sorted_weights", "bias"), arguments(params)),
        **prefill_constants(params, stream),
        **activation_constants(params),
    }


PREFILL_GATE_UP = Template(prefill_gate_up_kernel, arguments, constants)
