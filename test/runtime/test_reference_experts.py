"""runtime/reference.py, section 5 of the contract, against transformers' own experts."""

import pytest
import torch
from transformers import GptOssConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moeloom.runtime import reference

TOKENS, TOPK, EXPERTS, HIDDEN, INNER = 9, 3, 4, 64, 96


def setup(module: torch.nn.Module) -> tuple:
    generator = torch.Generator().manual_seed(0)
    module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    x = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOPK] for _ in range(TOKENS)]).int()
    return module, x, ids, torch.rand(TOKENS, TOPK, generator=generator)


def gpt_oss() -> tuple:
    return setup(GptOssExperts(GptOssConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)))


def mixtral(activation: str) -> tuple:
    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)
    config.hidden_act = activation
    return setup(MixtralExperts(config))


def relative(found: torch.Tensor, want: torch.Tensor) -> float:
    want = want.detach().double()
    return float((found.double() - want).norm() / want.norm())


def swiglu(module: torch.nn.Module) -> dict:
    return {
        "gate_up": module.gate_up_proj.data,
        "down": module.down_proj.data,
        "gate_up_bias": module.gate_up_proj_bias.data,
        "down_bias": module.down_proj_bias.data,
        "activation": "swiglu",
        "order": "interleaved",
        "weight_order": "kn",
    }


def test_swiglu_with_biases_interleaved() -> None:
    module, x, ids, weights = gpt_oss()
    want = module(x.double(), ids.long(), weights.double())
    found = reference.experts(x, ids, weights, **swiglu(module), out_dtype=torch.float64)
    assert relative(found, want) < 2e-3  # the activation result is rounded to bf16


@pytest.mark.parametrize(
    ("activation", "theirs"), [("silu", "silu"), ("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh")]
)
def test_concatenated_without_biases(activation: str, theirs: str) -> None:
    module, x, ids, weights = mixtral(theirs)
    want = module(x.double(), ids.long(), weights.double())
    found = reference.experts(
        x, ids, weights, module.gate_up_proj.data, module.down_proj.data, activation=activation, out_dtype=torch.float64
    )
    assert relative(found, want) < 2e-3


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = zip(*[reference.quantise(one.bfloat16(), "even") for one in weight], strict=True)
    return torch.stack(codes), torch.stack(scales)


def test_packed_weights_are_their_values() -> None:
    module, x, ids, weights = mixtral("silu")
    packed = [quantised(w.data) for w in (module.gate_up_proj, module.down_proj)]
    dense = [reference.dequantise(*p) for p in packed]
    module.gate_up_proj.data, module.down_proj.data = dense
    found = reference.experts(x, ids, weights, *packed)
    assert torch.equal(found, reference.experts(x, ids, weights, *dense))
    assert relative(found, module(x.double(), ids.long(), weights.double())) < 4e-3


@pytest.mark.parametrize("mode", ["even", "rceil"])
def test_quantised_activations(mode: str) -> None:
    """As transformers on the dequantised x, and the same from pre-quantised input."""
    module, x, ids, weights = mixtral("silu")
    w = (module.gate_up_proj.data, module.down_proj.data)
    options = {"activations": "mxfp4", "scale_mode": mode, "out_dtype": torch.float64}
    found = reference.experts(x, ids, weights, *w, **options)
    codes = reference.quantise(x, mode)
    assert torch.equal(found, reference.experts(codes, ids, weights, *w, **options))
    want = module(reference.dequantise(*codes), ids.long(), weights.double())
    assert 0.02 < relative(found, want) < 0.15  # what quantising the activation result costs
    assert relative(reference.experts(x, ids, weights, *w, out_dtype=torch.float64), want) > 0.05


def test_routing_weight_in_stage_one() -> None:
    """Before the first bias: the same as weighting the input, one slot at a time."""
    module, x, ids, weights = gpt_oss()
    found = reference.experts(x, ids, weights, **swiglu(module), routing_weight_stage=1, out_dtype=torch.float64)
    want = torch.zeros_like(found)
    for slot in range(TOPK):
        one = weights[:, slot : slot + 1].double()
        want += module(x.double() * one, ids[:, slot : slot + 1].long(), torch.ones_like(one))
    assert relative(found, want) < 2e-3


def test_slots_without_expert_give_nothing() -> None:
    module, x, ids, weights = gpt_oss()
    options = swiglu(module) | {"out_dtype": torch.float64}
    some = ids.clone()
    some[2], some[4, 1] = -1, -1
    found = reference.experts(x, some, weights, **options, num_tokens=7)
    keep = (some >= 0).double()
    keep[7:] = 0
    assert relative(found, reference.experts(x, ids, weights * keep.float(), **options)) < 1e-12
    assert not found[2].any() and not found[7:].any()


def test_expert_map() -> None:
    module, x, ids, weights = gpt_oss()
    full = swiglu(module) | {"out_dtype": torch.float64}
    mask = torch.tensor([True, False, True, False])
    local = {k: v[mask] if isinstance(v, torch.Tensor) else v for k, v in full.items()}
    want = reference.experts(x, torch.where(mask[ids.long()], ids, -1), weights, **full)
    assert torch.equal(reference.experts(x, ids, weights, **local, expert_map=mask), want)
    index = torch.tensor([0, -1, 1, -1], dtype=torch.int32)
    assert torch.equal(reference.experts(x, ids, weights, **local, expert_map=index), want)


def test_the_activation_result_is_bf16_whatever_x_is() -> None:
    module, x, ids, weights = mixtral("silu")
    assert torch.equal(x.half().bfloat16(), x)
    w = (module.gate_up_proj.data, module.down_proj.data)
    found = reference.experts(x.half(), ids, weights, *w, out_dtype=torch.float64)
    assert torch.equal(found, reference.experts(x, ids, weights, *w, out_dtype=torch.float64))
    assert relative(found, module(x.double(), ids.long(), weights.double())) > 5e-4
