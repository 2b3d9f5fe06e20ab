"""Template `down`: out[token*k+slot] = (h[token*k+slot] @ W2[expert].T + b2) * routing weight, in f32.

A tile is a sort block and 16 outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .decode import GROUP, ROWS, decoder
from .dsl import Buffer, Val, f32, i8, i16, loop
from .gate_up import sorted_rows
from .gemm import Product
from .kernel_function import KernelFunction, define
from .multiply import Weight
from .sort_block import Block
from .tiers import Tier


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: hidden, intermediate, topk, block, x, has_bias, has_weights."""

    def body(k: KernelFunction) -> None:
        h = k.tensor(i16())
        rows = sorted_rows(k, params)
        routing = k.tensor(f32()) if params["has_weights"] else None
        weight = down_weight(k, params, params["has_bias"])
        out = k.tensor(f32())
        product = down_product(tier, params, h, weight)
        outputs = params["hidden"] // ROWS
        rows.visit(k.tile // outputs, lambda block: down(product, params, block, routing, k.tile % outputs, out))

    define(name, tier, body)


def down_weight(k: KernelFunction, params: Mapping[str, Any], has_bias: bool) -> Weight:
    """The next operands: payload, scales and perhaps the bias of [E, H, I]."""
    payload, scales = k.tensor(i8()), k.tensor(i8())
    bias = k.tensor(f32()) if has_bias else None
    return Weight(payload, scales, bias, params["hidden"] // ROWS, params["intermediate"] // GROUP)


def down_product(tier: Tier, params: Mapping[str, Any], h: Buffer, weight: Weight) -> Product:
    how = decoder(tier, params["x"])
    stack = Product.stack(how, weight.groups, 1, params["block"])
    return Product(tier, how, params["x"], h, params["intermediate"], Block.routed, weight, **stack)


def down(
    product: Product, params: Mapping[str, Any], block: Block, routing: Buffer | None, outputs: Val, out: Buffer
) -> None:
    """Rows of the result, 16 columns from 16*outputs."""
    lanes = product.how.lanes

    def token_tile(first: Val, rows: Val, multiply: Any) -> None:
        multiply(outputs, 0)

        def row(t: Val) -> None:
            there = block.routed(first + t) * params["hidden"] + outputs * ROWS
            for column in range(0, ROWS, lanes):
                value = product.sum(0, t, column, lanes)
                if product.weight.bias is not None:
                    value = value + product.bias(block, outputs, column, lanes)
                if routing is not None:
                    value = value * routing.load(block.first + first + t)
                out.store(value, there + column)

        loop(0, rows, 1, [], row)

    product.over_tokens(block, token_tile)
