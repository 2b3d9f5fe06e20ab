"""Kernels that a model will need, ordered before torch and transformers are imported, which takes seconds.

A gpt-oss config.json with MXFP4 experts says all that its `.experts` functions are: they are lowered here, and what
they launch is being compiled while the model is imported. What the model then turns out to need is what counts: a
kernel that was ordered in vain is no more than that, and what is wrong with a model or an option is told where it
itself is compiled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch_mlir import ir

from moeloom import dialects
from moeloom.experts import Experts, add_functions, mxfp4_weights
from moeloom.lowering import emit
from moeloom.lowering.build import order_code, start_workers
from moeloom.lowering.pipeline import Options, phases
from moeloom.lowering.targets import Target
from moeloom.lowering.workers import Workers
from moeloom.passes import pipeline
from moeloom.passes.base import OptionError, PassError
from moeloom.shape import GROUP

SIZES = ("num_local_experts", "hidden_size", "intermediate_size", "num_experts_per_tok")
ELEMENTS = {"bfloat16": "bf16", "float16": "f16"}


def order(config: Mapping[str, Any], options: Options, targets: Sequence[Target], workers: Workers) -> None:
    """Start the workers of `targets`, and order the kernels that the experts of a config.json need, if it is one that
    says."""
    start_workers(targets, workers)
    experts = gpt_oss(config)
    if experts is None:
        return
    for target in targets:
        module = ir.Module.create(ir.Location.unknown(dialects.context()))
        add_functions(
            module, experts, "moe_block", prequantised=options.activations == "mxfp4", location="loc(unknown)"
        )
        try:
            for _, passes in phases(options, target):
                pipeline.run(module, passes)
            with module.context:
                programs = {name: emit.program(function) for name, function in emit.programs_of(module).items()}
                order_code(target, emit.kernels(module), programs, workers)
        except (OptionError, PassError, pipeline.PipelineError):
            return


def gpt_oss(config: Mapping[str, Any]) -> Experts | None:
    """The experts of a gpt-oss model in MXFP4; None for any other, and where it has sizes that no model of ours has."""
    quantised = config.get("quantization_config")
    if config["model_type"] != "gpt_oss" or not isinstance(quantised, dict) or quantised.get("quant_method") != "mxfp4":
        return None
    element = ELEMENTS.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
    count, hidden, inner, topk = (_size(config, name) for name in SIZES)
    alpha, limit = config.get("swiglu_alpha", 1.702), config.get("swiglu_limit", 7.0)
    if not (element and count and hidden and inner and topk) or hidden % GROUP or inner % GROUP:
        return None
    if not isinstance(alpha, float) or not isinstance(limit, float):
        return None
    weights = {f"experts.{name}": weight for name, weight in mxfp4_weights(count, hidden, inner, element)}
    swiglu = ("swiglu", alpha, limit, "interleaved", "nk")
    return Experts(hidden, topk, element, weights, tuple(weights), *swiglu)


def _size(config: Mapping[str, Any], name: str) -> int:
    """A size in a config.json; 0 where it is none."""
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else 0
