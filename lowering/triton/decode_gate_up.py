"""Template `decode_gate_up`: gate_up for sort blocks of few rows on sm_90, at the speed of the weights' memory."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import Stream

from .activation import gated
from .decode_chunk import OCTET, SUM_SCALE
from .decode_exchange import EXCHANGE, add_all_sums, own_records, put_sums, run_of_program, take_sums
from .decode_params import decode_arguments, decode_constants, x_argument
from .decode_places import GATE_UP_COUNTERS, announce, leave_place
from .decode_rows import (
    allocate_rows,
    expert_behind,
    is_half,
    load_row,
    own_entries,
    own_shares,
    put_row,
)
from .decode_stream import (
    CHUNK_COLUMNS,
    fill_ring,
    multiply_unit,
    thread_numbers,
    threads_layout,
    zero_sums,
)
from .decode_units import BESIDE_L1, expert_of, own_costly_records, shared_run_of
from .decode_x import address_of, allocate_x, gather_x
from .dependents import follow
from .product_params import OPTIONAL, absent, activation_constants
from .template import Params, Template


@gluon.jit
def decode_gate_up_kernel(
    x,
    x_stride,
    x_scales,
    sorted_ids,
    expert_ids,
    num_valid,
    sorted_weights,
    weight,
    bias,
    exchange,
    h,
    M,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    BLOCK: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
    QUANTISE: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    RING: gl.constexpr,
    PROGRAMS: gl.constexpr,
    PAIRED: gl.constexpr,
    EARLY: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    TARGET: gl.constexpr,
):
    COLUMNS: gl.constexpr = RECORDS * CHUNKS * CHUNK_COLUMNS
    BLOCK_RECORDS: gl.constexpr = TILES * RECORDS
    # Which weights to read is known before the rows are: the list is old then, though not to this SM's L1.
    cache: gl.constexpr = BESIDE_L1 if EARLY else ""
    announced = announce(exchange, GATE_UP_COUNTERS, PROGRAMS) if PAIRED else None
    if not EARLY:
        follow(TARGET)
    program = gl.program_id(0)
    if BLOCK == OCTET:
        blocks = gl.load(num_valid, cache_modifier=cache) // BLOCK
        begin, end = shared_run_of(blocks * TILES, program, RECORDS, PROGRAMS)
    else:
        begin, end = own_costly_records(
            num_valid, sorted_ids, exchange, announced, GATE_UP_COUNTERS,
            BLOCK, TILES, RECORDS, PROGRAMS, PAIRED, TOPK, cache,
        )  # fmt: skip
    if begin >= end:
        if EARLY:
            follow(TARGET)
        if PAIRED:
            leave_place(exchange, GATE_UP_COUNTERS, PROGRAMS)
        return
    shared = allocate_x(COLUMNS, BLOCK)
    table = allocate_rows(BLOCK)
    rows = address_of(table)
    record = expert_of(expert_ids, begin, BLOCK_RECORDS, cache) * BLOCK_RECORDS + begin % BLOCK_RECORDS
    ring = fill_ring(weight, record, CHUNKS, RING, gl.num_warps())
    if EARLY:
        follow(TARGET)
    position, is_new, is_short = begin, begin < end, begin > end
    while position < end:
        unit = position // RECORDS
        if is_new:
            block = unit // TILES
            entry = load_row(sorted_ids, block, BLOCK)
            share = None if sorted_weights is None else load_row(sorted_weights, block, BLOCK)
            next_expert = expert_of(expert_ids, gl.minimum(position + BLOCK_RECORDS, end - 1), BLOCK_RECORDS, "")
            gather_x(
                address_of(shared), x, x_stride, x_scales, sorted_ids, block, 0,
                BLOCK, 1, TOPK, HIDDEN, COLUMNS, X, LAYOUT, QUANTISE,
            )  # fmt: skip
            put_row(rows, entry, share, next_expert, BLOCK)
            gl.barrier()
            if BLOCK > OCTET:
                is_short = is_half(rows, TOPK)
        first, last = (0, RECORDS) if PAIRED else own_records(position, end, RECORDS)
        behind = position + last - first
        is_new = behind % BLOCK_RECORDS == 0
        following = gl.where(is_new, expert_behind(rows, BLOCK) * BLOCK_RECORDS, record + last - first)
        following = gl.where(behind < end, following, 0)

        # What the end needs is asked for before the product.
        if bias is not None:
            gate_bias, up_bias = own_bias(bias, record // BLOCK_RECORDS, unit, INTERMEDIATE, TILES)
        else:
            gate_bias, up_bias = None, None

        sums = zero_sums(BLOCK // OCTET)
        if BLOCK > OCTET and not PAIRED and last < RECORDS:
            # One other owner, which did this first: now its sums take no registers beside those of the product.
            sums, _ = take_sums(exchange, run_of_program(PROGRAMS) + 1, sums)
        sums, ring = multiply_unit(
            sums, ring, weight, record, following, address_of(shared), is_short, first, last, RECORDS,
            CHUNKS, gl.num_warps(),
        )  # fmt: skip
        if not PAIRED and position % RECORDS > 0:
            put_sums(exchange, run_of_program(PROGRAMS), sums, BLOCK > OCTET or last == RECORDS)
        else:
            if BLOCK == OCTET and last < RECORDS:
                sums = add_all_sums(exchange, run_of_program(PROGRAMS) + 1, sums)
            entries = own_entries(rows, BLOCK)
            shares = None if sorted_weights is None else own_shares(rows, BLOCK)
            store_unit(
                h, sums, gate_bias, up_bias, shares, entries, position // RECORDS,
                BLOCK, INTERMEDIATE, TOPK, TILES, ACTIVATION, ALPHA, LIMIT,
            )  # fmt: skip
        record, position = following, behind
    if PAIRED:
        leave_place(exchange, GATE_UP_COUNTERS, PROGRAMS)
    shared._keep_alive()
    table._keep_alive()


@gluon.jit
def store_unit(
    h,
    sums,
    gate_bias,
    up_bias,
    shares,
    entries,
    unit,
    BLOCK: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    TILES: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
):
    """The activation of a unit's finished sums to the rows that `entries` of sorted_ids name."""
    output = own_output(unit, TILES)
    for token in gl.static_range(2 * (BLOCK // OCTET)):
        gate, up = sums[token // 2 * 4 + token % 2] * SUM_SCALE, sums[token // 2 * 4 + token % 2 + 2] * SUM_SCALE
        if shares is not None:
            gate, up = gate * shares[token], up * shares[token]
        if gate_bias is not None:
            gate, up = gate + gate_bias, up + up_bias
        store_gated(h, gated(gate, up, ACTIVATION, ALPHA, LIMIT), entries[token], output, INTERMEDIATE, TOPK)


@gluon.jit
def own_bias(bias, expert, unit, INTERMEDIATE: gl.constexpr, TILES: gl.constexpr):
    """The biases of gate and up of this thread's output."""
    output = own_output(unit, TILES)
    present = output < INTERMEDIATE
    biases = bias + expert.to(gl.int64) * (2 * INTERMEDIATE) + output
    return gl.load(biases, mask=present, other=0.0), gl.load(biases + INTERMEDIATE, mask=present, other=0.0)


@gluon.jit
def own_output(unit, TILES: gl.constexpr):
    """The output whose gate and up this thread has. Made anew after the product: a register less during it."""
    thread = thread_numbers(threads_layout(gl.num_warps()))
    return unit % TILES * (8 * gl.num_warps()) + thread // 32 * 8 + thread % 32 // 4


@gluon.jit
def store_gated(h, values, entry, output, INTERMEDIATE: gl.constexpr, TOPK: gl.constexpr):
    """A value a thread to column `output` of row token*k+slot of `entry` of sorted_ids."""
    slot = entry.to(gl.uint32, bitcast=True) >> 24
    row = (entry & 0xFFFFFF).to(gl.int64) * TOPK + slot.to(gl.int64)
    mask = (output < INTERMEDIATE) & (slot != TOPK)
    gl.store(h + row * INTERMEDIATE + output, values.to(gl.bfloat16), mask=mask)


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md, x with its row stride."""
    return [x_argument(params), ("x_stride", "i64"), *decode_arguments(params), EXCHANGE, ("h", "*bf16")]


def constants(params: Params) -> dict[str, Any]:
    stream = Stream(2 * params["intermediate"], params["hidden"], params["num_warps"])
    return {
        **absent(OPTIONAL, arguments(params)),
        **decode_constants(params, stream, 1),
        **activation_constants(params),
        "RECORDS": stream.records,
    }


DECODE_GATE_UP = Template(decode_gate_up_kernel, arguments, constants)
