"""Template `sort_scales`: row-major scales to expert order, 32 sorted rows a tile (docs/contract.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dsl import Buffer, Val, const, i8, i32, i64, index, loop, select, vec
from .kernel_function import KernelFunction, define
from .scale_tile import COLUMNS, ROWS, ScaleTile
from .tiers import Tier

_HALF = ROWS // 2
# Of scales a0..a7 of row r and b0..b7 of row r+16: the four columns of a block, each a word (a_j, b_j, a_j+4, b_j+4).
_INTERLEAVE = [byte for j in range(4) for byte in (j, 8 + j, 4 + j, 12 + j)]


class _SourceRows:
    """Where the scales of the tile's 32 rows begin, on the stack; rows without a token read as zeros."""

    def __init__(self, scales: Buffer, columns: int):
        self._scales, self._columns = scales, columns
        self._starts, self._masks = Buffer.stack(ROWS, i64()), Buffer.stack(ROWS, i8())

    def find(self, tile: ScaleTile) -> None:
        def one(row: Val) -> None:
            live, source = tile.source(row)
            self._starts.store((source * self._columns).to(i64()), row)
            self._masks.store(select(live, const(0xFF, i8()), 0), row)

        loop(0, ROWS, 1, [], one)

    def load(self, row: Val, column: Val, count: int) -> Val:
        """The scales of `count` columns."""
        return self._scales.load(self._starts.load(row).to(index()) + column, count) & self._masks.load(row)

    def load_padded(self, row: Val, column: Val, count: int) -> Val:
        """The scales of `count` columns and zeros up to 8."""
        values = self.load(row, column, count)
        if count == COLUMNS:
            return values
        return values.shuffle(const(0, values.type), [*range(count), *[count] * (COLUMNS - count)])


def _tile_columns(rows: _SourceRows, column: Val, count: int, sorted_scales: Buffer, start: Val) -> None:
    """Transpose one block of 32 rows and `count` (up to 8) columns to `start`, four rows of each half at a time."""

    def quarter(row: Val) -> None:
        words = []
        for i in range(4):
            upper, lower = (rows.load_padded(row + r, column, count) for r in (i, i + _HALF))
            words.append(upper.shuffle(lower, _INTERLEAVE).bits(vec(4, i32())))
        low = [words[i].shuffle(words[i + 1], [0, 4, 1, 5]) for i in (0, 2)]
        high = [words[i].shuffle(words[i + 1], [2, 6, 3, 7]) for i in (0, 2)]
        for j, (pair, half) in enumerate(((low, 0), (low, 2), (high, 0), (high, 2))):
            of_column = pair[0].shuffle(pair[1], [half, half + 1, half + 4, half + 5])
            sorted_scales.store(of_column.bits(vec(16, i8())), start + row * 4 + j * 64)

    loop(0, _HALF, 4, [], quarter)


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: columns (C), stage, topk, layout."""
    columns = params["columns"]
    whole, rest = columns - columns % COLUMNS, columns % COLUMNS

    def body(k: KernelFunction) -> None:
        scales, ids, num_valid, sorted_scales = k.tensor(i8()), k.tensor(i32()), k.tensor(i32()), k.tensor(i8())
        tile = ScaleTile.of(k.tile, ids, num_valid, columns, params)
        rows = _SourceRows(scales, columns)

        def transpose_tile() -> None:
            start = tile.base * tile.width
            rows.find(tile)
            loop(0, whole, COLUMNS, [], lambda c: _tile_columns(rows, c, COLUMNS, sorted_scales, start + c * ROWS))
            if rest:
                _tile_columns(rows, const(whole, index()), rest, sorted_scales, start + whole * ROWS)

        def copy_row(row: Val) -> None:
            def copy(column: Val, count: int) -> None:
                sorted_scales.store(rows.load(row, column, count), tile.position(row, column))

            loop(0, whole, COLUMNS, [], lambda c: copy(c, COLUMNS))
            loop(whole, columns, 1, [], lambda c: copy(c, 1))

        def copy_tile() -> None:
            rows.find(tile)
            loop(0, ROWS, 1, [], copy_row)

        tile.when_used(transpose_tile if params["layout"] == "tiled_32x8" else copy_tile)

    define(name, tier, body)
