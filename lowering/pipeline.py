"""The pipeline of a target, as one readable list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moeloom.lowering.lower_to_kernels import LowerToKernels
from moeloom.lowering.packing import STREAMS, Layout
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
    weight_layout: Literal["auto", "row_major", "stream"] = "auto"


def layout_of(options: Options, target: Target) -> Layout:
    """The layout of weights: the target's preferred one, unless rows as they are, or its stream, were asked for.

    One-stage kernels read rows as they are on a GPU.
    """
    if options.stages == 1 or options.weight_layout == "row_major":
        wanted: Sequence[Layout] = ("row_major",)
    else:
        wanted = STREAMS if options.weight_layout == "stream" else ()
    return next((layout for layout in wanted if layout in target.layouts), target.layout)


def phases(options: Options, target: Target) -> list[tuple[str, list[Step]]]:
    """Named phases, each a list of passes: ours as objects, upstream's by name."""
    quantize = [QuantizeWeights(scale_mode=options.scale_mode)] if options.quantize_weights else []
    layout = layout_of(options, target)
    *decode, beyond = target.plans(layout)
    plan = PlanExperts(
        stages=options.stages or beyond.stages,
        activations=options.activations,
        scale_mode=options.scale_mode,
        block=beyond.block,
        decode=",".join(f"{few.rows}:{few.block}:{options.stages or few.stages}" for few in decode) or "none",
    )
    lower = LowerToKernels.of(target, fusion=options.fusion, layout=layout)
    return [
        ("raise", [RaiseTorch(), "canonicalize"]),
        ("quantize", [*quantize]),
        ("plan", [plan, "cse"]),
        ("fuse", [FuseQuantSort(), "canonicalize", "cse"]),
        ("lower", [lower, "canonicalize", "cse"]),
    ]
