"""Template `decode_gate_up`: gate_up for sort blocks of few rows on sm_90, at the speed of the weights' memory."""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import Stream

from .activation import gated
from .decode_chunk import OCTET, SUM_SCALE
from .decode_params import decode_arguments, decode_constants, x_argument
from .decode_rows import allocate_rows, is_half, load_row, own_entries, own_shares, put_row
from .decode_stream import (
    CHUNK_COLUMNS,
    fill_ring,
    first_record,
    multiply_unit,
    thread_numbers,
    threads_layout,
)
from .decode_units import BESIDE_L1, expert_of, experts_from, own_costly_units, own_units
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
    EARLY: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    TARGET: gl.constexpr,
):
    COLUMNS: gl.constexpr = RECORDS * CHUNKS * CHUNK_COLUMNS
    # Which weights to read is known before the rows are: the list is old then, though not to this SM's L1.
    cache: gl.constexpr = BESIDE_L1 if EARLY else ""
    if not EARLY:
        follow(TARGET)
    if BLOCK == OCTET:
        first, last = own_units(num_valid, gl.program_id(0), BLOCK, TILES, PROGRAMS, cache)
    else:
        first, last = own_costly_units(num_valid, sorted_ids, gl.program_id(0), BLOCK, TILES, PROGRAMS, TOPK, cache)
    if first >= last:
        if EARLY:
            follow(TARGET)
        return
    shared = allocate_x(COLUMNS, BLOCK)
    table = allocate_rows(BLOCK)
    x_address, rows = address_of(shared), address_of(table)
    record = first_record(expert_of(expert_ids, first, TILES, cache), first, last, TILES, 1, RECORDS, gl.num_warps())
    ring = fill_ring(weight, record, CHUNKS, RING, gl.num_warps())
    if EARLY:
        follow(TARGET)
    is_short, expert, next_expert = first < 0, first, first
    for unit in range(first, last):
        block = unit // TILES
        if (unit == first) | (unit % TILES == 0):
            expert, next_expert = experts_from(expert_ids, block, last, TILES)
            entry = load_row(sorted_ids, block, BLOCK)
            share = None if sorted_weights is None else load_row(sorted_weights, block, BLOCK)
            gather_x(
                x_address, x, x_stride, x_scales, sorted_ids, block, 0,
                BLOCK, 1, TOPK, HIDDEN, COLUMNS, X, LAYOUT, QUANTISE,
            )  # fmt: skip
            put_row(rows, entry, share, BLOCK)
            gl.barrier()
            if BLOCK > OCTET:
                is_short = is_half(rows, TOPK)
        then = gl.where((unit + 1) % TILES == 0, next_expert, expert)
        following = first_record(then, unit + 1, last, TILES, 1, RECORDS, gl.num_warps())

        # What the end needs is asked for before the product.
        if bias is not None:
            gate_bias, up_bias = own_bias(bias, expert, unit, INTERMEDIATE, TILES)
        else:
            gate_bias, up_bias = None, None

        sums, ring = multiply_unit(
            ring, weight, record, following, x_address, is_short, BLOCK, RECORDS, CHUNKS, RING, gl.num_warps()
        )
        entries = own_entries(rows, BLOCK)
        shares = None if sorted_weights is None else own_shares(rows, BLOCK)
        store_unit(
            h, sums, gate_bias, up_bias, shares, entries, unit,
            BLOCK, INTERMEDIATE, TOPK, TILES, ACTIVATION, ALPHA, LIMIT,
        )  # fmt: skip
        record = following
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
    return [x_argument(params), ("x_stride", "i64"), *decode_arguments(params), ("h", "*bf16")]


def constants(params: Params) -> dict[str, Any]:
    stream = Stream(2 * params["intermediate"], params["hidden"], params["num_warps"])
    return {
        **absent(OPTIONAL, arguments(params)),
        **decode_constants(params, stream, 1),
        **activation_constants(params),
        "RECORDS": stream.records,
    }


DECODE_GATE_UP = Template(decode_gate_up_kernel, arguments, constants)
