"""Templates `sort_tokens` and `sort_count`, `sort_scan`, `sort_scatter`: group token slots by expert.

The list is described in docs/contract.md, section 2.

Every expert's rows are written by programs of its own, which find their slots by reading all ids: no program waits for
another, and nothing depends on the order in which they run. For few tokens one launch does (`sort_tokens`: each program
counts all slots); for many, counting, summing and writing are spread over chunks of tokens in three launches.

A chunk is ROWS tokens with their slots padded to a power of two, in the order of the list: tokens, then slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moeloom.runtime.stream import LAST_ROW

from .dependents import follow
from .live_slots import expert_of, live_tokens, optional_constants, optional_operands
from .template import OPTIONAL, Params, Template

_STEP = tl.constexpr(128)
"""Entries of expert_ids written at a time, and chunks summed at a time."""
LAST = tl.constexpr(LAST_ROW)
"""Added to the row of a slot in slot_rows: the last of its expert. Padding up to the end of its block follows it."""


@triton.jit
def slot_of(values, token, slot, TOPK: tl.constexpr):
    """Pointers to slots in `values` [M, k]: ids, weights or slot_rows.

    With more than four slots a token, a step of `sort_tokens` has more slots than threads. Neighbours in one thread
    would save it a load, and cost an exchange through shared memory before each store to the list, where they are none.
    """
    if TOPK > 4:
        return values + tl.max_contiguous(token * TOPK + slot, 1)
    return values + token * TOPK + slot


@triton.jit
def chunk_of(
    ids, first, live, expert_map, EXPERTS: tl.constexpr, TOPK: tl.constexpr, MAP: tl.constexpr, ROWS: tl.constexpr
):
    """The tokens, slots and experts (-1: none) of the chunk that starts at token `first`."""
    padded: tl.constexpr = triton.next_power_of_2(TOPK)
    i = tl.arange(0, ROWS * padded)
    token, slot = first + i // padded, i % padded
    named = tl.load(slot_of(ids, token, slot, TOPK), mask=(token < live) & (slot < TOPK), other=-1)
    return token, slot, expert_of(named, expert_map, EXPERTS, MAP)


@triton.jit
def first_row(rows, expert, BLOCK: tl.constexpr):
    """Where the list of `expert` starts, from the i32 `rows` of every expert: each fills up its last block."""
    padded = (rows + (BLOCK - 1)) // BLOCK * BLOCK
    return tl.sum(tl.where(tl.arange(0, rows.shape[0]) < expert, padded, 0))


@triton.jit
def _local_id(expert, expert_map, EXPERTS: tl.constexpr, MAP: tl.constexpr):
    """The number that expert_ids shows: with a mask, the count of the masked-in experts before."""
    if MAP == "mask":
        e = tl.arange(0, triton.next_power_of_2(EXPERTS))
        mask = tl.load(expert_map + e, mask=e < EXPERTS, other=0) != 0
        expert = tl.sum((mask & (e < expert)).to(tl.int32))
    return expert


@triton.jit
def write_blocks(
    sorted_ids, sorted_weights, expert_ids, start, rows, expert, live, TOPK: tl.constexpr, BLOCK: tl.constexpr
):
    """Name the expert of its blocks and pad the last one; the slots' own entries lie before and are not touched."""
    end = start + (rows + (BLOCK - 1)) // BLOCK * BLOCK
    step = tl.arange(0, _STEP)
    for block in range(start // BLOCK, end // BLOCK, _STEP):
        tl.store(expert_ids + block + step, tl.zeros_like(step) + expert, mask=block + step < end // BLOCK)
    entry = end - BLOCK + tl.arange(0, triton.next_power_of_2(BLOCK))
    padding = (entry >= start + rows) & (entry < end)
    tl.store(sorted_ids + entry, ((tl.zeros_like(entry) + TOPK) << 24) | live, mask=padding)
    tl.store(sorted_weights + entry, tl.zeros(entry.shape, tl.float32), mask=padding)


@triton.jit
def write_num_valid(num_valid, rows, live, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    tl.store(num_valid, first_row(rows, EXPERTS, BLOCK))
    tl.store(num_valid + 1, live)


@triton.jit
def write_slots(sorted_ids, sorted_weights, slot_rows, shares, token, slot, here, start, end, TOPK: tl.constexpr):
    """Write the slots of a chunk that are `here`, of routing weights `shares`, from entry `start` on; the entry after
    them. `end`: the entry behind the expert's last one."""
    count = here.to(tl.int32)
    entry = start + tl.cumsum(count) - count
    tl.store(sorted_ids + entry, (slot << 24) | token, mask=here)
    tl.store(sorted_weights + entry, shares, mask=here)
    if slot_rows is not None:
        row = tl.where(entry == end - 1, entry + LAST, entry)
        tl.store(slot_of(slot_rows, token, slot, TOPK), row, mask=here)
    return start + tl.sum(count)


@triton.jit
def write_rowless(slot_rows, token, slot, owner, M, TOPK: tl.constexpr):
    """Mark the slots of a chunk that have no expert; those of tokens that are not live have none."""
    rowless = (owner < 0) & (token < M) & (slot < TOPK)
    tl.store(slot_of(slot_rows, token, slot, TOPK), tl.full(slot.shape, -1, tl.int32), mask=rowless)


@triton.jit
def count_slots(
    ids,
    num_tokens,
    expert_map,
    num_valid,
    slot_rows,
    M,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The slots of every expert (i32 [bins]), in a program of a sort in one launch. The first program writes what is no
    expert's."""
    expert = tl.program_id(0)
    live = live_tokens(num_tokens, M)
    bins: tl.constexpr = triton.next_power_of_2(EXPERTS)
    rows = tl.zeros([bins], tl.int32)
    counted = live
    if slot_rows is not None:
        counted = tl.where(expert == 0, M, live)
    for first in range(0, counted, ROWS):
        token, slot, owner = chunk_of(ids, first, live, expert_map, EXPERTS, TOPK, MAP, ROWS)
        rows += tl.histogram(owner, bins, mask=owner >= 0)
        if slot_rows is not None and expert == 0:
            write_rowless(slot_rows, token, slot, owner, M, TOPK)
    if expert == 0:
        write_num_valid(num_valid, rows, live, EXPERTS, BLOCK)
    return rows


@triton.jit
def write_expert(
    rows,
    ids,
    weights,
    num_tokens,
    expert_map,
    sorted_ids,
    sorted_weights,
    expert_ids,
    slot_rows,
    M,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The list of the program's expert, given the `rows` of each."""
    expert = tl.program_id(0)
    mine = tl.sum(tl.where(tl.arange(0, rows.shape[0]) == expert, rows, 0))
    if mine == 0:
        return
    live = live_tokens(num_tokens, M)
    start = first_row(rows, expert, BLOCK)
    end = start + mine
    local = _local_id(expert, expert_map, EXPERTS, MAP)
    write_blocks(sorted_ids, sorted_weights, expert_ids, start, mine, local, live, TOPK, BLOCK)
    for first in range(0, live, ROWS):
        token, slot, owner = chunk_of(ids, first, live, expert_map, EXPERTS, TOPK, MAP, ROWS)
        here = owner == expert
        shares = tl.load(slot_of(weights, token, slot, TOPK), mask=here)
        start = write_slots(sorted_ids, sorted_weights, slot_rows, shares, token, slot, here, start, end, TOPK)


@triton.jit
def sort_tokens_kernel(
    ids,
    weights,
    num_tokens,
    expert_map,
    sorted_ids,
    sorted_weights,
    expert_ids,
    num_valid,
    slot_rows,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program an expert."""
    follow(TARGET)
    rows = count_slots(ids, num_tokens, expert_map, num_valid, slot_rows, M, EXPERTS, TOPK, MAP, BLOCK, ROWS)
    write_expert(
        rows, ids, weights, num_tokens, expert_map, sorted_ids, sorted_weights, expert_ids, slot_rows,
        M, EXPERTS, TOPK, MAP, BLOCK, ROWS,
    )  # fmt: skip


@triton.jit
def sort_count_kernel(
    ids,
    num_tokens,
    expert_map,
    counts,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program a chunk: its slots of every expert."""
    follow(TARGET)
    chunk = tl.program_id(0)
    bins: tl.constexpr = triton.next_power_of_2(EXPERTS)
    _, _, owner = chunk_of(ids, chunk * ROWS, live_tokens(num_tokens, M), expert_map, EXPERTS, TOPK, MAP, ROWS)
    e = tl.arange(0, bins)
    tl.store(counts + e * tl.cdiv(M, ROWS) + chunk, tl.histogram(owner, bins, mask=owner >= 0), mask=e < EXPERTS)


@triton.jit
def sort_scan_kernel(counts, starts, totals, M, TARGET: tl.constexpr, ROWS: tl.constexpr):
    """One program an expert: its slots before each chunk, and in all."""
    follow(TARGET)
    expert, chunks = tl.program_id(0), tl.cdiv(M, ROWS)
    total = tl.zeros([], tl.int32)
    for first in range(0, chunks, _STEP):
        chunk = first + tl.arange(0, _STEP)
        place, inside = expert * chunks + chunk, chunk < chunks
        count = tl.load(counts + place, mask=inside, other=0)
        tl.store(starts + place, total + tl.cumsum(count) - count, mask=inside)
        total += tl.sum(count)
    tl.store(totals + expert, total)


@triton.jit
def sort_scatter_kernel(
    ids,
    weights,
    starts,
    totals,
    num_tokens,
    expert_map,
    sorted_ids,
    sorted_weights,
    expert_ids,
    num_valid,
    slot_rows,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program an expert and chunk; those of the first chunk write what belongs to the whole expert."""
    follow(TARGET)
    chunks = tl.cdiv(M, ROWS)
    expert, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    live = live_tokens(num_tokens, M)
    e = tl.arange(0, triton.next_power_of_2(EXPERTS))
    rows = tl.load(totals + e, mask=e < EXPERTS, other=0)
    if tl.program_id(0) == 0:
        write_num_valid(num_valid, rows, live, EXPERTS, BLOCK)
    token, slot, owner = chunk_of(ids, chunk * ROWS, live, expert_map, EXPERTS, TOPK, MAP, ROWS)
    if slot_rows is not None and expert == 0:
        write_rowless(slot_rows, token, slot, owner, M, TOPK)
    mine = tl.load(totals + expert)
    if mine == 0:
        return
    start = first_row(rows, expert, BLOCK)
    end = start + mine
    if chunk == 0:
        local = _local_id(expert, expert_map, EXPERTS, MAP)
        write_blocks(sorted_ids, sorted_weights, expert_ids, start, mine, local, live, TOPK, BLOCK)
    start += tl.load(starts + expert * chunks + chunk)
    here = owner == expert
    shares = tl.load(slot_of(weights, token, slot, TOPK), mask=here)
    write_slots(sorted_ids, sorted_weights, slot_rows, shares, token, slot, here, start, end, TOPK)


SORTED = [("sorted_ids", "*i32"), ("sorted_weights", "*fp32"), ("expert_ids", "*i32"), ("num_valid", "*i32")]
_SLOT_ROWS = ("slot_rows", "*i32")
SLOTS = [("ids", "*i32"), ("weights", "*fp32")]
BY_ELEMENT = ("ids", "weights", *OPTIONAL)


def _constants(params: Params) -> dict[str, object]:
    return optional_constants(params) | {"ROWS": params["rows"]}


def lists(params: Params) -> list[tuple[str, str]]:
    """The results: the sorted list, and where it is asked for the sorted row of each slot, -1 for none (LAST)."""
    return [*SORTED, _SLOT_ROWS] if params["has_slot_rows"] else SORTED


def list_constants(params: Params) -> dict[str, object]:
    absent = {} if params["has_slot_rows"] else {"slot_rows": None}
    return _constants(params) | {"BLOCK": params["block"]} | absent


SORT_TOKENS = Template(
    sort_tokens_kernel,
    lambda params: [*SLOTS, *optional_operands(params), *lists(params)],
    list_constants,
    BY_ELEMENT,
)
SORT_COUNT = Template(
    sort_count_kernel,
    lambda params: [("ids", "*i32"), *optional_operands(params), ("counts", "*i32")],
    _constants,
    BY_ELEMENT,
)
SORT_SCAN = Template(
    sort_scan_kernel,
    lambda params: [("counts", "*i32"), ("starts", "*i32"), ("totals", "*i32")],
    lambda params: {"ROWS": params["rows"]},
)
SORT_SCATTER = Template(
    sort_scatter_kernel,
    lambda params: [*SLOTS, ("starts", "*i32"), ("totals", "*i32"), *optional_operands(params), *lists(params)],
    list_constants,
    BY_ELEMENT,
)
