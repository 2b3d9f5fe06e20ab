"""Template `prefill_gate_up`: gate_up of weight streams for sort blocks of many rows on sm_90."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import Stream

from .activation import gated
from .decode_gate_up import store_gated
from .decode_params import x_argument
from .decode_stream import own_tokens, thread_numbers, threads_layout
from .decode_units import expert_of
from .decode_x import address_of
from .dependents import follow
from .prefill_chunk import SUM_SCALE, finished
from .prefill_params import prefill_arguments, prefill_constants
from .prefill_stream import ENTRIES_TOKENS, fill_ring, fragment_start, multiply_unit, units_a_block
from .prefill_x import aligned, allocate_steps, copy_step, own_entries, rows_of
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
    STEP: gl.constexpr,
    STEPS: gl.constexpr,
    AHEAD: gl.constexpr,
    PROGRAMS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    ALIGNED: gl.constexpr,
    TARGET: gl.constexpr,
):
    follow(TARGET)
    PART: gl.constexpr = min(BLOCK, ENTRIES_TOKENS)
    UNITS: gl.constexpr = units_a_block(TILES, STREAM_WARPS, gl.num_warps())
    first, units = gl.program_id(0), gl.load(num_valid) // BLOCK * UNITS
    if first >= units:
        return
    shared = allocate_steps(BLOCK, STEP, STEPS)
    x_shared = aligned(address_of(shared))
    expert, next_expert = gl.load(expert_ids + first // UNITS), expert_of(expert_ids, first + PROGRAMS, units, UNITS)
    start = fragment_start(weight, expert, first, TILES, RECORDS, CHUNKS, STREAM_WARPS)
    ring = fill_ring(start, STREAM_WARPS, RING)
    rows = rows_of(own_entries(sorted_ids, first // UNITS, True, BLOCK, TOPK), 1, TOPK)
    for step in gl.static_range(AHEAD):
        copy_step(x_shared + step * (BLOCK * STEP * 2), x, x_stride, rows, step * STEP, HIDDEN, BLOCK, STEP, ALIGNED)
    step = 0
    for unit in range(first, units, PROGRAMS):
        following = unit + PROGRAMS
        later_expert = expert_of(expert_ids, following + PROGRAMS, units, UNITS)  # so early that nobody waits for it
        next_entries = own_entries(sorted_ids, following // UNITS, following < units, BLOCK, TOPK)
        next_start = fragment_start(weight, next_expert, following, TILES, RECORDS, CHUNKS, STREAM_WARPS)
        sums, step, rows, ring = multiply_unit(
            x_shared, step, x, x_stride, rows, next_entries, ring, start, next_start,
            BLOCK, HIDDEN, RECORDS, CHUNKS, STREAM_WARPS, RING, STEP, STEPS, AHEAD, 1, TOPK, ALIGNED,
        )  # fmt: skip
        sums = finished(sums)
        thread = thread_numbers(threads_layout(gl.num_warps()))
        fragment = unit % UNITS * gl.num_warps() + thread // 32
        output = fragment * 8 + thread % 32 // 4
        present = output < INTERMEDIATE
        if bias is not None:
            biases = bias + expert.to(gl.int64) * (2 * INTERMEDIATE) + output
            gate_bias = gl.load(biases, mask=present, other=0.0)
            up_bias = gl.load(biases + INTERMEDIATE, mask=present, other=0.0)
        for first_token in gl.static_range(0, BLOCK, PART):
            # Asked for at once: a store would hold back every load behind it.
            place = unit // UNITS * BLOCK + first_token
            entries = own_tokens(sorted_ids + place, 0, PART)
            if sorted_weights is not None:
                shares = own_tokens(sorted_weights + place, 0, PART)
            own = sums[first_token // 2 : (first_token + PART) // 2]
            for token in gl.static_range(PART // 4):
                gate, up = own[token // 2 * 4 + token % 2] * SUM_SCALE, own[token // 2 * 4 + token % 2 + 2] * SUM_SCALE
                if sorted_weights is not None:
                    gate, up = gate * shares[token], up * shares[token]
                if bias is not None:
                    gate, up = gate + gate_bias, up + up_bias
                store_gated(h, gated(gate, up, ACTIVATION, ALPHA, LIMIT), entries[token], output, INTERMEDIATE, TOPK)
        start, expert, next_expert = next_start, next_expert, later_expert
    shared._keep_alive()


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
