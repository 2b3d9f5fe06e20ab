"""A block of the sorted list as the expert kernels see it: its expert and its live rows.

The list is described in docs/contract.md, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .dsl import Buffer, Val, const, i32, index, loop, vec, when

_COUNT_LANES = 16
"""Every block size is a multiple of it."""


@dataclass(frozen=True)
class SortedRows:
    """The operands that say which rows go to which expert."""

    ids: Buffer
    expert_ids: Buffer
    num_valid: Buffer
    topk: int
    block: int

    def visit(self, number: Val, body: Callable[[Block], None]) -> None:
        """Build `body` for sort block `number`, run when the block is in use and has a live row."""
        first = number * self.block

        def visit_used() -> None:
            live = self._live_rows(first)
            when(live > 0, lambda: body(Block(self, first, live, self.expert_ids.load(number).to(index()))))

        when(first.to(i32()) < self.num_valid.load(0), visit_used)

    def _live_rows(self, first: Val) -> Val:
        """Padding rows have slot topk, and stand behind the live ones."""
        kind = vec(_COUNT_LANES, i32())

        def count(i: Val, live: Val) -> list[Val]:
            slots = self.ids.load(first + i, _COUNT_LANES) >> 24
            return [live + slots.ne(self.topk).to(kind)]

        (live,) = loop(0, self.block, _COUNT_LANES, [const(0, kind)], count)
        return live.reduce("add").to(index())


@dataclass(frozen=True)
class Block:
    """Live row `i` of the block is sorted row `first + i`; `first`, `live` and `expert` are indices."""

    rows: SortedRows
    first: Val
    live: Val
    expert: Val

    def token(self, i: Val) -> Val:
        return (self._id(i) & 0xFFFFFF).to(index())

    def routed(self, i: Val) -> Val:
        """The row token*topk+slot: where a routed row lies in h and in the result."""
        return self.token(i) * self.rows.topk + (self._id(i) >> 24).to(index())

    def _id(self, i: Val) -> Val:
        return self.rows.ids.load(self.first + i)
