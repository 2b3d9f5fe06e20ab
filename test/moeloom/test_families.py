"""The hook against the blocks that it hooks: transformers' own forward is the oracle."""

import pytest
import torch
import transformers

from moeloom import families
from moeloom.checkpoint import Checkpoint
from moeloom.model_config import ModelError

FAMILIES = [family.model_type for family in families.FAMILIES]
# Beyond what make_checkpoint chooses: what changes how a family routes.
VARIANTS = [
    ("gpt_oss", {}),
    ("mixtral", {}),
    ("qwen3_moe", {"norm_topk_prob": True}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("olmoe", {"norm_topk_prob": True}),
    ("olmoe", {"norm_topk_prob": False}),
    ("deepseek_v3", {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0}),
    ("glm4_moe", {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5}),
    ("mixtral", {"hidden_act": "gelu"}),
    ("qwen3_moe", {"hidden_act": "gelu_pytorch_tanh"}),
]


@pytest.fixture
def block_of(moe_model):
    """block_of(family, **config) -> a random f32 MoE block of transformers with H = 96 and 8 experts."""

    def build(family, **config):
        (block,) = families.find_blocks(moe_model(family, **config).float()).values()
        return block

    return build


def original(block, x):
    out = block(x.unsqueeze(0))
    return (out[0] if isinstance(out, tuple) else out).squeeze(0)


@pytest.mark.parametrize(("family", "config"), VARIANTS)
def test_hooked_block_equals_the_original(block_of, relative_l2, family, config):
    block = block_of(family, **config)
    x = torch.randn(33, 96)
    with torch.no_grad():
        wanted = original(block, x)
        found = families.run_block(block, x)
    assert relative_l2(found, wanted) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_routing_equals_the_router(block_of, family):
    block = block_of(family)
    router = getattr(block, families.family_of(block).router)
    x = torch.randn(64, 96)
    with torch.no_grad():
        _, weights, ids = router(x)
        with families.hooked(block):
            _, own_weights, own_ids = router(x)
    order, own_order = ids.argsort(-1), own_ids.argsort(-1)  # deepseek's top-k is not sorted
    assert torch.equal(ids.gather(-1, order).int(), own_ids.gather(-1, own_order))
    torch.testing.assert_close(own_weights.gather(-1, own_order), weights.gather(-1, order), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_from_num_tokens_on_have_no_expert(block_of, family):
    block = block_of(family)
    router = getattr(block, families.family_of(block).router)
    with torch.no_grad(), families.hooked(block, torch.tensor([3], dtype=torch.int32)):
        _, weights, ids = router(torch.randn(5, 96))
    assert (ids[:3] >= 0).all() and (ids[3:] == -1).all()
    assert (weights[3:] == 0).all()


def test_hook_leaves_nothing_behind(block_of):
    block = block_of("mixtral")
    x = torch.randn(4, 96)
    before = block.experts.config._experts_implementation
    with torch.no_grad():
        wanted = original(block, x)
        families.run_block(block, x)
        assert torch.equal(original(block, x), wanted)
    assert block.experts.config._experts_implementation == before
    assert "forward" not in vars(block.gate)


def test_mxfp4_experts_equal_the_dequantised_ones(checkpoint, relative_l2):
    config = transformers.Mxfp4Config(dequantize=True)
    directory = checkpoint("gpt_oss")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=config, dtype=torch.float32
    )
    block = model.model.layers[0].mlp.eval()
    packed = families.Mxfp4Experts(block.experts)
    source = Checkpoint(directory)
    packed.load_state_dict({name: source.get(f"model.layers.0.mlp.experts.{name}") for name in packed.state_dict()})
    x, ids = torch.randn(9, 64), torch.randint(0, 8, (9, 2), dtype=torch.int32)
    weights = torch.rand(9, 2)
    with torch.no_grad():
        wanted = block.experts(x, ids.long(), weights)
        found = packed(x, ids, weights)
    assert relative_l2(found, wanted) <= 1e-5


def test_unknown_activation_is_refused(block_of):
    block = block_of("olmoe", hidden_act="relu")
    with pytest.raises(ModelError, match=r"^hidden_act is 'relu'; moeloom compiles experts with silu, swish, gelu"):
        families.run_block(block, torch.randn(4, 96))


def test_model_without_experts_is_refused():
    with pytest.raises(ModelError, match="Linear has no MoE block that moeloom knows; it imports gpt_oss, mixtral, "):
        families.find_blocks(torch.nn.Linear(4, 4))
