"""What several tests share: small MoE blocks and checkpoints of real models, and how far two results lie apart."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import moeloom

# Read when a kernel is defined, so before any of ours is imported: in tests Triton kernels run on the CPU, interpreted.
# Compilation happens in worker processes, which do without.
os.environ["TRITON_INTERPRET"] = "1"

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HIDDEN, INTERMEDIATE, EXPERTS, TOPK = 96, 64, 8, 2

COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
SHARED = COMMON | {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": INTERMEDIATE,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_group": 4,
    "topk_group": 2,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": (
        "GptOss",
        COMMON
        | {
            "intermediate_size": INTERMEDIATE,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": 4,
            "head_dim": 32,
        },
    ),
    "mixtral": (
        "Mixtral",
        COMMON
        | {
            "intermediate_size": INTERMEDIATE,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": TOPK,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        COMMON
        | {
            "moe_intermediate_size": INTERMEDIATE,
            "num_experts": EXPERTS,
            "num_experts_per_tok": TOPK,
            "norm_topk_prob": True,
            "head_dim": 32,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        SHARED
        | {
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "routed_scaling_factor": 2.5,
        },
    ),
    "olmoe": (
        "Olmoe",
        COMMON
        | {
            "intermediate_size": INTERMEDIATE,
            "num_experts": EXPERTS,
            "num_experts_per_tok": TOPK,
        },
    ),
    "glm4_moe": (
        "Glm4Moe",
        SHARED
        | {
            "head_dim": 32,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
        },
    ),
}


@pytest.fixture
def relative_l2() -> Callable[[Tensor, Tensor], float]:
    """||found - wanted|| / ||wanted|| over the whole tensor, in float64."""

    def distance(found: Tensor, wanted: Tensor) -> float:
        found, wanted = found.double(), wanted.double()
        return float((found - wanted).norm() / wanted.norm())

    return distance


@pytest.fixture
def moe_model() -> Callable[..., nn.Module]:
    """A one-layer model of a family with random bf16 weights: `moe_model("mixtral", seed=0)`."""

    def build(family: str, seed: int = 0, **changes: Any) -> nn.Module:
        name, config = CONFIGS[family]
        torch.manual_seed(seed)
        made = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**config | changes))
        model = made.to(torch.bfloat16).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith("e_score_correction_bias"):
                    buffer.copy_(torch.randn(buffer.shape) * 0.1)
        return model

    return build


@pytest.fixture(scope="session")
def make_checkpoint() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", EXAMPLES / "make_checkpoint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_checkpoint"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint, tmp_path_factory):
    """checkpoint(family) -> a directory with two layers, H = I = 64, 8 experts, k = 2."""
    made = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make_checkpoint.main([str(made[family]), "--family", family], standalone_mode=False)
        return made[family]

    return directory


@pytest.fixture(scope="session")
def tiny_checkpoint(checkpoint) -> Path:
    """The gpt-oss checkpoint, with MXFP4 experts. Tests that change it copy it first."""
    return checkpoint("gpt_oss")


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint, tmp_path_factory) -> Path:
    """That checkpoint compiled for the CPU with MXFP4 activations. Tests that change it copy it first."""
    path = tmp_path_factory.mktemp("artifact") / "tiny.moel"
    moeloom.compile(tiny_checkpoint, path)
    return path
