"""A tile of 32 sorted rows: the rows it holds and where their scales lie (docs/contract.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .dsl import Buffer, Val, const, i8, index, loop, select, vec, when

ROWS = 32
COLUMNS = 8
"""Columns of a block of the layout tiled_32x8; a sorted scale tensor is padded to a multiple of it."""


@dataclass(frozen=True)
class ScaleTile:
    """`base` is the first sorted row, `used` the number of rows in use (num_valid[0]); both indices."""

    ids: Buffer
    used: Val
    base: Val
    groups: int
    """Scale columns before padding (C)."""
    topk: int
    stage: int
    layout: str

    @staticmethod
    def of(number: Val, ids: Buffer, num_valid: Buffer, groups: int, params: Mapping[str, Any]) -> ScaleTile:
        """Tile `number` under a template's params topk, stage and layout."""
        used = num_valid.load(0).to(index())
        return ScaleTile(ids, used, number * ROWS, groups, params["topk"], params["stage"], params["layout"])

    @property
    def width(self) -> int:
        """Bytes of a row of sorted scales."""
        return -(-self.groups // COLUMNS) * COLUMNS if self.layout == "tiled_32x8" else self.groups

    def when_used(self, body: Callable[[], None]) -> None:
        """Build `body` for tiles that begin below num_valid[0]; kernels leave the rest alone."""
        when(self.base < self.used, body)

    def source(self, row: Val) -> tuple[Val, Val]:
        """Whether row 0..31 of the tile holds a token, and its source row, 0 where it does not (both safe to use)."""
        sorted_row = self.base + row
        in_use = sorted_row < self.used
        entry = self.ids.load(select(in_use, sorted_row, self.base))
        slot, token = (entry >> 24).to(index()), (entry & 0xFFFFFF).to(index())
        live = in_use & slot.ne(self.topk)
        source = token if self.stage == 1 else token * self.topk + slot
        return live, select(live, source, 0)

    def each_live_row(self, body: Callable[[Val, Val], None]) -> None:
        """Build `body(row, source row)` for the rows of the tile that hold a token."""

        def visit(row: Val) -> None:
            live, source = self.source(row)
            when(live, lambda: body(row, source))

        loop(0, ROWS, 1, [], visit)

    def position(self, row: Val, column: Val) -> Val:
        """Where the scale of row 0..31 of the tile and `column` lies in the sorted scales."""
        if self.layout == "row_major":
            return (self.base + row) * self.groups + column
        block = (column >> 3) * (ROWS * COLUMNS) + (column & 3) * 64 + ((column >> 2) & 1) * 2
        return self.base * self.width + block + (row & 15) * 4 + (row >> 4)

    def clear(self, sorted_scales: Buffer) -> None:
        """Set every byte of the tile to 0, the scale of padding rows and columns."""
        start, zero = self.base * self.width, const(0, vec(ROWS, i8()))
        loop(0, ROWS * self.width, ROWS, [], lambda i: sorted_scales.store(zero, start + i))
