"""Template `fake_quant`: bf16 rows to the values that their MXFP4 stands for, as bf16, for products that take no codes.

The very bytes that quant, sort_scales and expand make of them, without codes and scales in between.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .dependents import follow
from .expand import widened_codes
from .numbers import GROUP, quantise
from .quant import load_groups
from .template import POINTERS, Params, Template


@triton.jit
def fake_quant_kernel(
    x,
    x_stride,
    out,
    M,
    TARGET: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALE_MODE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A program is GROUPS groups of a row."""
    follow(TARGET)
    column_tiles: tl.constexpr = (COLUMNS // GROUP + GROUPS - 1) // GROUPS
    tile = tl.program_id(0)
    row = (tile // column_tiles).to(tl.int64) + tl.arange(0, 1)
    group = tile % column_tiles * GROUPS
    codes, scales = quantise(load_groups(x, x_stride, row, row >= 0, group, COLUMNS, GROUPS), SCALE_MODE, TARGET)
    columns = group * GROUP + tl.arange(0, GROUPS * GROUP)
    places = out + row[:, None] * COLUMNS + columns[None, :]
    tl.store(places, widened_codes(codes, scales, TARGET), mask=(columns < COLUMNS)[None, :])


def _arguments(params: Params) -> list[tuple[str, str]]:
    return [("x", POINTERS[params["x"]]), ("x_stride", "i64"), ("out", "*bf16")]


def _constants(params: Params) -> dict[str, Any]:
    return {name.upper(): params[name] for name in ("columns", "scale_mode", "groups")}


FAKE_QUANT = Template(fake_quant_kernel, _arguments, _constants)
"""Params: columns (H), x, scale_mode, groups (a power of two)."""
