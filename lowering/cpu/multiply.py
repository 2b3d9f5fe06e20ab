"""One tile of 16 weight rows times a few staged tokens, in vector registers.

A lane is a weight row, so nothing is summed across lanes. Sums are f32, and a scale is multiplied once a group of 32
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from .decode import GROUP, QUARTER, ROWS, Decoder
from .dsl import Buffer, Val, const, f32, i32, loop, select, vec, when

_CHAINS = 4
"""Independent sums that hide the latency of a multiply-add."""
_GROUP_BYTES = GROUP * ROWS // 2
_CACHE_LINE = 64
_FAR, _NEAR = 64, 8
"""Scale groups (256 bytes each) from a prefetch to its use: into the second-level cache, for the latency of memory,
then into the first. One prefetch alone was 6 % slower for one token, whatever its distance; none at all 50 %."""


@dataclass(frozen=True)
class Weight:
    """Packed `n16k32` weights of all experts: `tiles` row tiles of `groups` scale groups each."""

    payload: Buffer
    scales: Buffer
    bias: Buffer | None
    tiles: int
    groups: int

    def prefetch(self, group: Val) -> None:
        """Ask for what comes soon after `group`: hardware stops at pages and sees few lines ahead of the arithmetic."""
        for line in range(0, _GROUP_BYTES, _CACHE_LINE):
            self.payload.prefetch((group + _FAR) * _GROUP_BYTES + line, locality=2)
            self.payload.prefetch((group + _NEAR) * _GROUP_BYTES + line, locality=3)
        self.scales.prefetch((group + _FAR) * ROWS, locality=2)


def multiply(
    how: Decoder,
    weight: Weight,
    number: Val,
    staged: Buffer,
    sums: Buffer,
    tokens: tuple[Val, Val | int, int],
    row: Val | int,
) -> None:
    """sums[row + t, 16] of the tile whose scale groups start at `number`, for some of the staged tokens.

    `tokens` is how many are staged, the first one wanted, and how many of them.
    """
    pitch, first_token, count = tokens
    vectors = min(ROWS // how.lanes, max(1, _CHAINS // count))
    chains = max(1, _CHAINS // (vectors * count * how.parts))
    kind = vec(how.lanes, f32())

    def some_rows(first: Val) -> None:
        def group(g: Val, *totals: Val) -> list[Val]:
            weight.prefetch(number + g)
            payload_at = (number + g) * _GROUP_BYTES + first * 4
            x_at = (g * pitch + first_token) * how.span
            zeros = tuple(const(0, how.sums) for _ in range(how.parts))
            products = [zeros] * (vectors * count * chains)
            for quarter in range(GROUP // QUARTER):
                words = [
                    how.words(weight.payload, payload_at + (quarter * ROWS + v * how.lanes) * 4) for v in range(vectors)
                ]
                for step in range(how.steps):
                    x = [how.load(staged, x_at + t * how.span, quarter, step) for t in range(count)]
                    for v in range(vectors):
                        weights = how.weights(words[v], step)
                        for t in range(count):
                            i = (v * count + t) * chains + step % chains
                            parts = zip(x[t], products[i], strict=True)
                            products[i] = tuple(how.add(weights, part, total) for part, total in parts)
            by_chain = [products[i : i + chains] for i in range(0, len(products), chains)]
            sums_of_group = [
                how.group_sum(_total(some), staged, x_at + (i % count) * how.span) for i, some in enumerate(by_chain)
            ]
            out: list[Val] = []
            for v in range(vectors):
                part = slice(v * count, (v + 1) * count)
                scale_at = (number + g) * ROWS + first + v * how.lanes
                scales = weight.scales.load(scale_at, how.lanes).to(vec(how.lanes, i32()))
                out += _scale(how, sums_of_group[part], scales, totals[part])
            return out

        totals = loop(0, weight.groups, 1, [const(0.0, kind)] * (vectors * count), group)
        for v in range(vectors):
            for t in range(count):
                sums.store(totals[v * count + t], (row + t) * ROWS + first + v * how.lanes)

    loop(0, ROWS, vectors * how.lanes, [], some_rows)


def _scale(how: Decoder, products: list[Val], scales: Val, totals: tuple[Val, ...]) -> list[Val]:
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
    return [how.scale_add(p, scale, total) for p, total in zip(products, totals, strict=True)]


def _total(parts: list[tuple[Val, ...]]) -> tuple[Val, ...]:
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs]
    return parts[0]
