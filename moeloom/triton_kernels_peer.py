"""OpenAI's triton_kernels (3.5.1, as vLLM 0.22 carries it) as a peer on NVIDIA GPUs: bf16 activations, MXFP4 weights.

Its own routing, its own products on its own layouts of the artifact's very weights, its own fused SwiGLU; the router's
product is ATen's, as in the compiled program. A SiLU layer is that SwiGLU with alpha = 1, no limit, and 1 taken off
the bias of the up rows: (up - 1 + 1) * gate * sigmoid(gate). The library is found on `sys.path`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from moeloom.expert_weights import ExpertWeights, Product, expert_weights
from moeloom.peers import NoPeer, Peer, linear_softmax_router, without_close_experts
from moeloom.routing import Router
from moeloom.runtime.executable import Executable

NAME = "triton_kernels"
NO_LIMIT = 1e30
NUM_WARPS = 8  # that the scales' layout is made for; what vLLM takes


def provide(executable: Executable, names: Sequence[str]) -> list[Peer]:
    """A peer of these blocks; NoPeer where the library or the model does not allow one."""
    library = imported()
    routers = {name: linear_softmax_router(executable, name, NAME) for name in names}
    layers = {name: Layer(library, routers[name], expert_weights(executable, name)) for name in names}
    return [Peer(NAME, layers, lambda tokens: True, lambda name, x: without_close_experts(routers[name], x))]


def imported() -> SimpleNamespace:
    """The names that a layer needs; NoPeer where they are not to be had."""
    try:
        from triton_kernels import matmul_ogs, routing, swiglu, tensor
        from triton_kernels.matmul_ogs_details import opt_flags
        from triton_kernels.numerics import InFlexData
        from triton_kernels.tensor_details import layout
    except Exception as error:
        raise NoPeer(f"{NAME} cannot be imported: {type(error).__name__}: {error}".splitlines()[0]) from None
    opt_flags.update_opt_flags_constraints({"split_k": 1})  # as vLLM does on Hopper
    return SimpleNamespace(
        matmul=matmul_ogs, routing=routing, swiglu=swiglu, tensor=tensor, layout=layout, InFlexData=InFlexData
    )


class Layer:
    """One block: x bf16 [M, H] -> [M, H]."""

    def __init__(self, library: SimpleNamespace, router: Router, weights: ExpertWeights):
        if weights.activation not in ("swiglu", "silu") or not weights.weighted_late:
            raise NoPeer(f"{NAME}: its products have no {weights.activation} or weight rows of the first one")
        self._library, self._router, self._topk = library, router, weights.topk
        silu = weights.activation == "silu"
        self._gate_up = self._product(weights.gate_up)
        self._down = self._product(weights.down)
        self._gate_up_bias, self._down_bias = weights.gate_up.bias, weights.down.bias
        if silu:
            self._gate_up_bias = up_minus_one(weights.gate_up)
        matmul, swiglu = library.matmul, library.swiglu
        specs = matmul.FnSpecs("swiglu", swiglu.swiglu_fn, ("alpha", "limit"))
        self._activation = matmul.FusedActivation(specs, (1.0, NO_LIMIT) if silu else (weights.alpha, weights.limit), 2)

    def _product(self, product: Product) -> tuple[Any, Any]:
        """Weights [E, K, N] in the library's layout, and what its product must know of them."""
        tensor, layout, matmul = self._library.tensor, self._library.layout, self._library.matmul
        value_layout, value_options = layout.make_default_matmul_mxfp4_w_layout(mx_axis=1)
        scale_layout, scale_options = layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=1, num_warps=NUM_WARPS)
        codes = tensor.wrap_torch_tensor(product.codes.transpose(-2, -1), dtype=tensor.FP4)
        scales = tensor.wrap_torch_tensor(product.scales.transpose(-2, -1))
        flex = matmul.FlexCtx(rhs_data=self._library.InFlexData())
        config = matmul.PrecisionConfig(
            weight_scale=tensor.convert_layout(scales, scale_layout, **scale_options), flex_ctx=flex
        )
        return tensor.convert_layout(codes, value_layout, **value_options), config

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        routing, matmul = self._library.routing.routing, self._library.matmul.matmul_ogs
        routed, gather, scatter = routing(self._router.logits(x), self._topk)
        weight, config = self._gate_up
        hidden = matmul(
            x, weight, self._gate_up_bias, routed,
            gather_indx=gather, precision_config=config, fused_activation=self._activation,
        )  # fmt: skip
        weight, config = self._down
        return matmul(
            hidden, weight, self._down_bias, routed,
            scatter_indx=scatter, precision_config=config, gammas=routed.gate_scal,
        )  # fmt: skip


def up_minus_one(gate_up: Product) -> Tensor:
    """The bias f32 [E, 2I] of gate_up, 1 less for its up rows."""
    bias = torch.zeros(gate_up.codes.shape[:2], device=gate_up.codes.device)
    bias = bias if gate_up.bias is None else gate_up.bias.clone()
    bias[:, 1::2] -= 1
    return bias
