"""moeloom/expert_weights.py: whatever the layout of an artifact, other libraries get the checkpoint's experts."""

import pytest
import torch

import moeloom
from moeloom.expert_weights import expert_weights
from moeloom.runtime.reference import quantise

BLOCK = "model.layers.0.mlp"
LAYOUTS = {
    "cpu": ({}, {"device": "cpu"}),
    "stream": ({"targets": ["sm_90"]}, {"device": "null"}),
    "row_major": ({"targets": ["sm_90"], "weight_layout": "row_major"}, {"device": "null"}),
    "one_stage": ({"stages": 1}, {"device": "cpu"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpt_oss(tiny_checkpoint, tmp_path, layout):
    compiling, loading = LAYOUTS[layout]
    moeloom.compile(tiny_checkpoint, tmp_path / "a.moel", activations="bf16", **compiling)
    source = moeloom.import_torch(tiny_checkpoint).weights
    with moeloom.load(tmp_path / "a.moel", **loading) as executable:
        found = expert_weights(executable, BLOCK)
    for product, name in ((found.gate_up, "gate_up_proj"), (found.down, "down_proj")):
        blocks, scales, bias = (source.get(f"{BLOCK}.experts.{name}{part}") for part in ("_blocks", "_scales", "_bias"))
        assert torch.equal(product.codes, blocks.flatten(-2))
        assert torch.equal(product.scales, scales)
        assert torch.equal(product.bias, bias.float())
    assert (found.activation, found.limit, found.topk) == ("swiglu", 7.0, 2)
    assert found.alpha == pytest.approx(1.702)
    assert found.weighted_late


def test_gate_and_up_take_turns_where_a_checkpoint_has_them_apart(checkpoint, tmp_path):
    moeloom.compile(checkpoint("qwen3_moe"), tmp_path / "a.moel", quantize_weights="mxfp4")
    source = moeloom.import_torch(checkpoint("qwen3_moe")).weights
    with moeloom.load(tmp_path / "a.moel", device="cpu") as executable:
        found = expert_weights(executable, BLOCK)
    gate, up = source.get(f"{BLOCK}.experts.gate_up_proj")[3].chunk(2)
    for number, rows in ((0, gate), (1, up)):
        codes, scales = quantise(rows, "even")
        assert torch.equal(found.gate_up.codes[3, number::2], codes)
        assert torch.equal(found.gate_up.scales[3, number::2], scales)
    assert found.gate_up.bias is None and found.activation == "silu"
