"""Template `gate_up`: h[token*k+slot] = act(x[token] @ W1[expert].T + b1), rounded to bf16.

A tile is a sort block and 16 outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .activation import gated
from .decode import GROUP, ROWS, decoder
from .dsl import Buffer, Val, f32, i8, i16, i32, loop, vec
from .gemm import Product
from .kernel_function import KernelFunction, define
from .multiply import Weight
from .numbers import narrow
from .sort_block import Block, SortedRows
from .tiers import Tier


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: hidden, intermediate, topk, block, activation, alpha, limit, x, has_bias, has_weights."""

    def body(k: KernelFunction) -> None:
        x, stride = k.tensor(i16()), k.size()
        rows = sorted_rows(k, params)
        routing = k.tensor(f32()) if params["has_weights"] else None
        weight = gate_up_weight(k, params, params["has_bias"])
        h = k.tensor(i16())
        product = gate_up_product(tier, params, x, stride, weight)
        outputs = params["intermediate"] // ROWS
        rows.visit(k.tile // outputs, lambda block: gate_up(product, params, block, routing, k.tile % outputs, h))

    define(name, tier, body)


def sorted_rows(k: KernelFunction, params: Mapping[str, Any]) -> SortedRows:
    """The next three operands: sorted_ids, expert_ids, num_valid."""
    ids, expert_ids, num_valid = (k.tensor(i32()) for _ in range(3))
    return SortedRows(ids, expert_ids, num_valid, params["topk"], params["block"])


def gate_up_weight(k: KernelFunction, params: Mapping[str, Any], has_bias: bool) -> Weight:
    """The next operands: payload, scales and perhaps the bias of [E, 2I, H]."""
    payload, scales = k.tensor(i8()), k.tensor(i8())
    bias = k.tensor(f32()) if has_bias else None
    return Weight(payload, scales, bias, 2 * params["intermediate"] // ROWS, params["hidden"] // GROUP)


def gate_up_product(tier: Tier, params: Mapping[str, Any], x: Buffer, stride: Val, weight: Weight) -> Product:
    how = decoder(tier, params["x"])
    return Product(
        tier, how, params["x"], x, stride, Block.token, weight, **Product.stack(how, weight.groups, 2, params["block"])
    )


def gate_up(
    product: Product, params: Mapping[str, Any], block: Block, routing: Buffer | None, outputs: Val, h: Buffer
) -> None:
    """Rows of h, 16 columns from 16*outputs: weight tile 2*outputs holds the gates, the next one the ups."""
    lanes, intermediate = product.how.lanes, params["intermediate"]

    def token_tile(first: Val, rows: Val, multiply: Any) -> None:
        loop(0, 2, 1, [], lambda half: multiply(outputs * 2 + half, half))

        def row(t: Val) -> None:
            there = block.routed(first + t) * intermediate + outputs * ROWS
            for column in range(0, ROWS, lanes):
                gate, up = (product.sum(half, t, column, lanes) for half in (0, 1))
                if routing is not None:
                    weight = routing.load(block.first + first + t)
                    gate, up = gate * weight, up * weight
                if product.weight.bias is not None:
                    gate, up = (
                        value + product.bias(block, outputs * 2 + half, column, lanes)
                        for half, value in enumerate((gate, up))
                    )
                value = gated(params["activation"], gate, up, params["alpha"], params["limit"])
                h.store(narrow(value, "bf16", product.tier).bits(vec(lanes, i16())), there + column)

        loop(0, rows, 1, [], row)

    product.over_tokens(block, token_tile)
