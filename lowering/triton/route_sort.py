"""Template `route_sort`: `route` and `sort_tokens` in one launch, to the byte, for few tokens.

One program an expert, as in the token sort; each routes every token for itself, so that none waits for another. The
first one writes the ids and weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependents import follow
from .live_slots import live_tokens
from .route import ROUTED, columns_of, routed, router_arguments, router_constants, store_routing
from .sort_tokens import first_row, lists, write_blocks, write_num_valid, write_rowless, write_slots
from .template import Params, Template


@triton.jit
def _slots_of(
    logits,
    stride,
    correction_bias,
    weights,
    ids,
    first,
    live,
    M,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    WRITES: tl.constexpr,
):
    """Tokens, slots, experts (-1: none) and weights of ROWS tokens from `first` on. WRITES: the first program does.

    Tokens from `live` on have no expert.
    """
    rows = first + tl.arange(0, ROWS)
    column, slot = tl.arange(0, columns_of(EXPERTS, GROUPS)), tl.arange(0, triton.next_power_of_2(TOPK))
    chosen, weight = routed(
        logits, stride, correction_bias, rows, column, slot, M,
        EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, GROUPS, TOP_GROUPS,
    )  # fmt: skip
    if WRITES:
        store_routing(weights, ids, rows, slot, chosen, weight, live, tl.where(tl.program_id(0) == 0, M, 0), TOPK)
    padded: tl.constexpr = chosen.shape[1]
    i = tl.arange(0, ROWS * padded)
    token, slot = first + i // padded, i % padded
    owner = tl.where((token < live) & (slot < TOPK), tl.reshape(chosen, [ROWS * padded]), -1)
    return token, slot, owner, tl.reshape(weight, [ROWS * padded])


@triton.jit
def route_sort_kernel(
    logits,
    stride,
    correction_bias,
    num_tokens,
    weights,
    ids,
    sorted_ids,
    sorted_weights,
    expert_ids,
    num_valid,
    slot_rows,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The first ROWS tokens stay in registers between counting and writing; those beyond are routed again.

    COUNTED: the sorted list is of the live tokens alone, not of M.
    """
    follow(TARGET)
    expert = tl.program_id(0)
    live = live_tokens(num_tokens, M)
    listed = live if COUNTED else M
    bins: tl.constexpr = triton.next_power_of_2(EXPERTS)
    token, slot, owner, shares = _slots_of(
        logits, stride, correction_bias, weights, ids, 0, live, M,
        EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, GROUPS, TOP_GROUPS, ROWS, True,
    )  # fmt: skip
    rows = tl.histogram(owner, bins, mask=owner >= 0)
    if slot_rows is not None and expert == 0:
        write_rowless(slot_rows, token, slot, owner, M, TOPK)
    for first in range(ROWS, M, ROWS):
        more_token, more_slot, more, _ = _slots_of(
            logits, stride, correction_bias, weights, ids, first, live, M,
            EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, GROUPS, TOP_GROUPS, ROWS, True,
        )  # fmt: skip
        rows += tl.histogram(more, bins, mask=more >= 0)
        if slot_rows is not None and expert == 0:
            write_rowless(slot_rows, more_token, more_slot, more, M, TOPK)
    if expert == 0:
        write_num_valid(num_valid, rows, listed, EXPERTS, BLOCK)
    mine = tl.sum(tl.where(tl.arange(0, bins) == expert, rows, 0))
    if mine == 0:
        return
    start = first_row(rows, expert, BLOCK)
    end = start + mine
    write_blocks(sorted_ids, sorted_weights, expert_ids, start, mine, expert, listed, TOPK, BLOCK)
    start = write_slots(sorted_ids, sorted_weights, slot_rows, shares, token, slot, owner == expert, start, end, TOPK)
    for first in range(ROWS, live, ROWS):
        token, slot, owner, shares = _slots_of(
            logits, stride, correction_bias, weights, ids, first, live, M,
            EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, GROUPS, TOP_GROUPS, ROWS, False,
        )  # fmt: skip
        start = write_slots(
            sorted_ids, sorted_weights, slot_rows, shares, token, slot, owner == expert, start, end, TOPK
        )


def _arguments(params: Params) -> list[tuple[str, str]]:
    return [*router_arguments(params), *ROUTED, *lists(params)]


def _constants(params: Params) -> dict[str, object]:
    absent = {} if params["has_slot_rows"] else {"slot_rows": None}
    return router_constants(params) | {"BLOCK": params["block"], "COUNTED": params["counted"]} | absent


ROUTE_SORT = Template(route_sort_kernel, _arguments, _constants)
"""Params: route's, block, counted, has_slot_rows, rows (tokens a step)."""
