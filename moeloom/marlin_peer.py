"""vLLM's Marlin MoE kernels (0.22) as a peer on NVIDIA GPUs: bf16 activations, MXFP4 weights, W4A16.

The kernels are in the wheel's `_moe_C.abi3.so`, which is looked for on `sys.path`. Weights are repacked here, by
`moeloom.marlin_layout`; the activation between the products is a Triton kernel of ours, since vLLM's is in another,
much larger library. H is padded to a multiple of 256 and I to one of 128, as vLLM does; x comes padded, which vLLM's
layer does in the call.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeloom.expert_weights import ExpertWeights, Product, expert_weights
from moeloom.marlin_layout import bias_of, padded, payload_of, scales_of
from moeloom.peers import NoPeer, Peer, linear_softmax_router, without_close_experts
from moeloom.routing import Router
from moeloom.runtime.executable import Executable

NAME = "Marlin"
LIBRARY = "_moe_C.abi3.so"
HIDDEN_MULTIPLE, INTERMEDIATE_MULTIPLE = 256, 128
FLOAT4_E2M1F = 562949953487106  # vLLM's ScalarType.id
ROWS = (8, 16, 32, 48, 64)
FULL = 0.9
"""A sort block has as few of ROWS rows as leave it less full than this, by the mean; vLLM's rule."""
WORKSPACE_PER_SM = 4


def provide(executable: Executable, names: Sequence[str]) -> list[Peer]:
    """A peer of these blocks; NoPeer where the library or the model does not allow one."""
    operators = loaded()
    routers = {name: linear_softmax_router(executable, name, NAME) for name in names}
    layers = {name: Layer(operators, routers[name], expert_weights(executable, name)) for name in names}
    pad = next(iter(layers.values())).pad
    return [Peer(NAME, layers, lambda tokens: True, lambda name, x: without_close_experts(routers[name], x), pad)]


def loaded() -> Any:
    """The library's operators; NoPeer where it is not to be had."""
    found = next((path for entry in sys.path if (path := Path(entry) / LIBRARY).is_file()), None)
    if found is None:
        raise NoPeer(f"{NAME}: no {LIBRARY} of vLLM 0.22 on sys.path")
    try:
        importlib.import_module("triton")  # the activation's compiler
        torch.ops.load_library(str(found.resolve()))
    except Exception as error:
        raise NoPeer(f"{NAME} cannot be loaded: {type(error).__name__}: {error}".splitlines()[0]) from None
    return torch.ops._moe_C


class Layer:
    """One block: x bf16 [M, padded H] -> [M, H]."""

    def __init__(self, operators: Any, router: Router, weights: ExpertWeights):
        if weights.activation not in ("swiglu", "silu") or not weights.weighted_late:
            raise NoPeer(f"{NAME}: no {weights.activation}, or weighted rows of the first product")
        self._operators, self._router = operators, router
        self.hidden, inner = weights.down.codes.shape[1], weights.down.codes.shape[2] * 2
        self._columns = padded(self.hidden, HIDDEN_MULTIPLE)
        self._inner = padded(inner, INTERMEDIATE_MULTIPLE)
        self._gate_up = _repacked(weights.gate_up, 2 * self._inner, self._columns)
        self._down = _repacked(weights.down, self._columns, self._inner)
        self._experts, self._topk = len(weights.down.codes), weights.topk
        self._activation = (weights.activation == "swiglu", weights.alpha, weights.limit)
        device = weights.down.codes.device
        units = torch.cuda.get_device_properties(device).multi_processor_count
        self._workspace = torch.zeros(WORKSPACE_PER_SM * units, dtype=torch.int32, device=device)

    def pad(self, x: Tensor) -> Tensor:
        """x with columns of zeros up to those of the layer."""
        return torch.nn.functional.pad(x, (0, self._columns - self.hidden)).contiguous()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        from moeloom.marlin_activation import activate

        m, topk = x.shape[0], self._topk
        ints: Any = {"dtype": torch.int32, "device": x.device}
        ids, sources = (torch.empty(m, topk, **ints) for _ in range(2))
        share = torch.empty(m, topk, device=x.device)
        self._operators.topk_softmax(share, ids, sources, self._router.logits(x[:, : self.hidden]), True, None)
        rows = block_rows(m * topk / self._experts)
        most = sorted_rows(m * topk, self._experts, rows)
        lists = (torch.empty(most, **ints), torch.empty(-(-most // rows), **ints), torch.empty(1, **ints))
        self._operators.moe_align_block_size(ids, self._experts, rows, *lists, None)
        halves = self._product(x, self._gate_up, lists, share, rows, topk, weighted=False)
        hidden = torch.empty(m * topk, self._inner, dtype=x.dtype, device=x.device)
        activate(halves, hidden, *self._activation)
        slots = self._product(hidden, self._down, lists, share, rows, 1, weighted=True)
        out = torch.empty(m, self._columns, dtype=x.dtype, device=x.device)
        self._operators.moe_sum(slots.view(m, topk, self._columns), out)
        return out[:, : self.hidden]

    def _product(
        self, x: Tensor, packed: tuple, lists: tuple, share: Tensor, rows: int, topk: int, *, weighted: bool
    ) -> Tensor:
        """bf16 [M * topk of the model, N]; `topk` is how many rows of the result one of x has."""
        payload, scales, bias, outputs, columns = packed
        made = torch.empty(x.shape[0] * topk, outputs, dtype=x.dtype, device=x.device)
        self._operators.moe_wna16_marlin_gemm(
            x, made, payload, bias, scales, None, None, None, None, None, self._workspace, *lists, share,
            rows, topk, weighted, FLOAT4_E2M1F, x.shape[0], outputs, columns, True, False, True, False, -1, -1, -1,
        )  # fmt: skip
        return made


def _repacked(product: Product, outputs: int, columns: int) -> tuple[Tensor, Tensor, Tensor | None, int, int]:
    bias = None if product.bias is None else bias_of(product.bias, outputs)
    scales = scales_of(product.scales, outputs, columns).view(torch.float8_e8m0fnu)
    return payload_of(product.codes, outputs, columns), scales, bias, outputs, columns


def block_rows(rows_an_expert: float) -> int:
    """Rows of a sort block, for the mean number of rows an expert has."""
    return next((rows for rows in ROWS if rows_an_expert / rows < FULL), ROWS[-1])


def sorted_rows(routed: int, experts: int, rows: int) -> int:
    """How long the sorted list may get: every expert's last block all but empty."""
    most = routed + experts * (rows - 1)
    return min(routed * rows, most) if routed < experts else most
