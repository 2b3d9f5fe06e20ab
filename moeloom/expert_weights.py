"""The expert weights of an artifact's entry as other libraries take them: MXFP4 as it is, row by row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moeloom.kernel_reference import TEMPLATES, Weight
from moeloom.replay import Replay
from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Launch

EXPERT_TEMPLATES = tuple(name for name in TEMPLATES if name.endswith(("gate_up", "down", "one_stage")))


@dataclass(frozen=True)
class Product:
    """One product of every expert: codes u8 [E, N, K/2], e8m0 scales u8 [E, N, K/32], bias f32 [E, N]."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ExpertWeights:
    """Both products, gate_up with its rows gate, up, gate, up ..., and what is between them.

    `weighted_late`: the routing weight multiplies the second product.
    """

    gate_up: Product
    down: Product
    activation: str
    alpha: float
    limit: float
    topk: int
    weighted_late: bool


def expert_weights(executable: Executable, name: str) -> ExpertWeights:
    """The expert weights of entry `name`, unpacked one expert at a time, on the artifact's device."""
    replay = Replay(executable, name)
    launches = [step for step in replay.program.chosen(1) if isinstance(step, Launch)]
    kernels = [(replay.kernels[step.kernel], step) for step in launches]
    experts = [(found, step) for found, step in kernels if found["template"] in EXPERT_TEMPLATES]
    operands = [replay.weights[value] for _, step in experts for value in step.operands if value in replay.weights]
    gate_up, rest = _product(operands)
    down, _ = _product(rest)
    params = experts[0][0]["params"]
    late = params.get("routing_weight_stage", 2) == 2 and not params.get("has_weights", False)
    sizes = (params["activation"], params["alpha"], params["limit"], params["topk"])
    return ExpertWeights(gate_up, down, *sizes, weighted_late=late)


def _product(operands: list[Weight]) -> tuple[Product, list[Weight]]:
    """The product that comes first, and the operands of the next one."""
    parts = list(operands[0].parts())
    rest = operands[1:]
    if len(parts) == 1:
        parts, rest = [*parts, rest[0]], rest[1:]
    bias = None
    if rest and rest[0].kind == "bias":
        bias, rest = _interleaved(rest[0]), rest[1:]
    codes, scales = (_interleaved(part) for part in parts)
    return Product(codes, scales, bias), rest


def _interleaved(weight: Weight) -> Tensor:
    """Every expert, gate and up rows in turns where the checkpoint has one half after the other."""
    experts = [weight[e] for e in range(weight.packed.shape[0])]
    if weight.rows.endswith("concatenated"):
        experts = [torch.stack(one.chunk(2), 1).flatten(0, 1) for one in experts]
    return torch.stack(experts)
