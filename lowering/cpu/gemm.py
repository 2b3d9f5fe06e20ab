"""Products of gathered activation rows with MXFP4 expert weights, 16 output rows at a time.

A token tile is a few live rows of a sort block. Its rows are staged as the decoder wants them, group by group, so that
the inner loop has one base address and no stride; then each decoded weight meets all of them. They stay staged for the
next 16 output rows of the same sort block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .amx import TOKENS, Matrix
from .decode import GROUP, ROWS, Amx, Decoder
from .dsl import Buffer, Val, const, f32, i32, i64, index, loop, when
from .multiply import Weight, multiply
from .sort_block import Block
from .tiers import Tier

_STAGED_ROWS = 32
"""Rows of a sort block that stay staged from one tile to the next."""
_FALLBACK_TOKENS = 8
"""Tokens at a time where AMX cannot do a weight tile."""


@dataclass(frozen=True)
class Product:
    """sums[t, 16] of a token tile times row tiles of `weight`."""

    tier: Tier
    how: Decoder
    x_kind: str
    x: Buffer
    """Activation bits as i16."""
    stride: Val | int
    """Elements between rows of x."""
    source: Callable[[Block, Val], Val]
    """The row of x of a live row: Block.token or Block.routed."""
    weight: Weight
    staged: Buffer
    held: Buffer
    """The first sorted row of each staged token tile, so that a block's next tile finds its rows there."""
    sums: Buffer
    matrix: Matrix | None

    @staticmethod
    def stack(how: Decoder, groups: int, tiles: int, block: int) -> dict[str, Any]:
        """The stack buffers of a product with `tiles` row tiles at once, for sort blocks of `block` rows."""
        rows = how.token_tiles[-1]
        places = -(-min(block, _STAGED_ROWS) // rows)
        return {
            "staged": Buffer.stack(places * rows * groups * how.span, how.staged),
            "held": Buffer.stack(places, i64()).fill_once(-1),
            "sums": Buffer.stack(tiles * rows * ROWS, f32()),
            "matrix": Matrix.stack() if isinstance(how, Amx) else None,
        }

    def over_tokens(self, block: Block, body: Callable[[Val, Val, Callable[[Val, int], None]], None]) -> None:
        """Build `body(first, rows, multiply)` for every token tile of the block, its rows staged.

        `multiply(tile, place)` leaves the sums of weight tile `tile` in `sums[place]`.
        """
        sizes = self.how.token_tiles
        widest = sizes[-1]

        def token_tile(first: Val) -> None:
            rows = (block.live - first).min(widest)
            for below, tokens in zip((0, *sizes[:-1]), sizes, strict=True):
                when((rows > below) & (rows <= tokens), partial(sized, first, rows, tokens))

        def sized(first: Val, rows: Val, tokens: int) -> None:
            matrix = self.matrix if tokens >= TOKENS else None
            # AMX takes as many rows as there are; vector code has a fixed number.
            pitch = rows if matrix else const(tokens, index())
            staged = self._staged(block, first, rows, pitch, tokens)
            if matrix:
                matrix.configure(rows)
            body(first, rows, lambda tile, place: self._multiply(block, staged, tile, place, tokens, pitch, matrix))
            if matrix:
                matrix.release()

        loop(0, block.live, widest, [], token_tile)

    def sum(self, place: int | Val, row: Val, first: int, lanes: int) -> Val:
        """`lanes` sums of row `row` of the token tile, of weight tile `place`, from output `first`."""
        return self.sums.load((row + place * self.how.token_tiles[-1]) * ROWS + first, lanes)

    def bias(self, block: Block, tile: Val, first: int, lanes: int) -> Val:
        weight = self.weight
        assert weight.bias is not None
        return weight.bias.load((block.expert * weight.tiles + tile) * ROWS + first, lanes)

    def _staged(self, block: Block, first: Val, rows: Val, pitch: Val, tokens: int) -> Buffer:
        """The rows of a token tile, staged; a lone row may already lie as it should."""
        if tokens == 1 and self.how.staged_as_it_is:
            return Buffer.at(self.x.pointer(self.source(block, first) * self.stride).v, i32())
        widest, places = self.how.token_tiles[-1], self.held.memref.type.shape[0]
        place = first // widest % places
        start = place * (widest * self.weight.groups * self.how.span)
        staged = Buffer.at(self.staged.pointer(start).v, self.staged.element)
        row = (block.first + first).to(i64())

        def stage() -> None:
            self._stage(block, first, rows, pitch, staged)
            self.held.store(row, place)

        when(self.held.load(place).ne(row), stage)
        return staged

    def _stage(self, block: Block, first: Val, rows: Val, pitch: Val, staged: Buffer) -> None:
        """Rows first .. first+pitch of the block as [groups][pitch][how.span]; beyond `rows` the last one repeats."""

        def stage_row(t: Val) -> None:
            start = self.source(block, first + t.min(rows - 1)) * self.stride

            def stage_group(g: Val) -> None:
                there = (g * pitch + t) * self.how.span
                self.how.stage(self.x, start + g * GROUP, staged, there, self.x_kind, self.tier)

            loop(0, self.weight.groups, 1, [], stage_group)

        loop(0, pitch, 1, [], stage_row)

    def _multiply(
        self,
        block: Block,
        staged: Buffer,
        tile: Val,
        place: int | Val,
        tokens: int,
        pitch: Val,
        matrix: Matrix | None,
    ) -> None:
        how, weight = self.how, self.weight
        number = (block.expert * weight.tiles + tile) * weight.groups
        row = place * how.token_tiles[-1]

        def by_vectors(count: int, first: Val | int) -> None:
            multiply(how, weight, number, staged, self.sums, (pitch, first, count), row + first)

        if not (matrix and isinstance(how, Amx)):
            return by_vectors(tokens, 0)
        extreme = matrix.multiply(how, weight, number, staged, tokens, pitch, self.sums, row)
        when(extreme, lambda: loop(0, pitch, _FALLBACK_TOKENS, [], lambda first: by_vectors(_FALLBACK_TOKENS, first)))
