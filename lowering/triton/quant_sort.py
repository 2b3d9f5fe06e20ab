"""Template `quant_sort`: MXFP4 with each scale at its sorted place, in one launch (docs/contract.md, section 4).

A program has one row of x, some of its groups, and some of the slots that the row occurs in: its token's k in stage 1,
one in stage 2. The token sort has said where they are sorted to, and which is its expert's last (`slot_rows`), so
nothing is searched, and no program has padding alone to write: the zeros that fill a sort block up belong to the last
row in it, and those behind the last block to the first row of x.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .numbers import GROUP, quantise
from .quant import load_groups, store_codes
from .scales import BLOCK_COLUMNS, BLOCK_ROWS, sort_constants, sorted_offset
from .sort_tokens import LAST
from .template import POINTERS, Params, Template

RUN = tl.constexpr(8)
"""Sorted rows written at a time, the first a multiple of it."""


@triton.jit
def _load_slots(slot_rows, rows, there, first, COUNT: tl.constexpr, PLACES: tl.constexpr):
    """i32 [R, COUNT]: what slot_rows [.., PLACES] says of slots `first`.. of `rows`; -1 of those that do not exist."""
    place = first + tl.arange(0, COUNT)[None, :]
    asked = there[:, None] & (place < PLACES)
    return tl.load(slot_rows + rows.to(tl.int64)[:, None] * PLACES + place, mask=asked, other=-1)


@triton.jit
def _store_rows(
    sorted_scales,
    scales,
    rows,
    ends,
    steps,
    group,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """`scales` u8 [R, GROUPS] at sorted `rows` u32 [R, S] and groups `group`.. of WIDTH, zeros behind them up to `ends`
    (where that is the row, nothing): `steps` of RUN rows at most.

    In the tiled layout lanes go along pairs of groups that are four apart, then along the rows: half a sector for eight
    rows in one store.
    """
    if LAYOUT == "tiled_32x8" and GROUPS >= BLOCK_COLUMNS:
        pair = tl.arange(0, GROUPS // 2)
        columns = (group + pair // 4 * BLOCK_COLUMNS + pair % 4)[:, None] + tl.arange(0, 2)[None, :] * 4
        tiles = tl.reshape(scales, [scales.shape[0], GROUPS // 8, 2, 4])
        scales = tl.reshape(tl.permute(tiles, [1, 3, 0, 2]), [GROUPS // 2, scales.shape[0], 2])
    else:
        columns = (group + tl.arange(0, GROUPS))[None, :]
        scales = scales[None, :, :]
    scales = scales[:, :, None, None, :]
    columns = columns[:, None, None, None, :]
    rows, ends = rows[None, :, :, None, None], ends[None, :, :, None, None]
    number = tl.arange(0, RUN)[None, None, None, :, None].to(tl.uint32)
    apart: tl.constexpr = WIDTH if LAYOUT == "row_major" else 4
    for step in range(0, steps):
        first = rows // RUN * RUN + step * RUN
        places = sorted_offset(first, columns, WIDTH, LAYOUT) + number * apart
        own = first + number
        mask = (own >= rows) & (own < ends) & (columns < WIDTH)
        tl.store(sorted_scales + places, tl.where(own == rows, scales, 0), mask=mask)


@triton.jit
def sorted_run(said, BLOCK: tl.constexpr):
    """Of slots (what slot_rows says of them) the sorted rows u32 and where the zeros behind them end, no row of those
    that have none."""
    to = said.to(tl.uint32, bitcast=True) % LAST
    end = tl.where(said >= LAST, (to // BLOCK + 1) * BLOCK, to + 1)
    return to, tl.where(said >= 0, end, to)


@triton.jit
def store_slots(
    sorted_scales,
    scales,
    said,
    group,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """`scales` u8 [R, GROUPS] of groups `group`.. to the places that slot_rows says of their slots (i32 [R, S]), and
    zeros behind those that are their expert's last."""
    to, end = sorted_run(said, BLOCK)
    steps = 1
    if RUN // BLOCK * BLOCK != RUN:  # else a block lies within so many rows
        steps = tl.max(tl.max(((end + RUN - 1) // RUN - to // RUN).to(tl.int32), 1), 0)
    _store_rows(sorted_scales, scales, to, end, steps, group, GROUPS, WIDTH, LAYOUT)


@triton.jit
def pad_layout(
    sorted_scales, used, group, BLOCK: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, LAYOUT: tl.constexpr
):
    """Zeros from the last block in use on up to a multiple of 32 rows, those of the layout's blocks."""
    if BLOCK // BLOCK_ROWS * BLOCK_ROWS != BLOCK:
        end = (used + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
        steps = ((end - used // RUN * RUN) // RUN).to(tl.int32)
        rows, ends = tl.full([1, 1], used, tl.uint32), tl.full([1, 1], end, tl.uint32)
        scales = tl.zeros([1, GROUPS], tl.uint8)
        _store_rows(sorted_scales, scales, rows, ends, steps, group, GROUPS, WIDTH, LAYOUT)


@triton.jit
def quant_sort_kernel(
    x,
    x_stride,
    slot_rows,
    num_valid,
    codes,
    sorted_scales,
    M,
    TARGET: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALE_MODE: tl.constexpr,
    STAGE: tl.constexpr,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    EARLY: tl.constexpr,
):
    column_tiles: tl.constexpr = (WIDTH + GROUPS - 1) // GROUPS
    places: tl.constexpr = TOPK if STAGE == 1 else 1  # of a row of x
    shares: tl.constexpr = (places + SLOTS - 1) // SLOTS
    share = tl.program_id(0) // column_tiles % shares
    group = tl.program_id(0) % column_tiles * GROUPS
    rows = tl.program_id(0) // (column_tiles * shares) * ROWS + tl.arange(0, ROWS)
    there = rows < M * (TOPK // places)
    if EARLY:
        values = load_groups(x, x_stride, rows.to(tl.int64), there, group, COLUMNS, GROUPS, EARLY)
    follow(TARGET)
    # All that the sort says is asked for at once: what is needed behind the branch alone would be asked for there.
    used = tl.load(num_valid)
    said = _load_slots(slot_rows, rows, there, share * SLOTS, SLOTS, places)
    if shares > 1:
        others = _load_slots(slot_rows, rows, there, 0, triton.next_power_of_2(places), places)
    if EARLY:
        packed, byte = quantise(values, SCALE_MODE, TARGET)
    live = tl.max(said, 1) >= 0
    if tl.max(live.to(tl.int32), 0) > 0:
        if not EARLY:
            values = load_groups(x, x_stride, rows.to(tl.int64), live, group, COLUMNS, GROUPS)
            packed, byte = quantise(values, SCALE_MODE, TARGET)
        writes = live
        if shares > 1:
            # Of the programs of a row, the first with an expert writes its codes.
            place = tl.arange(0, others.shape[1])[None, :]
            writes = live & (tl.min(tl.where(others >= 0, place, places), 1) // SLOTS == share)
        store_codes(codes, packed, rows.to(tl.int64), writes, group, COLUMNS, GROUPS)
        store_slots(sorted_scales, byte, said, group, BLOCK, GROUPS, WIDTH, LAYOUT)
    if tl.program_id(0) < column_tiles:
        pad_layout(sorted_scales, used.to(tl.uint32), group, BLOCK, GROUPS, WIDTH, LAYOUT)


def quant_sort_arguments(params: Params) -> list[tuple[str, str]]:
    return [
        ("x", POINTERS[params["x"]]),
        ("x_stride", "i64"),
        ("slot_rows", "*i32"),
        ("num_valid", "*i32"),
        ("codes", "*u8"),
        ("sorted_scales", "*u8"),
    ]


def _constants(params: Params) -> dict[str, Any]:
    return sort_constants(params, params["columns"] // GROUP.value) | {
        "SCALE_MODE": params["scale_mode"],
        "BLOCK": params["block"],
        "ROWS": params["rows"],
        "SLOTS": min(params["slots"], triton.next_power_of_2(params["topk"]) if params["stage"] == 1 else 1),
        "GROUPS": params["groups"],
        "EARLY": params["early"],
    }


QUANT_SORT = Template(quant_sort_kernel, quant_sort_arguments, _constants)
"""Params: columns (H), x, scale_mode, stage, topk, block, layout, early (x is read before the wait), and of a program
rows, groups and slots, powers of two."""
