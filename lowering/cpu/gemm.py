"""Products of gathered activation rows with MXFP4 expert weights, 16 output rows at a time.

A token tile is a few live rows of a sort block. Its rows are staged once, in f32 or bf16 pairs, group by group, so that
the inner loop has one base address and no stride; then each decoded weight meets all of them. Sums are f32, and a scale
is multiplied once a group of 32 columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .decode import GROUP, QUARTER, ROWS, Decoder
from .dsl import Buffer, Val, const, f32, i32, loop, select, vec, when
from .numbers import widen
from .sort_block import Block
from .tiers import Tier

_CHAINS = 4
"""Independent sums that hide the latency of a multiply-add."""
_GROUP_BYTES = GROUP * ROWS // 2
_CACHE_LINE = 64
_AHEAD = 16
"""Scale groups (256 bytes each) from a prefetch to its use; 8 and 32 were slower."""


@dataclass(frozen=True)
class Weight:
    """Packed `n16k32` weights of all experts: `tiles` row tiles of `groups` scale groups each."""

    payload: Buffer
    scales: Buffer
    bias: Buffer | None
    tiles: int
    groups: int


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
    sums: Buffer

    @staticmethod
    def stack(how: Decoder, groups: int, tiles: int) -> dict[str, Buffer]:
        """The stack buffers of a product with `tiles` row tiles at once. Build them at the start of a kernel."""
        rows = how.token_tiles[-1]
        staged = Buffer.stack(rows * groups * GROUP // how.columns, how.staged)
        return {"staged": staged, "sums": Buffer.stack(tiles * rows * ROWS, f32())}

    def over_tokens(self, block: Block, body: Callable[[Val, Val, Callable[[Val, int], None]], None]) -> None:
        """Build `body(first, rows, multiply)` for every token tile of the block, its rows staged.

        `multiply(tile, place)` leaves the sums of weight tile `tile` in `sums[place]`.
        """
        sizes = self.how.token_tiles
        widest = sizes[-1]

        def token_tile(first: Val) -> None:
            rows = (block.live - first).min(widest)
            for below, tokens in zip((0, *sizes[:-1]), sizes, strict=True):
                when((rows > below) & (rows <= tokens), lambda tokens=tokens: sized(first, rows, tokens))

        def sized(first: Val, rows: Val, tokens: int) -> None:
            self._stage(block, first, rows, tokens)
            body(first, rows, lambda tile, place: self._multiply(block, tile, place, tokens))

        loop(0, block.live, widest, [], token_tile)

    def sum(self, place: int | Val, row: Val, first: int, lanes: int) -> Val:
        """`lanes` sums of row `row` of the token tile, of weight tile `place`, from output `first`."""
        return self.sums.load((row + place * self.how.token_tiles[-1]) * ROWS + first, lanes)

    def bias(self, block: Block, tile: Val, first: int, lanes: int) -> Val:
        weight = self.weight
        assert weight.bias is not None
        return weight.bias.load((block.expert * weight.tiles + tile) * ROWS + first, lanes)

    def _stage(self, block: Block, first: Val, rows: Val, tokens: int) -> None:
        """Rows first .. first+tokens of the block as [groups][tokens][GROUP]; beyond `rows` the last repeats."""
        how = self.how
        span = GROUP // how.columns

        def stage_row(t: Val) -> None:
            start = self.source(block, first + t.min(rows - 1)) * self.stride

            def stage_group(g: Val) -> None:
                there = (g * tokens + t) * span
                for c in range(0, span, how.lanes):
                    bits = self.x.load(start + g * GROUP + c * how.columns, how.lanes * how.columns)
                    if how.columns == 1:
                        self.staged.store(widen(bits, self.x_kind, self.tier), there + c)
                    else:
                        self.staged.store(bits.bits(vec(how.lanes, i32())), there + c)

            loop(0, self.weight.groups, 1, [], stage_group)

        loop(0, tokens, 1, [], stage_row)

    def _multiply(self, block: Block, tile: Val, place: int | Val, tokens: int) -> None:
        how, groups = self.how, self.weight.groups
        vectors = min(ROWS // how.lanes, max(1, _CHAINS // tokens))
        chains = max(1, _CHAINS // (vectors * tokens))
        kind = vec(how.lanes, f32())
        number = (block.expert * self.weight.tiles + tile) * groups
        span = GROUP // how.columns

        def some_rows(first: Val) -> None:
            def group(g: Val, *totals: Val) -> list[Val]:
                payload_at = (number + g) * _GROUP_BYTES + first * 4
                self._prefetch(number + g + _AHEAD)
                products = [const(0.0, kind)] * (vectors * tokens * chains)
                for quarter in range(GROUP // QUARTER):
                    words = [
                        how.words(self.weight.payload, payload_at + (quarter * ROWS + v * how.lanes) * 4)
                        for v in range(vectors)
                    ]
                    for step in range(how.steps):
                        at = (quarter * QUARTER + how.column(step)) // how.columns
                        x = [self.staged.load(g * (span * tokens) + (t * span + at)) for t in range(tokens)]
                        for v in range(vectors):
                            weights = how.weights(words[v], step)
                            for t in range(tokens):
                                i = (v * tokens + t) * chains + step % chains
                                products[i] = how.multiply_add(weights, x[t], products[i])
                sums = [_total(products[i : i + chains]) * how.unit for i in range(0, len(products), chains)]
                out: list[Val] = []
                for v in range(vectors):
                    part = slice(v * tokens, (v + 1) * tokens)
                    scale_at = (number + g) * ROWS + first + v * how.lanes
                    bytes_ = self.weight.scales.load(scale_at, how.lanes).to(vec(how.lanes, i32()))
                    out += self._scale(sums[part], bytes_, totals[part])
                return out

            totals = loop(0, groups, 1, [const(0.0, kind)] * (vectors * tokens), group)
            for v in range(vectors):
                for t in range(tokens):
                    row = place * how.token_tiles[-1] + t
                    self.sums.store(totals[v * tokens + t], row * ROWS + first + v * how.lanes)

        loop(0, ROWS, vectors * how.lanes, [], some_rows)

    def _prefetch(self, group: Val) -> None:
        """Hardware stops at pages and sees few lines ahead of this much arithmetic."""
        for line in range(0, _GROUP_BYTES, _CACHE_LINE):
            self.weight.payload.prefetch(group * _GROUP_BYTES + line, locality=2)
        self.weight.scales.prefetch(group * ROWS, locality=2)

    def _scale(self, products: list[Val], scales: Val, totals: tuple[Val, ...]) -> list[Val]:
        """totals + products * 2^(scales-127). Byte 0 is subnormal, so it is taken as a half of 2^-126: exact even where
        denormals are flushed. Byte 255 is NaN."""
        rare = ((scales + 1) & 255).below(2).reduce("or")

        def adjusted() -> list[Val]:
            kind = products[0].type
            factor = select(scales.eq(0), const(0.5, kind), const(1.0, kind))
            factor = select(scales.eq(255), const(float("nan"), kind), factor)
            return [p * factor for p in products]

        products = when(rare, adjusted, lambda: products)
        scale = (scales.max(1) << 23).bits(products[0].type)
        return [self.how.scale_add(p, scale, total) for p, total in zip(products, totals, strict=True)]


def _total(parts: list[Val]) -> Val:
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
