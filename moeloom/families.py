"""The model families of transformers that moeloom imports, and the hook that turns their blocks into two operators.

Inside `hooked(block, num_tokens)` the block's own forward runs unchanged, except that its router ends in
`torch.ops.moe.route` and its experts are one `torch.ops.moe.experts`. The router's product, shared experts and all
else stay what they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeloom import torch_ops
from moeloom.experts import mxfp4_weights
from moeloom.model_config import ModelError
from moeloom.runtime.reference import GROUP

EXPERTS_IMPLEMENTATION = "moeloom"
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Routing:
    """How a family chooses experts: the attributes of `moe.route`, besides `topk`."""

    score: str
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1


def _softmax_after(router: nn.Module) -> Routing:
    return Routing("softmax_after_topk")


def _softmax_before_renormalised(router: nn.Module) -> Routing:
    return Routing("softmax_before_topk", renormalise=True)


def _softmax_before(router: Any) -> Routing:
    return Routing("softmax_before_topk", renormalise=bool(router.norm_topk_prob))


def _sigmoid_in_groups(router: Any) -> Routing:
    return Routing(
        "sigmoid",
        renormalise=bool(router.norm_topk_prob),
        scale=float(router.routed_scaling_factor),
        groups=router.num_group or 1,
        top_groups=router.topk_group or 1,
    )


@dataclass(frozen=True)
class Family:
    """One model type: its block class, where the block keeps its router, and how that routes.

    `rank` is that of the activations its forward takes: 3 where it unpacks (batch, sequence, hidden), 2 where any does.
    `float32` names the weights that it uses as f32 whatever their dtype is: those are asked for as f32.
    """

    model_type: str
    block: str
    router: str
    routing: Callable[[Any], Routing]
    rank: int = 3
    float32: tuple[str, ...] = ()


SIGMOID_ROUTER = ("gate.weight", "gate.e_score_correction_bias")
FAMILIES = (
    Family("gpt_oss", "GptOssMLP", "router", _softmax_after),
    Family("mixtral", "MixtralSparseMoeBlock", "gate", _softmax_before_renormalised),
    Family("qwen3_moe", "Qwen3MoeSparseMoeBlock", "gate", _softmax_before),
    Family("deepseek_v3", "DeepseekV3MoE", "gate", _sigmoid_in_groups, rank=2, float32=SIGMOID_ROUTER),
    Family("olmoe", "OlmoeSparseMoeBlock", "gate", _softmax_before),
    Family("glm4_moe", "Glm4MoeMoE", "gate", _sigmoid_in_groups, rank=2, float32=SIGMOID_ROUTER),
)
KNOWN = f"it imports {', '.join(family.model_type for family in FAMILIES)}"


def is_block(module: nn.Module) -> bool:
    """Whether `module` is the MoE block of a family, subclasses included."""
    return any(family.block in _class_names(module) for family in FAMILIES)


def family_of(block: nn.Module) -> Family:
    """The family whose MoE block this is; ModelError for any other module."""
    for family in FAMILIES:
        if family.block in _class_names(block):
            return family
    raise ModelError(f"{type(block).__name__} is no MoE block that moeloom knows; {KNOWN}")


def _class_names(module: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(module).__mro__}


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Every MoE block of `model` by its module path ("" is the model itself), in module order.

    Raises ModelError where there is none.
    """
    blocks = {path: module for path, module in model.named_modules() if is_block(module)}
    if not blocks:
        raise ModelError(f"{type(model).__name__} has no MoE block that moeloom knows; {KNOWN}")
    return blocks


class Mxfp4Experts(nn.Module):
    """gpt-oss experts as checkpoints store them: e2m1 `_blocks` u8 [E, N, K/32, 16], e8m0 `_scales` u8 [E, N, K/32].

    Takes the place of the bf16 `experts` module on the meta device; `forward` has the signature of that module's.
    """

    down_proj_blocks: Tensor

    def __init__(self, experts: Any):
        super().__init__()
        self.alpha, self.limit = experts.alpha, experts.limit
        bias = experts.down_proj_bias
        sizes = experts.num_experts, experts.hidden_size, experts.intermediate_size
        for name, (shape, element) in mxfp4_weights(*sizes, "bias"):
            if element == "bias":
                self.register_parameter(name, getattr(experts, name))
            else:
                packed = torch.empty(shape, dtype=torch.uint8, device=bias.device)
                self.register_parameter(name, nn.Parameter(packed, requires_grad=False))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return run_experts(self, x, ids, weights)


def run_experts(experts: Any, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """`torch.ops.moe.experts` of an experts module: one of transformers' or `Mxfp4Experts`.

    The signature is that of transformers' experts registry.
    """
    tensors = (None if name is None else getattr(experts, name) for name in operands(experts))
    ids, weights = _as(ids, torch.int32), _as(weights, torch.float32)
    return torch_ops.experts(x, None, ids, weights, *tensors, x.dtype, *arguments(experts))


def operands(experts: Any) -> tuple[str | None, ...]:
    """The names of gate_up, its scales and bias, down, its scales and bias; None is one that there is not."""
    suffix = "_blocks" if isinstance(experts, Mxfp4Experts) else ""
    parts = (f"{product}{part}" for product in ("gate_up_proj", "down_proj") for part in (suffix, "_scales", "_bias"))
    return tuple(name if getattr(experts, name, None) is not None else None for name in parts)


def arguments(experts: Any) -> tuple[str, float, float, str, str]:
    """`activation`, `alpha`, `limit`, `gate_up_order` and `weight_order` of `moe.experts`."""
    packed = isinstance(experts, Mxfp4Experts)
    gate_up_order = "interleaved" if packed or not experts.is_concatenated else "concatenated"
    return *_activation(experts), gate_up_order, "kn" if not packed and experts.is_transposed else "nk"


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in `dtype`; an export would keep a `to` that changes nothing."""
    return value if value.dtype == dtype else value.to(dtype)


def sizes(experts: Any) -> tuple[int, int]:
    """H and I of an experts module."""
    if isinstance(experts, Mxfp4Experts):
        _, hidden, groups, _ = experts.down_proj_blocks.shape
        return hidden, groups * GROUP
    _, rows, columns = experts.down_proj.shape
    return (columns, rows) if experts.is_transposed else (rows, columns)


def structure(block: Any) -> tuple:
    """What makes two blocks the same program: class, routing, activation, and every weight's name, shape and dtype."""
    family = family_of(block)
    router = getattr(block, family.router)
    tensors = tuple((name, tuple(value.shape), value.dtype) for name, value in block.state_dict().items())
    return type(block), router.top_k, family.routing(router), _activation(block.experts), tensors


def output_dtype(experts: nn.Module) -> torch.dtype:
    """The floating dtype of a block's activations: that of its experts' weights or, where those are packed, biases."""
    return next(p.dtype for p in experts.parameters() if p.is_floating_point())


def _activation(experts: Any) -> tuple[str, float, float]:
    """`activation`, `alpha` and `limit` of `moe.experts`."""
    if hasattr(experts, "alpha"):
        return "swiglu", float(experts.alpha), float(experts.limit)
    name = experts.config.hidden_act
    if name not in ACTIVATIONS:
        raise ModelError(f"hidden_act is {name!r}; moeloom compiles experts with {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name], 0.0, 0.0


def run_router(router: Any, routing: Routing, num_tokens: Tensor | None, x: Tensor) -> tuple[Tensor, ...]:
    """What every router of the families returns: logits [M, E], weights f32 [M, k], ids i32 [M, k]."""
    x = x.reshape(-1, x.shape[-1])
    correction = getattr(router, "e_score_correction_bias", None)
    if routing.score == "sigmoid":
        logits = F.linear(x.float(), router.weight.float())
    else:
        logits = F.linear(x, router.weight, getattr(router, "bias", None))
    weights, ids = torch_ops.route(
        logits,
        correction,
        num_tokens,
        router.top_k,
        routing.score,
        routing.renormalise,
        routing.scale,
        routing.groups,
        routing.top_groups,
    )
    return logits, weights, ids


@contextmanager
def hooked(block: Any, num_tokens: Tensor | None = None) -> Iterator[None]:
    """While entered, `block` computes through the two operators; `num_tokens` i32 [1] of its rows are tokens."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    family = family_of(block)
    router, experts = getattr(block, family.router), block.experts
    routing = family.routing(router)
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, run_experts)
    config = getattr(experts, "config", None)
    before = getattr(config, "_experts_implementation", None)
    router.forward = lambda x: run_router(router, routing, num_tokens, x)
    if config is not None:
        config._experts_implementation = EXPERTS_IMPLEMENTATION
    try:
        yield
    finally:
        del router.forward
        if config is not None:
            config._experts_implementation = before


def run_block(block: Any, x: Tensor, num_tokens: Tensor | None = None) -> Tensor:
    """`block` on activations [M, H] -> [M, H], through the two operators."""
    family = family_of(block)
    with hooked(block, num_tokens):
        out = block(x if family.rank == 2 else x.unsqueeze(0))
    out = out[0] if isinstance(out, tuple) else out
    return out.squeeze(0) if out.dim() == 3 else out
