"""Template `sort_tokens`: group token slots by expert (docs/contract.md, section 2). One tile, a stable counting sort.

The counters live on the stack, 4 bytes an expert (twice that with a mask).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dsl import Buffer, Val, const, f32, i32, index, loop, select, vec, when
from .kernel_function import KernelFunction, define
from .live_slots import live_tokens, local_expert, map_operand
from .tiers import Tier

_FILL = 16
"""Entries of padding written at a time; every block size is a multiple of it."""


def _local_ids(mask: Buffer, experts: int) -> Buffer:
    """The exclusive prefix count of the mask, -1 where it is 0."""
    table = Buffer.stack(experts, i32())

    def one(e: Val, count: Val) -> list[Val]:
        here = mask.load(e).ne(0)
        table.store(select(here, count, -1), e)
        return [count + here.to(i32())]

    loop(0, experts, 1, [const(0, i32())], one)
    return table


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: experts, topk, block, has_num_tokens, map."""
    experts, topk, block = params["experts"], params["topk"], params["block"]

    def body(k: KernelFunction) -> None:
        ids, weights = k.tensor(i32()), k.tensor(f32())
        num_tokens = k.tensor(i32()) if params["has_num_tokens"] else None
        expert_map = map_operand(k, params["map"])
        sorted_ids, sorted_weights = k.tensor(i32()), k.tensor(f32())
        expert_ids, num_valid = k.tensor(i32()), k.tensor(i32())
        live = live_tokens(num_tokens, k.size())
        counters = Buffer.stack(experts, i32())
        loop(0, experts, 1, [], lambda e: counters.store(0, e))
        table = _local_ids(expert_map, experts) if expert_map and params["map"] == "mask" else expert_map
        padding_id = (live.to(i32()) | (topk << 24)).splat(vec(_FILL, i32()))

        def count(i: Val) -> None:
            here, e = local_expert(ids.load(i), experts, table)
            when(here, lambda: counters.store(counters.load(e) + 1, e))

        def place_expert(e: Val, start: Val) -> list[Val]:
            """Turn a count into the first row; the last block of an expert is all padding until rows arrive."""
            rows = counters.load(e).to(index())
            end = start + ((rows + (block - 1)) & -block)
            counters.store(start.to(i32()), e)

            def pad(i: Val) -> None:
                sorted_ids.store(padding_id, i)
                sorted_weights.store(const(0.0, vec(_FILL, f32())), i)

            loop(start // block, end // block, 1, [], lambda b: expert_ids.store(e.to(i32()), b))
            when(rows > 0, lambda: loop(end - block, end, _FILL, [], pad))
            return [end]

        def scatter(token: Val) -> None:
            def one(slot: Val) -> None:
                here, e = local_expert(ids.load(token * topk + slot), experts, table)

                def put() -> None:
                    row = counters.load(e)
                    sorted_ids.store((slot << 24 | token).to(i32()), row)
                    sorted_weights.store(weights.load(token * topk + slot), row)
                    counters.store(row + 1, e)

                when(here, put)

            loop(0, topk, 1, [], one)

        loop(0, live * topk, 1, [], count)
        (used,) = loop(0, experts, 1, [const(0, index())], place_expert)
        loop(0, live, 1, [], scatter)
        num_valid.store(used.to(i32()), 0)
        num_valid.store(live.to(i32()), 1)

    define(name, tier, body)
