"""Template `quant`: MXFP4 per 1x32, a tile of rows and groups a program (docs/contract.md, section 1)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .numbers import GROUP, quantise
from .template import POINTERS, Params, Template


@triton.jit
def load_groups(
    x, x_stride, rows, live, group, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr = False
):
    """Groups `group`.. of the `rows` (i64 [R]) of x as [R, GROUPS, 32]; zeros in rows not `live` and past COLUMNS.

    EARLY: past the SM's own cache, which may hold what lay there before.
    """
    columns = group * GROUP + tl.arange(0, GROUPS * GROUP)
    mask = live[:, None] & (columns < COLUMNS)[None, :]
    cache: tl.constexpr = ".cg" if EARLY else ""
    values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0, cache_modifier=cache)
    return tl.reshape(values, [rows.shape[0], GROUPS, GROUP])


@triton.jit
def store_codes(codes, packed, rows, live, group, COLUMNS: tl.constexpr, GROUPS: tl.constexpr):
    """Packed codes u8 [R, GROUPS, 16] to groups `group`.. of the live `rows` of a payload u8 [.., COLUMNS/2]."""
    columns = group * (GROUP // 2) + tl.arange(0, GROUPS * GROUP // 2)
    mask = live[:, None] & (columns < COLUMNS // 2)[None, :]
    places = codes + rows[:, None] * (COLUMNS // 2) + columns[None, :]
    tl.store(places, tl.reshape(packed, [rows.shape[0], GROUPS * GROUP // 2]), mask=mask)


@triton.jit
def quant_kernel(
    x,
    x_stride,
    codes,
    scales,
    M,
    TARGET: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALE_MODE: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    EARLY: tl.constexpr,
):
    if not EARLY:
        follow(TARGET)
    scale_columns: tl.constexpr = COLUMNS // GROUP
    column_tiles: tl.constexpr = (scale_columns + GROUPS - 1) // GROUPS
    tile = tl.program_id(0)
    rows = (tile // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < tl.cast(M, tl.int64) * FACTOR
    group = tile % column_tiles * GROUPS
    values = load_groups(x, x_stride, rows, live, group, COLUMNS, GROUPS, EARLY)
    packed, byte = quantise(values, SCALE_MODE, TARGET)
    if EARLY:
        follow(TARGET)
    store_codes(codes, packed, rows, live, group, COLUMNS, GROUPS)
    groups = group + tl.arange(0, GROUPS)
    mask = live[:, None] & (groups < scale_columns)[None, :]
    tl.store(scales + rows[:, None] * scale_columns + groups[None, :], byte, mask=mask)


def _arguments(params: Params) -> list[tuple[str, str]]:
    return [("x", POINTERS[params["x"]]), ("x_stride", "i64"), ("codes", "*u8"), ("scales", "*u8")]


def _constants(params: Params) -> dict[str, Any]:
    return {
        "COLUMNS": params["columns"],
        "SCALE_MODE": params["scale_mode"],
        "FACTOR": params["factor"],
        "ROWS": params["rows"],
        "GROUPS": params["groups"],
        "EARLY": params["early"],
    }


QUANT = Template(quant_kernel, _arguments, _constants)
"""Params: columns (H), x, scale_mode, factor, rows and groups (powers of two)."""
