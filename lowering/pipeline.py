"""The pipeline of a target, as one readable list."""

from dataclasses import dataclass
from typing import Any, Literal

from moeloom.lowering.lower_to_kernels import LowerToKernels
from moeloom.lowering.targets import Target
from moeloom.passes.fuse_quant_sort import FuseQuantSort
from moeloom.passes.pipeline import Step
from moeloom.passes.plan_experts import PlanExperts
from moeloom.passes.quantize_weights import QuantizeWeights
from moeloom.passes.raise_torch import RaiseTorch


@dataclass(frozen=True)
class Options:
    """What a user may choose; written into the manifest. `stages` 0 is auto: the target's own choice."""

    activations: Literal["mxfp4", "bf16"] = "mxfp4"
    stages: Literal[0, 1, 2] = 0
    fusion: Literal["auto", "fused", "split"] = "auto"
    scale_mode: Literal["even", "rceil", "floor", "ceil"] = "even"
    quantize_weights: Literal["", "mxfp4"] = ""


def _prefill(options: Options, target: Target) -> dict[str, Any]:
    """The options of moe-plan-experts for more tokens than decode has, where the target plans them otherwise."""
    if target.prefill is None:
        return {}
    return {
        "decode_rows": target.decode_rows,
        "prefill_block": target.prefill.block,
        "prefill_stages": options.stages or target.prefill.stages,
    }


def phases(options: Options, target: Target) -> list[tuple[str, list[Step]]]:
    """Named phases, each a list of passes: ours as objects, upstream's by name."""
    quantize = [QuantizeWeights(scale_mode=options.scale_mode)] if options.quantize_weights else []
    plan = PlanExperts(
        stages=options.stages or target.decode.stages,
        activations=options.activations,
        scale_mode=options.scale_mode,
        block=target.decode.block,
        **_prefill(options, target),
    )
    return [
        ("raise", [RaiseTorch(), "canonicalize"]),
        ("quantize", [*quantize]),
        ("plan", [plan, "cse"]),
        ("fuse", [FuseQuantSort(), "canonicalize", "cse"]),
        ("lower", [LowerToKernels(target=target.name, fusion=options.fusion), "canonicalize", "cse"]),
    ]
