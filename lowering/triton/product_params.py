"""What the templates of expert products take of their params (docs/program.md, "Triton templates and params")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .template import Params

OPTIONAL = ("x_scales", "sorted_weights", "bias")
"""Operands of gate_up and down that may be absent."""


def quantised(params: Params) -> bool:
    """Whether x comes as MXFP4 codes beside their sorted scales."""
    return params["x"] == "f4E2M1FN"


def weights(params: Params) -> str:
    """How the weight lies (docs/program.md, "Packed weights"): row_major, or as a stream that decode templates read."""
    return params.get("weights", "row_major")


def sorted_arguments(params: Params) -> list[tuple[str, str]]:
    """The operands that say which rows: [x_scales], sorted_ids, expert_ids, num_valid."""
    scales = [("x_scales", "*u8")] if quantised(params) else []
    return [*scales, ("sorted_ids", "*i32"), ("expert_ids", "*i32"), ("num_valid", "*i32")]


def product_arguments(params: Params) -> list[tuple[str, str]]:
    """The operands of gate_up and down after x."""
    routing = [("sorted_weights", "*fp32")] if params["has_weights"] else []
    bias = [("bias", "*fp32")] if params["has_bias"] else []
    form = {"stream": [("weight", "*i32")], "mfma_stream": [("weight", "*u8")]}
    weight = form.get(weights(params), [("weight", "*u8"), ("weight_scales", "*u8")])
    return [*sorted_arguments(params), *routing, *weight, *bias]


def product_constants(params: Params) -> dict[str, Any]:
    """Sizes, tile and form of x."""
    names = ("hidden", "intermediate", "topk", "block", "block_n", "block_k", "x", "layout")
    return {name.upper(): params[name] for name in names}


def activation_constants(params: Params) -> dict[str, Any]:
    """The activation and its numbers."""
    return {name.upper(): params[name] for name in ("activation", "alpha", "limit")}


def absent(optional: Sequence[str], arguments: Sequence[tuple[str, str]]) -> dict[str, None]:
    """None for each operand of `optional` that is not passed."""
    passed = {name for name, _ in arguments}
    return {name: None for name in optional if name not in passed}
