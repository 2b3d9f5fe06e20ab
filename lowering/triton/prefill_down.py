"""Template `prefill_down`: down of weight streams for sort blocks of many rows on sm_90."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import Stream

from .decode_down import store_pair
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
from .product_params import absent
from .template import Params, Template


@gluon.jit
def prefill_down_kernel(
    x,
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
    ORDERED: gl.constexpr,
    TARGET: gl.constexpr,
):
    follow(TARGET)
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    first, blocks = gl.program_id(0), uniform(gl.load(num_valid) // BLOCK)
    if first >= blocks * UNITS:
        return
    order, x_shared, alive = begin(
        x, INTERMEDIATE, sorted_ids, expert_ids, weight, blocks, BLOCK, INTERMEDIATE, TILES, RECORDS, CHUNKS,
        STREAM_WARPS, RING, SHORT_RING, STEP, STEPS, AHEAD, PROGRAMS, 2, TOPK, ORDERED,
    )  # fmt: skip
    for unit in range(first, blocks * UNITS, PROGRAMS):
        _unit(
            unit, blocks, order, x_shared, x, sorted_ids, expert_ids, sorted_weights, weight, bias, out,
            BLOCK, HIDDEN, INTERMEDIATE, TOPK, TILES, RECORDS, CHUNKS, STREAM_WARPS, RING, SHORT_RING, STEP, STEPS,
            AHEAD, PROGRAMS, ORDERED,
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
    sorted_ids,
    expert_ids,
    sorted_weights,
    weight,
    bias,
    out,
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
    ORDERED: gl.constexpr,
):
    """Multiply a unit, and store it."""
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    block, expert, length = block_at(order, expert_ids, unit // UNITS, blocks, ORDERED)
    multiply_unit(
        unit, blocks, length, order, x_shared, x, INTERMEDIATE, sorted_ids, expert_ids, weight, BLOCK,
        INTERMEDIATE, TILES, RECORDS, CHUNKS, STREAM_WARPS, RING, SHORT_RING, STEP, STEPS, AHEAD, PROGRAMS, 2, TOPK,
        ORDERED,
    )  # fmt: skip
    block, expert, length = block_at(order, expert_ids, unit // UNITS, blocks, ORDERED)
    tokens = rows_of_length(length, BLOCK, ORDERED)
    thread = thread_numbers(threads_layout(gl.num_warps()))
    output = (unit % UNITS * gl.num_warps() + thread // 32) * 16 + thread % 32 // 4
    if bias is not None:
        biases = bias + expert.to(gl.int64) * HIDDEN + output
        bias_0 = gl.load(biases, mask=output < HIDDEN, other=0.0)
        bias_8 = gl.load(biases + 8, mask=output + 8 < HIDDEN, other=0.0)
    else:
        bias_0, bias_8 = None, None
    for number in gl.static_range(parts(BLOCK)):
        if tokens > part_start(BLOCK, number):
            _store_part(
                out, sorted_ids, sorted_weights, block, bias_0, bias_8, output, part_start(BLOCK, number),
                part_of(BLOCK, number), BLOCK, HIDDEN, TOPK,
            )  # fmt: skip


@gluon.jit
def _store_part(
    out,
    sorted_ids,
    sorted_weights,
    block,
    bias_0,
    bias_8,
    output,
    FIRST: gl.constexpr,
    PART: gl.constexpr,
    BLOCK: gl.constexpr,
    HIDDEN: gl.constexpr,
    TOPK: gl.constexpr,
):
    """Rows FIRST.. of a block, PART of them; rows behind those that were multiplied have no token."""
    # Asked for at once: a store would hold back every load behind it.
    entries, shares = own_part(sorted_ids, sorted_weights, block * BLOCK + FIRST, PART)
    value, value_8 = sums_of(FIRST, PART)
    if bias_0 is not None:
        value, value_8 = value + of_part(bias_0, PART), value_8 + of_part(bias_8, PART)
    if sorted_weights is not None:
        value, value_8 = value * shares, value_8 * shares
    store_pair(out, value, value_8, entries, of_part(output, PART), HIDDEN, TOPK)


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md; x is dense."""
    return [x_argument(params), *prefill_arguments(params), ("out", "*fp32")]


def constants(params: Params) -> dict[str, Any]:
    stream = Stream(params["hidden"], params["intermediate"], params["stream_warps"])
    return {**absent(("sorted_weights", "bias"), arguments(params)), **prefill_constants(params, stream)}


PREFILL_DOWN = Template(prefill_down_kernel, arguments, constants)
