"""experts_one_stage against `reference.experts`."""

import pytest
import torch
from torch import Tensor

from moeloom.runtime import reference

EXPERTS, TOPK, TOKENS, HIDDEN, INTERMEDIATE = 4, 2, 7, 96, 64
BLOCK_N, BLOCK_H = 32, 64
TOLERANCE = 1e-2  # the interpreter truncates f32 to bf16
ROUTED = TOKENS * TOPK


def mx_weight(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(256, (EXPERTS, rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(118, 123, (EXPERTS, rows, columns // 32), dtype=torch.uint8)


def combined(partial: Tensor, ids: Tensor) -> Tensor:
    """f32 [slices, R, H] summed over slices and slots; rows of slots without an expert must be untouched."""
    rows = partial.sum(0).view(TOKENS, TOPK, HIDDEN)
    assert rows[ids < 0].isnan().all()
    return rows.masked_fill((ids < 0).unsqueeze(-1), 0).sum(1)


@pytest.mark.parametrize(
    ("x", "layout", "block", "stage", "mode", "biases"),
    [
        pytest.param("bf16", "none", 16, 2, "none", True, id="bf16"),
        pytest.param("f16", "none", 16, 2, "none", False, id="f16"),
        pytest.param("bf16", "none", 32, 1, "none", True, id="weights in stage 1"),
        pytest.param("f4E2M1FN", "tiled_32x8", 16, 2, "even", True, id="tiled codes"),
        pytest.param("f4E2M1FN", "row_major", 32, 1, "rceil", False, id="row-major codes"),
    ],
)
def test_one_stage(interpret, relative_l2, x, layout, block, stage, mode, biases):
    torch.manual_seed(0)
    ids = torch.randint(EXPERTS - 1, (TOKENS, TOPK), dtype=torch.int32)
    ids[0], ids[1, 1] = -1, -1
    weights = torch.rand(TOKENS, TOPK) + 0.5
    sorted_ids, sorted_weights, expert_ids, num_valid = reference.sort_tokens(ids, weights, EXPERTS, block)
    values = torch.randn(TOKENS, HIDDEN, dtype=torch.float16 if x == "f16" else torch.bfloat16)
    values[0] = torch.nan
    given, operands = values, [(values, HIDDEN)]
    if x == "f4E2M1FN":
        given = reference.quantise(values, mode)
        placed = reference.sort_scales(given[1], sorted_ids, num_valid, 1, TOPK, layout)
        operands = [(given[0], HIDDEN // 2), placed]
    first, second = mx_weight(2 * INTERMEDIATE, HIDDEN), mx_weight(HIDDEN, INTERMEDIATE)
    bias = torch.randn(EXPERTS, 2 * INTERMEDIATE), torch.randn(EXPERTS, HIDDEN)
    bias_of = {"gate_up_bias": bias[0], "down_bias": bias[1]} if biases else {}
    activation = {"activation": "swiglu", "alpha": 1.702, "limit": 2.0}
    params = {
        "hidden": HIDDEN,
        "intermediate": INTERMEDIATE,
        "topk": TOPK,
        "block": block,
        "x": x,
        "layout": layout,
        **activation,
        "requantize": mode,
        "routing_weight_stage": stage,
        "has_gate_up_bias": biases,
        "has_down_bias": biases,
        "block_n": BLOCK_N,
        "block_k": 64,
        "block_h": BLOCK_H,
    }
    slices = INTERMEDIATE // BLOCK_N
    partial = torch.full((slices, ROUTED, HIDDEN), torch.nan)
    listed = [sorted_ids, expert_ids, num_valid, sorted_weights]
    weight = [*first, *bias[:biases], *second, *bias[1 : 1 + biases]]
    interpret("experts_one_stage", params, [*operands, *listed, *weight], [partial], TOKENS, len(expert_ids) * slices)
    wanted = reference.experts(
        given,
        ids,
        weights,
        first,
        second,
        **bias_of,
        **activation,
        activations="bf16" if mode == "none" else "mxfp4",
        scale_mode="even" if mode == "none" else mode,
        routing_weight_stage=stage,
        out_dtype=torch.float32,
    )
    assert relative_l2(combined(partial, ids), wanted) < TOLERANCE
