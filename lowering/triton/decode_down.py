"""Template `decode_down`: down for sort blocks of few rows on sm_90, at the speed of the weights' memory."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import Stream

from .decode_chunk import OCTET, SUM_SCALE
from .decode_params import decode_arguments, decode_constants, x_argument
from .decode_routes import ROUTING, blocks_of, count_of, expert_at, routing_arguments, slots_of_experts
from .decode_stream import (
    CHUNK_COLUMNS,
    fill_ring,
    first_record,
    is_padding,
    multiply_unit,
    own_tokens,
    thread_numbers,
    threads_layout,
)
from .decode_units import BESIDE_L1, expert_of, own_costly_units, own_units, run_of
from .decode_x import address_of, allocate_x, gather_x
from .dependents import follow
from .product_params import OPTIONAL, absent
from .products import F4
from .template import Params, Template


@gluon.jit
def decode_down_kernel(
    x,
    logits,
    num_tokens,
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
    BLOCK: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
    QUANTISE: gl.constexpr,
    TILES: gl.constexpr,
    SPLITS: gl.constexpr,
    SPAN: gl.constexpr,
    CHUNKS: gl.constexpr,
    RING: gl.constexpr,
    PROGRAMS: gl.constexpr,
    EARLY: gl.constexpr,
    EXPERTS: gl.constexpr,
    TARGET: gl.constexpr,
):
    COLUMNS: gl.constexpr = SPAN * CHUNKS * CHUNK_COLUMNS
    ROW: gl.constexpr = INTERMEDIATE // 2 if X == F4 else INTERMEDIATE
    # Which weights to read is known before the rows are: the list is old then, though not to this SM's L1; or the
    # logits are.
    cache: gl.constexpr = BESIDE_L1 if EARLY else ""
    if not EARLY:
        follow(TARGET)
    if logits is not None:
        blocks = blocks_of(slots_of_experts(logits, num_tokens, M, EXPERTS, TOPK, cache))
        first, last = run_of(count_of(blocks) * (SPLITS * TILES), gl.program_id(0), PROGRAMS)
    elif BLOCK == OCTET:
        first, last = own_units(num_valid, gl.program_id(0), BLOCK, SPLITS * TILES, PROGRAMS, cache)
    else:
        first, last = own_costly_units(
            num_valid, sorted_ids, gl.program_id(0), BLOCK, SPLITS * TILES, PROGRAMS, TOPK, cache
        )
    if first >= last:
        if EARLY:
            follow(TARGET)
        return
    shared = allocate_x(COLUMNS, BLOCK)
    x_address = address_of(shared)
    if logits is not None:
        own_expert = expert_at(blocks, first // (SPLITS * TILES))
        next_expert = expert_at(blocks, gl.minimum(first + 1, last - 1) // (SPLITS * TILES))
    else:
        next_expert = expert_of(expert_ids, first + 1, last, SPLITS * TILES, cache)
        own_expert = expert_of(expert_ids, first, last, SPLITS * TILES, cache)
    record = first_record(own_expert, first, last, TILES, SPLITS, SPAN)
    ring = fill_ring(weight, record, CHUNKS, RING)
    if EARLY:
        follow(TARGET)
    is_short = first < 0
    for unit in range(first, last):
        part = unit // TILES
        block = part // SPLITS
        split = part % SPLITS
        if (unit == first) | (unit % TILES == 0):
            gather_x(
                x_address, x, ROW, x_scales, sorted_ids, block, split * COLUMNS,
                BLOCK, 2, TOPK, INTERMEDIATE, COLUMNS, X, LAYOUT, QUANTISE,
            )  # fmt: skip
            if BLOCK > OCTET:
                is_short = is_padding(sorted_ids, block * BLOCK + OCTET, TOPK)
        following = first_record(next_expert, unit + 1, last, TILES, SPLITS, SPAN)
        later_expert = expert_of(expert_ids, unit + 2, last, SPLITS * TILES)  # so early that nobody waits for it

        # What the end needs is asked for before the product.
        output = _own_output(unit, TILES)
        entries = own_tokens(sorted_ids, block, BLOCK)
        if bias is not None:
            expert = record // (TILES * SPLITS * SPAN)
            biases = bias + expert.to(gl.int64) * HIDDEN + output
            biased = gl.where(split == 0, HIDDEN, 0)
            bias_0 = gl.load(biases, mask=output < biased, other=0.0)
            bias_8 = gl.load(biases + 8, mask=output + 8 < biased, other=0.0)
        if sorted_weights is not None:
            shares = own_tokens(sorted_weights, block, BLOCK)

        sums, ring = multiply_unit(ring, weight, record, following, x_address, is_short, BLOCK, SPAN, CHUNKS, RING)
        output = _own_output(unit, TILES)
        partial = out + split.to(gl.int64) * M * (TOPK * HIDDEN)
        for token in gl.static_range(2 * (BLOCK // OCTET)):
            sum_0, sum_8 = (
                sums[token // 2 * 4 + token % 2] * SUM_SCALE,
                sums[token // 2 * 4 + token % 2 + 2] * SUM_SCALE,
            )
            if bias is not None:
                sum_0, sum_8 = sum_0 + bias_0, sum_8 + bias_8
            if sorted_weights is not None:
                sum_0, sum_8 = sum_0 * shares[token], sum_8 * shares[token]
            store_pair(partial, sum_0, sum_8, entries[token], output, HIDDEN, TOPK)
        record, next_expert = following, later_expert
    shared._keep_alive()


@gluon.jit
def _own_output(unit, TILES: gl.constexpr):
    """The first of the two outputs of this thread. Made anew after the product: a register less during it."""
    thread = thread_numbers(threads_layout(gl.num_warps()))
    return unit % TILES * (16 * gl.num_warps()) + thread // 32 * 16 + thread % 32 // 4


@gluon.jit
def store_pair(out, value, value_8, entry, output, HIDDEN: gl.constexpr, TOPK: gl.constexpr):
    """Two values a thread to columns `output` and `output` + 8 of row token*k+slot of `entry` of sorted_ids."""
    slot = entry.to(gl.uint32, bitcast=True) >> 24
    row = (entry & 0xFFFFFF).to(gl.int64) * TOPK + slot.to(gl.int64)
    places = out + row * HIDDEN + output
    gl.store(places, value, mask=(output < HIDDEN) & (slot != TOPK))
    gl.store(places + 8, value_8, mask=(output + 8 < HIDDEN) & (slot != TOPK))


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md; x is dense."""
    return [x_argument(params), *routing_arguments(params), *decode_arguments(params), ("out", "*fp32")]


def constants(params: Params) -> dict[str, Any]:
    stream, splits = Stream(params["hidden"], params["intermediate"], params["num_warps"]), params["splits"]
    return {
        **absent((*ROUTING, *OPTIONAL), arguments(params)),
        "EXPERTS": params["experts"],
        **decode_constants(params, stream, splits),
        "SPLITS": splits,
        "SPAN": stream.records // splits,
    }


DECODE_DOWN = Template(decode_down_kernel, arguments, constants)
