"""The example's checkpoints, as transformers reads them."""

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

from moeloom.checkpoint import Checkpoint

FAMILIES = ["gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "glm4_moe"]


def load(family, directory):
    """The model as transformers loads it, and what it says about names that do not fit."""
    quantised = {"quantization_config": transformers.Mxfp4Config(dequantize=True)} if family == "gpt_oss" else {}
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, output_loading_info=True, **quantised
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_every_tensor_and_stays_in_range(checkpoint, family):
    model, info = load(family, checkpoint(family))
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    assert 0.3 < logits.float().std() < 3


def test_experts_neither_vanish_nor_explode(checkpoint):
    model, _ = load("gpt_oss", checkpoint("gpt_oss"))
    x = torch.randn(1, 32, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        out, _ = model.model.layers[0].mlp(x)
    assert 0.05 < out.float().std() < 5


def test_gpt_oss_has_the_published_names_and_shapes(checkpoint):
    source = Checkpoint(checkpoint("gpt_oss"))
    at = "model.layers.0.mlp"
    assert {name: source.shape(name) for name in source.names() if name.startswith(at)} == {
        f"{at}.router.weight": (8, 64),
        f"{at}.router.bias": (8,),
        f"{at}.experts.gate_up_proj_blocks": (8, 128, 2, 16),
        f"{at}.experts.gate_up_proj_scales": (8, 128, 2),
        f"{at}.experts.gate_up_proj_bias": (8, 128),
        f"{at}.experts.down_proj_blocks": (8, 64, 2, 16),
        f"{at}.experts.down_proj_scales": (8, 64, 2),
        f"{at}.experts.down_proj_bias": (8, 64),
    }


def test_seed_decides_every_byte(make_checkpoint, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        make_checkpoint.main([str(tmp_path / name), "--layers", "1", "--seed", seed], standalone_mode=False)
    first, second, other = (load_file(tmp_path / name / "model-00001-of-00002.safetensors") for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["model.layers.0.mlp.experts.down_proj_blocks"], other["model.layers.0.mlp.experts.down_proj_blocks"]
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--hidden", "80"], "--hidden is 80; MXFP4 needs a multiple of 32"),
        (["--intermediate", "8"], "--intermediate is 8; MXFP4 needs a multiple of 32"),
        (["--topk", "9"], "--topk is 9, of 8 experts"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make_checkpoint, tmp_path, arguments, reason):
    result = CliRunner().invoke(make_checkpoint.main, [str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2 and reason in result.output
    assert not (tmp_path / "out").exists()
