"""Template `expand`: mxfp4 rows to bf16 at their source row, so that A4 is the A16 product on them.

Tile = 32 sorted rows. Values are exact; what exceeds bf16 becomes Inf, and a NaN scale NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dsl import Val, i8, i16, i32, loop
from .kernel_function import KernelFunction, define
from .numbers import GROUP, e2m1_decode, unpack_codes
from .scale_tile import ScaleTile
from .tiers import Tier


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: columns, stage, topk, layout."""
    columns = params["columns"]

    def body(k: KernelFunction) -> None:
        codes, stride = k.tensor(i8()), k.size()
        sorted_scales, ids, num_valid = k.tensor(i8()), k.tensor(i32()), k.tensor(i32())
        out = k.tensor(i16())
        tile = ScaleTile.of(k.tile, ids, num_valid, columns // GROUP, params)

        def expand_row(row: Val, source: Val) -> None:
            def expand_group(group: Val) -> None:
                packed = codes.load(source * stride + group * (GROUP // 2), GROUP // 2)
                scale = sorted_scales.load(tile.position(row, group)).to(i32())
                out.store(e2m1_decode(unpack_codes(packed), scale), source * columns + group * GROUP)

            loop(0, columns // GROUP, 1, [], expand_group)

        tile.when_used(lambda: tile.each_live_row(expand_row))

    define(name, tier, body)
