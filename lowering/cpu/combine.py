"""Template `combine`: out[token] = the sum of its experts' weighted rows in slot order, in f32. One token a tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dsl import Buffer, Val, bf16, const, f16, f32, i32, i64, index, loop, vec
from .kernel_function import KernelFunction, define
from .live_slots import is_masked_in, live_tokens, local_expert, map_operand
from .numbers import narrow
from .tiers import Tier

_COLUMNS = 32
"""Columns summed at a time; the width is a multiple of it."""


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: columns, topk, experts, out, has_num_tokens, map."""
    columns, topk, experts = params["columns"], params["topk"], params["experts"]

    def body(k: KernelFunction) -> None:
        rows, ids = k.tensor(f32()), k.tensor(i32())
        num_tokens = k.tensor(i32()) if params["has_num_tokens"] else None
        expert_map = map_operand(k, params["map"])
        out = k.tensor(bf16() if params["out"] == "bf16" else f16())
        live = live_tokens(num_tokens, k.size())
        starts = Buffer.stack(topk, i64())

        def has_expert(expert: Val) -> Val:
            if expert_map and params["map"] == "mask":
                return is_masked_in(expert, experts, expert_map)
            return local_expert(expert, experts, expert_map)[0]

        def gather(slot: Val, count: Val) -> list[Val]:
            """Rows without an expert hold anything, NaN too, so they are left out rather than multiplied by 0."""
            row = k.tile * topk + slot
            here = (k.tile < live) & has_expert(ids.load(row))
            starts.store((row * columns).to(i64()), count)
            return [count + here.to(index())]

        (count,) = loop(0, topk, 1, [const(0, index())], gather)

        def sum_columns(column: Val) -> None:
            def add(i: Val, total: Val) -> list[Val]:
                return [total + rows.load(starts.load(i).to(index()) + column, _COLUMNS)]

            (total,) = loop(0, count, 1, [const(0.0, vec(_COLUMNS, f32()))], add)
            out.store(narrow(total, params["out"], tier), k.tile * columns + column)

        loop(0, columns, _COLUMNS, [], sum_columns)

    define(name, tier, body)
