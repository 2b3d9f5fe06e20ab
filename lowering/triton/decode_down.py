"""Template `decode_down`: down for sort blocks of few rows on sm_90, at the speed of the weights' memory."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.lowering.jobs import CompileError
from moeloom.runtime.stream import Stream

from .decode_chunk import OCTET, SUM_SCALE
from .decode_exchange import EXCHANGE
from .decode_params import decode_arguments, decode_constants, x_argument
from .decode_places import DOWN_COUNTERS, announce, leave_place
from .decode_routes import ROUTING, blocks_of, count_of, expert_at, routing_arguments, slots_of_experts
from .decode_rows import allocate_rows, is_half, load_row, own_entries, own_shares, put_row
from .decode_stream import (
    CHUNK_COLUMNS,
    fill_ring,
    first_record,
    multiply_unit,
    thread_numbers,
    threads_layout,
    units_a_part,
    zero_sums,
)
from .decode_units import BESIDE_L1, expert_of, experts_from, own_costly_records, own_units, run_of
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
    exchange,
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
    STREAM_WARPS: gl.constexpr,
    SPLITS: gl.constexpr,
    SPAN: gl.constexpr,
    CHUNKS: gl.constexpr,
    RING: gl.constexpr,
    PROGRAMS: gl.constexpr,
    PAIRED: gl.constexpr,
    EARLY: gl.constexpr,
    EXPERTS: gl.constexpr,
    TARGET: gl.constexpr,
):
    COLUMNS: gl.constexpr = SPAN * CHUNKS * CHUNK_COLUMNS
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    ROW: gl.constexpr = INTERMEDIATE // 2 if X == F4 else INTERMEDIATE
    # Which weights to read is known before the rows are: the list is old then, though not to this SM's L1; or the
    # logits are.
    cache: gl.constexpr = BESIDE_L1 if EARLY else ""
    announced = announce(exchange, DOWN_COUNTERS, PROGRAMS) if PAIRED else None
    if not EARLY:
        follow(TARGET)
    if logits is not None:
        blocks = blocks_of(slots_of_experts(logits, num_tokens, M, EXPERTS, TOPK, cache))
        first, last = run_of(count_of(blocks) * (SPLITS * UNITS), gl.program_id(0), PROGRAMS)
    elif BLOCK == OCTET:
        first, last = own_units(num_valid, gl.program_id(0), BLOCK, SPLITS * UNITS, PROGRAMS, cache)
    else:
        first, last = own_costly_records(
            num_valid, sorted_ids, exchange, announced, DOWN_COUNTERS,
            BLOCK, SPLITS * UNITS, 1, PROGRAMS, PAIRED, TOPK, cache,
        )  # fmt: skip
    if first >= last:
        if EARLY:
            follow(TARGET)
        if PAIRED:
            leave_place(exchange, DOWN_COUNTERS, PROGRAMS)
        return
    shared = allocate_x(COLUMNS, BLOCK)
    table = allocate_rows(BLOCK)
    x_address, rows = address_of(shared), address_of(table)
    if logits is not None:
        own_expert = expert_at(blocks, first // (SPLITS * UNITS))
    else:
        own_expert = expert_of(expert_ids, first, SPLITS * UNITS, cache)
    record = first_record(own_expert, first, last, TILES, SPLITS, SPAN, STREAM_WARPS)
    ring = fill_ring(weight, record, CHUNKS, RING, STREAM_WARPS)
    if EARLY:
        follow(TARGET)
    is_short, expert, next_expert = first < 0, first, first
    for unit in range(first, last):
        part = unit // UNITS
        block = part // SPLITS
        split = part % SPLITS
        if (unit == first) | (unit % UNITS == 0):
            expert, next_expert = experts_from(expert_ids, block, last, SPLITS * UNITS)
            entry = load_row(sorted_ids, block, BLOCK)
            share = None if sorted_weights is None else load_row(sorted_weights, block, BLOCK)
            gather_x(
                x_address, x, ROW, x_scales, sorted_ids, block, split * COLUMNS,
                BLOCK, 2, TOPK, INTERMEDIATE, COLUMNS, X, LAYOUT, QUANTISE,
            )  # fmt: skip
            put_row(rows, entry, share, None, BLOCK)
            gl.barrier()
            if BLOCK > OCTET:
                is_short = is_half(rows, TOPK)
        then = gl.where((unit + 1) % (SPLITS * UNITS) == 0, next_expert, expert)
        following = first_record(then, unit + 1, last, TILES, SPLITS, SPAN, STREAM_WARPS)

        # What the end needs is asked for before the product.
        output = _own_output(unit, UNITS)
        if bias is not None:
            biases = bias + expert.to(gl.int64) * HIDDEN + output
            biased = gl.where(split == 0, HIDDEN, 0)
            bias_0 = gl.load(biases, mask=output < biased, other=0.0)
            bias_8 = gl.load(biases + 8, mask=output + 8 < biased, other=0.0)

        sums, ring = multiply_unit(
            zero_sums(BLOCK // OCTET),
            ring,
            weight,
            record,
            following,
            x_address,
            is_short,
            0,
            SPAN,
            SPAN,
            CHUNKS,
            STREAM_WARPS,
        )
        output = _own_output(unit, UNITS)
        entries = own_entries(rows, BLOCK)
        if sorted_weights is not None:
            shares = own_shares(rows, BLOCK)
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
        record = following
    if PAIRED:
        leave_place(exchange, DOWN_COUNTERS, PROGRAMS)
    shared._keep_alive()
    table._keep_alive()


@gluon.jit
def _own_output(unit, UNITS: gl.constexpr):
    """The first of the two outputs of this thread. Made anew after the product: a register less during it."""
    thread = thread_numbers(threads_layout(gl.num_warps()))
    return unit % UNITS * (16 * gl.num_warps()) + thread // 32 * 16 + thread % 32 // 4


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
    exchanged = [EXCHANGE] if params["paired"] else []
    return [x_argument(params), *routing_arguments(params), *decode_arguments(params), *exchanged, ("out", "*fp32")]


def constants(params: Params) -> dict[str, Any]:
    stream, splits = Stream(params["hidden"], params["intermediate"], params["stream_warps"]), params["splits"]
    if params["num_warps"] % params["stream_warps"]:
        raise CompileError(
            f"{params['num_warps']} warps do not share out tiles of {params['stream_warps']} fragments; "
            "choose a multiple of the stream's warps"
        )
    return {
        **absent((*ROUTING, *OPTIONAL, EXCHANGE[0]), arguments(params)),
        "EXPERTS": params["experts"],
        **decode_constants(params, stream, splits),
        "STREAM_WARPS": params["stream_warps"],
        "SPLITS": splits,
        "SPAN": stream.records // splits,
    }


DECODE_DOWN = Template(decode_down_kernel, arguments, constants)
