"""Template `decode_routed_gate_up`: routing, token sort and gate_up in one launch on sm_90, for up to OCTET tokens.

Routers that choose by logits alone are served. The launch before made the logits; x is older, so it is gathered before
the wait, once: the rows of every block are the tokens, and a token without the block's expert is a column that nobody
stores. The last program writes the lists that the launches behind read.
"""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.lowering.jobs import CompileError
from moeloom.runtime.stream import Stream

from .decode_chunk import OCTET
from .decode_exchange import EXCHANGE, add_all_sums, own_records, put_sums, run_of_program
from .decode_gate_up import own_bias, store_unit
from .decode_params import decode_constants
from .decode_routes import (
    allocate_tables,
    blocks_of,
    count_of,
    expert_at,
    fill_tables,
    slots_of_experts,
    tabled_entries,
    tabled_expert,
    write_lists,
)
from .decode_stream import CHUNK_COLUMNS, fill_ring, multiply_unit, zero_sums
from .decode_units import BESIDE_L1, shared_run_of
from .decode_x import address_of, allocate_x, gather_tokens
from .dependents import follow
from .product_params import absent, activation_constants
from .route import ROUTED
from .sort_tokens import SORTED
from .template import POINTERS, Params, Template


@gluon.jit
def decode_routed_gate_up_kernel(
    x,
    x_stride,
    logits,
    num_tokens,
    weight,
    bias,
    exchange,
    weights,
    ids,
    sorted_ids,
    sorted_weights,
    expert_ids,
    num_valid,
    h,
    M,
    HIDDEN: gl.constexpr,
    INTERMEDIATE: gl.constexpr,
    TOPK: gl.constexpr,
    QUANTISE: gl.constexpr,
    TILES: gl.constexpr,
    RECORDS: gl.constexpr,
    CHUNKS: gl.constexpr,
    RING: gl.constexpr,
    PROGRAMS: gl.constexpr,
    EXPERTS: gl.constexpr,
    SCORE: gl.constexpr,
    RENORMALISE: gl.constexpr,
    SCALE: gl.constexpr,
    COUNTED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ALPHA: gl.constexpr,
    LIMIT: gl.constexpr,
    TARGET: gl.constexpr,
):
    COLUMNS: gl.constexpr = RECORDS * CHUNKS * CHUNK_COLUMNS
    BLOCK_RECORDS: gl.constexpr = TILES * RECORDS
    shared = allocate_x(COLUMNS, OCTET)
    tables = allocate_tables(TOPK)
    x_address, table = address_of(shared), address_of(tables)
    gather_tokens(x_address, x, x_stride, M, HIDDEN, COLUMNS, QUANTISE, BESIDE_L1)
    follow(TARGET)
    slots = slots_of_experts(logits, num_tokens, M, EXPERTS, TOPK, "")
    blocks = blocks_of(slots)
    if gl.program_id(0) == PROGRAMS - 1:
        write_lists(
            logits, num_tokens, slots, blocks, weights, ids, sorted_ids, sorted_weights, expert_ids,
            num_valid, M, EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, COUNTED,
        )  # fmt: skip
        return
    begin, end = shared_run_of(count_of(blocks) * TILES, gl.program_id(0), RECORDS, PROGRAMS - 1)
    if begin >= end:
        return
    record = expert_at(blocks, begin // BLOCK_RECORDS) * BLOCK_RECORDS + begin % BLOCK_RECORDS
    ring = fill_ring(weight, record, CHUNKS, RING, gl.num_warps())
    fill_tables(table, slots, blocks, TOPK)
    gl.barrier()
    position = begin
    while position < end:
        first, last = own_records(position, end, RECORDS)
        behind = position + last - first
        next_expert = tabled_expert(table, gl.minimum(behind, end - 1) // BLOCK_RECORDS, TOPK)
        following = gl.where(behind < end, next_expert * BLOCK_RECORDS + behind % BLOCK_RECORDS, 0)

        # What the end needs is asked for before the product.
        expert = record // BLOCK_RECORDS
        if bias is not None:
            gate_bias, up_bias = own_bias(bias, expert, position // RECORDS, INTERMEDIATE, TILES)
        else:
            gate_bias, up_bias = None, None
        sums, ring = multiply_unit(
            zero_sums(1), ring, weight, record, following, x_address, False, first, last, RECORDS,
            CHUNKS, gl.num_warps(),
        )  # fmt: skip
        if first > 0:
            put_sums(exchange, run_of_program(PROGRAMS - 1), sums, last == RECORDS)
        else:
            if last < RECORDS:
                sums = add_all_sums(exchange, run_of_program(PROGRAMS - 1) + 1, sums)
            store_unit(
                h, sums, gate_bias, up_bias, None, tabled_entries(table, expert, TOPK), position // RECORDS,
                OCTET, INTERMEDIATE, TOPK, TILES, ACTIVATION, ALPHA, LIMIT,
            )  # fmt: skip
        record, position = following, behind
    shared._keep_alive()
    tables._keep_alive()


def arguments(params: Params) -> list[tuple[str, str]]:
    """Operands of docs/program.md, x with its row stride; then the lists and h."""
    count = [("num_tokens", "*i32")] if params["has_num_tokens"] else []
    bias = [("bias", "*fp32")] if params["has_bias"] else []
    logits = [("logits", POINTERS[params["logits"]])]
    read = [("x", "*bf16"), ("x_stride", "i64"), *logits, *count, ("weight", "*i32"), *bias]
    return [*read, EXCHANGE, *ROUTED, *SORTED, ("h", "*bf16")]


def constants(params: Params) -> dict[str, Any]:
    if params["x"] != "bf16" or params["block"] != OCTET.value:
        raise CompileError(
            f"decode_routed_gate_up takes bf16 x in sort blocks of {OCTET.value} rows, not {params['x']} in blocks of "
            f"{params['block']}: launch route_sort and decode_gate_up"
        )
    stream = Stream(2 * params["intermediate"], params["hidden"], params["num_warps"])
    sizes = decode_constants({**params, "layout": "none", "early": False, "paired": False}, stream, 1)
    for unused in ("BLOCK", "EARLY", "PAIRED", "X", "LAYOUT"):
        del sizes[unused]
    names = ("experts", "score", "renormalise", "scale", "counted")
    return {
        **absent(("num_tokens", "bias"), arguments(params)),
        **sizes,
        **{name.upper(): params[name] for name in names},
        **activation_constants(params),
        "RECORDS": stream.records,
    }


DECODE_ROUTED_GATE_UP = Template(decode_routed_gate_up_kernel, arguments, constants)
