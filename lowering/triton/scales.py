"""Template `sort_scales`: scales to expert order (docs/contract.md, section 3)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .template import Params, Template

BLOCK_ROWS = tl.constexpr(32)
BLOCK_COLUMNS = tl.constexpr(8)
"""A block of the layout tiled_32x8; sorted scales are padded to whole blocks."""


@triton.jit
def sorted_offset(rows, columns, WIDTH: tl.constexpr, LAYOUT: tl.constexpr):
    """Byte offset (i64) of sorted `rows` and scale `columns` in sorted scales of WIDTH columns, padding included."""
    if LAYOUT == "row_major":
        return rows.to(tl.int64) * WIDTH + columns
    else:
        block = (rows // BLOCK_ROWS).to(tl.int64) * (BLOCK_ROWS * WIDTH)
        block += columns // BLOCK_COLUMNS * (BLOCK_ROWS * BLOCK_COLUMNS)
        return block + columns % 4 * 64 + rows % 16 * 4 + columns % BLOCK_COLUMNS // 4 * 2 + rows % BLOCK_ROWS // 16


@triton.jit
def store_scales(sorted_scales, tile, row, column, WIDTH: tl.constexpr, LAYOUT: tl.constexpr):
    """Store `tile` u8 [R, G] at sorted row `row` (i64) and scale column `column`; columns from WIDTH on are left out.

    Whole blocks of the layout tiled_32x8 (R = 32, G a multiple of 8) are put in order first: one run of bytes.
    """
    ROWS: tl.constexpr = tile.shape[0]
    COLUMNS: tl.constexpr = tile.shape[1]
    if LAYOUT == "tiled_32x8" and ROWS == BLOCK_ROWS and COLUMNS % BLOCK_COLUMNS == 0:
        halves = tl.reshape(tile, [2, 16, COLUMNS // BLOCK_COLUMNS, 2, 4])
        run = tl.reshape(tl.permute(halves, [2, 4, 1, 3, 0]), [ROWS * COLUMNS])
        places = column * ROWS + tl.arange(0, ROWS * COLUMNS)
        tl.store(sorted_scales + row * WIDTH + places, run, mask=places < ROWS * WIDTH)
    else:
        rows, columns = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
        mask = tl.broadcast_to(columns < WIDTH, tile.shape)
        tl.store(sorted_scales + sorted_offset(rows, columns, WIDTH, LAYOUT), tile, mask=mask)


@triton.jit
def source_rows(sorted_ids, row, used, ROWS: tl.constexpr, STAGE: tl.constexpr, TOPK: tl.constexpr):
    """Source rows (i64 [ROWS]) of sorted rows `row`.. and whether each holds a token; `used` is num_valid[0]."""
    rows = row + tl.arange(0, ROWS)
    in_use = rows < used
    entry = tl.load(sorted_ids + rows, mask=in_use, other=0).to(tl.uint32, bitcast=True)
    slot, token = (entry >> 24).to(tl.int64), (entry & 0xFFFFFF).to(tl.int64)
    source = token if STAGE == 1 else token * TOPK + slot
    return source, in_use & (slot != TOPK)


@triton.jit
def sort_scales_kernel(
    scales,
    scales_stride,
    sorted_ids,
    num_valid,
    sorted_scales,
    M,
    TARGET: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGE: tl.constexpr,
    TOPK: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
):
    follow(TARGET)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    used = tl.load(num_valid)
    if row < used:
        source, live = source_rows(sorted_ids, row, used, BLOCK_ROWS, STAGE, TOPK)
        for column in tl.static_range(0, WIDTH, STEP):
            columns = column + tl.arange(0, STEP)
            mask = live[:, None] & (columns < COLUMNS)[None, :]
            tile = tl.load(scales + source[:, None] * scales_stride + columns[None, :], mask=mask, other=0)
            store_scales(sorted_scales, tile, row, column, WIDTH, LAYOUT)


def sort_constants(params: Params, columns: int) -> dict[str, Any]:
    """Constants of the templates that write sorted scales, for a width of `columns` scale columns."""
    padding = -columns % BLOCK_COLUMNS.value if params["layout"] == "tiled_32x8" else 0
    return {
        "COLUMNS": params["columns"],
        "STAGE": params["stage"],
        "TOPK": params["topk"],
        "LAYOUT": params["layout"],
        "WIDTH": columns + padding,
    }


def _sort_scales_arguments(params: Params) -> list[tuple[str, str]]:
    return [
        ("scales", "*u8"),
        ("scales_stride", "i64"),
        ("sorted_ids", "*i32"),
        ("num_valid", "*i32"),
        ("sorted_scales", "*u8"),
    ]


def _sort_scales_constants(params: Params) -> dict[str, Any]:
    constants = sort_constants(params, params["columns"])
    return constants | {"STEP": min(128, triton.next_power_of_2(max(constants["WIDTH"], BLOCK_COLUMNS.value)))}


SORT_SCALES = Template(sort_scales_kernel, _sort_scales_arguments, _sort_scales_constants)
"""Params: columns (C), stage, topk, layout."""
"""Params: columns (C), stage, topk, layout."""
