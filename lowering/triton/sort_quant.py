"""Template `sort_quant`: `sort_tokens` and stage 1's `quant_sort` in one launch, to the byte, for few tokens.

Behind the programs of the token sort, one an expert, are those of the quantiser, each with a row of x and some of its
groups. They read the ids themselves, count the slots before their token's, and so know where its scales go: none waits
for the list, and the quantiser takes no time of its own while the GPU has room for both.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import release, wait
from .live_slots import expert_of, live_tokens, optional_operands
from .numbers import GROUP, quantise
from .quant import load_groups, store_codes
from .quant_sort import pad_layout, store_slots
from .scales import sort_constants
from .sort_tokens import BY_ELEMENT, LAST, SLOTS, chunk_of, count_slots, list_constants, lists, write_expert
from .template import POINTERS, Params, Template


@triton.jit
def _places(
    ids,
    expert_map,
    row,
    live,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Where the slots of token `row` are sorted to (i32 [S], S = k up to a power of two, -1: nowhere), LAST more where
    one is its expert's last, as in slot_rows; and the sorted rows of each expert (i32 [bins])."""
    padded: tl.constexpr = triton.next_power_of_2(TOPK)
    bins: tl.constexpr = triton.next_power_of_2(EXPERTS)
    place = tl.arange(0, padded)
    mine = tl.zeros_like(place) + row
    named = tl.load(ids + mine * TOPK + place, mask=(place < TOPK) & (mine < live), other=-1)
    rows, front = tl.zeros([bins], tl.int32), tl.zeros([bins], tl.int32)
    for first in range(0, live, ROWS):
        token, _, owner = chunk_of(ids, first, live, expert_map, EXPERTS, TOPK, MAP, ROWS)
        rows += tl.histogram(owner, bins, mask=owner >= 0)
        front += tl.histogram(owner, bins, mask=(owner >= 0) & (token < row))
    filled = (rows + (BLOCK - 1)) // BLOCK * BLOCK
    own = expert_of(named, expert_map, EXPERTS, MAP)
    expert = tl.where(own >= 0, own, 0)
    # Both in one word: the first row behind those of tokens in front, and how many there are from it on.
    behind = (tl.cumsum(filled) - filled + front).to(tl.int64) + ((rows - front).to(tl.int64) << 32)
    found = tl.gather(behind, expert, 0)
    same = (own[:, None] == own[None, :]) & (place[:, None] > place[None, :])
    earlier = tl.sum(same.to(tl.int32), 1)
    to = found.to(tl.int32) + earlier
    to += tl.where((found >> 32).to(tl.int32) - 1 == earlier, LAST, 0)
    return tl.where(own >= 0, to, -1), filled


@triton.jit
def sort_quant_kernel(
    ids,
    weights,
    num_tokens,
    expert_map,
    x,
    x_stride,
    sorted_ids,
    sorted_weights,
    expert_ids,
    num_valid,
    slot_rows,
    codes,
    sorted_scales,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALE_MODE: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # The next launch's programs take room on the SMs: released at once, this one took up to 0.7 us more.
    wait(TARGET)
    if tl.program_id(0) < EXPERTS:
        counts = count_slots(ids, num_tokens, expert_map, num_valid, slot_rows, M, EXPERTS, TOPK, MAP, BLOCK, ROWS)
        release(TARGET)
        write_expert(
            counts, ids, weights, num_tokens, expert_map, sorted_ids, sorted_weights, expert_ids, slot_rows,
            M, EXPERTS, TOPK, MAP, BLOCK, ROWS,
        )  # fmt: skip
    else:
        column_tiles: tl.constexpr = (WIDTH + GROUPS - 1) // GROUPS
        tile = tl.program_id(0) - EXPERTS
        row, group = tile // column_tiles, tile % column_tiles * GROUPS
        rows = row.to(tl.int64) + tl.arange(0, 1)
        live = live_tokens(num_tokens, M)
        # Asked for with the ids, not behind what follows from them.
        values = load_groups(x, x_stride, rows, rows < live, group, COLUMNS, GROUPS)
        places, filled = _places(ids, expert_map, row, live, EXPERTS, TOPK, MAP, BLOCK, ROWS)
        release(TARGET)
        packed, scales = quantise(values, SCALE_MODE, TARGET)
        if tl.max(places) >= 0:
            store_codes(codes, packed, rows, rows < live, group, COLUMNS, GROUPS)
            store_slots(sorted_scales, scales, places[None, :], group, BLOCK, GROUPS, WIDTH, LAYOUT)
        if row == 0:
            pad_layout(sorted_scales, tl.sum(filled).to(tl.uint32), group, BLOCK, GROUPS, WIDTH, LAYOUT)


def _arguments(params: Params) -> list[tuple[str, str]]:
    x = [("x", POINTERS[params["x"]]), ("x_stride", "i64")]
    made = [*lists(params), ("codes", "*u8"), ("sorted_scales", "*u8")]
    return [*SLOTS, *optional_operands(params), *x, *made]


def _constants(params: Params) -> dict[str, Any]:
    placed = sort_constants(params, params["columns"] // GROUP.value)
    del placed["STAGE"]  # it is 1: of rows of x in another order than the tokens' the ids say nothing
    own = {"SCALE_MODE": params["scale_mode"], "GROUPS": params["groups"]}
    return list_constants(params) | placed | own


SORT_QUANT = Template(sort_quant_kernel, _arguments, _constants, BY_ELEMENT)
"""Params: sort_tokens's; quant_sort's columns (H), x, scale_mode, layout and stage, which is 1; of a program of the
quantiser groups, a power of two."""
