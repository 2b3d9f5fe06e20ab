"""Templates `quant`, one row a tile, and `quant_sort`, 32 sorted rows a tile (docs/contract.md, sections 1 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .dsl import Buffer, Val, i8, i16, i32, loop
from .kernel_function import KernelFunction, define
from .numbers import GROUP, from_f16, quantise_group
from .scale_tile import ScaleTile
from .tiers import Tier


def _quantise_row(
    x: Buffer,
    start: Val,
    codes: Buffer,
    row: Val,
    put_scale: Callable[[Val, Val], None],
    params: Mapping[str, Any],
    tier: Tier,
) -> None:
    """Quantise the row of x at `start` into row `row` of codes; `put_scale(group, byte)` stores each scale."""
    groups = params["columns"] // GROUP
    packed_row = row * (groups * GROUP // 2)

    def quantise(group: Val) -> None:
        values = x.load(start + group * GROUP, GROUP)
        values = from_f16(values, tier) if params["x"] == "f16" else values
        packed, scale = quantise_group(values, params["scale_mode"])
        codes.store(packed, packed_row + group * (GROUP // 2))
        put_scale(group, scale)

    loop(0, groups, 1, [], quantise)


def build_quant(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: columns, x, scale_mode."""

    def body(k: KernelFunction) -> None:
        x, stride = k.tensor(i16()), k.size()
        codes, scales = k.tensor(i8()), k.tensor(i8())
        scale_row = k.tile * (params["columns"] // GROUP)

        def put_scale(group: Val, byte: Val) -> None:
            scales.store(byte, scale_row + group)

        _quantise_row(x, k.tile * stride, codes, k.tile, put_scale, params, tier)

    define(name, tier, body)


def build_quant_sort(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: columns, x, scale_mode, stage, topk, layout.

    A token that stands in several sorted rows has its payload written once for each, with the same bytes.
    """

    def body(k: KernelFunction) -> None:
        x, stride = k.tensor(i16()), k.size()
        ids, num_valid = k.tensor(i32()), k.tensor(i32())
        codes, sorted_scales = k.tensor(i8()), k.tensor(i8())
        tile = ScaleTile.of(k.tile, ids, num_valid, params["columns"] // GROUP, params)

        def quantise_row(row: Val, source: Val) -> None:
            def put_scale(group: Val, byte: Val) -> None:
                sorted_scales.store(byte, tile.position(row, group))

            _quantise_row(x, source * stride, codes, source, put_scale, params, tier)

        def quantise_tile() -> None:
            tile.clear(sorted_scales)
            tile.each_live_row(quantise_row)

        tile.when_used(quantise_tile)

    define(name, tier, body)
