"""Template `experts_one_stage`: gate_up and down of a sort block in one tile, h staying in this core's cache.

With `requantize` h goes through MXFP4 between the products, in place: a bf16 holds e2m1 times its scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .decode import GROUP, ROWS
from .down import down, down_product, down_weight
from .dsl import Buffer, Val, f32, i16, i32, loop
from .gate_up import gate_up, gate_up_product, gate_up_weight, sorted_rows
from .kernel_function import KernelFunction, define
from .numbers import e2m1_decode, quantise_group, unpack_codes
from .sort_block import Block
from .tiers import Tier


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: hidden, intermediate, topk, block, activation, alpha, limit, x, routing_weight_stage,
    requantize ("none", or a scale mode), has_gate_up_bias, has_down_bias."""
    mode = params["requantize"]

    def body(k: KernelFunction) -> None:
        x, stride = k.tensor(i16()), k.size()
        rows = sorted_rows(k, params)
        routing = k.tensor(f32())
        first = gate_up_weight(k, params, params["has_gate_up_bias"])
        second = down_weight(k, params, params["has_down_bias"])
        out, h = k.tensor(f32()), k.tensor(i16())
        gate_up_of = gate_up_product(tier, params, x, stride, first)
        down_of = down_product(tier, {**params, "x": "bf16"}, h, second)
        stage = params["routing_weight_stage"]

        def both(block: Block) -> None:
            def first_outputs(outputs: Val) -> None:
                gate_up(gate_up_of, params, block, routing if stage == 1 else None, outputs, h)

            def second_outputs(outputs: Val) -> None:
                down(down_of, params, block, routing if stage == 2 else None, outputs, out)

            loop(0, params["intermediate"] // ROWS, 1, [], first_outputs)
            if mode != "none":
                loop(0, block.live, 1, [], lambda i: _requantise(h, block.routed(i), params["intermediate"], mode))
            loop(0, params["hidden"] // ROWS, 1, [], second_outputs)

        rows.visit(k.tile, both)

    define(name, tier, body)


def _requantise(h: Buffer, row: Val, columns: int, mode: str) -> None:
    def group(c: Val) -> None:
        packed, scale = quantise_group(h.load(row * columns + c, GROUP), mode)
        h.store(e2m1_decode(unpack_codes(packed), scale.to(i32())), row * columns + c)

    loop(0, columns, GROUP, [], group)
