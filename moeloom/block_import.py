"""MoE blocks -> MLIR: each becomes functions with named weight arguments, equal blocks the same.

No weight is read: the blocks of a config.json are built on the meta device.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_mlir import ir
from torch_mlir.extras.fx_importer import TORCH_DTYPE_TO_MLIR_TYPE_ASM, FxImporter

from moeloom import dialects, families
from moeloom.dialects import moe
from moeloom.experts import Experts, add_functions
from moeloom.model_config import ModelError, quantisation
from moeloom.runtime.reference import GROUP
from moeloom.torch_export import Spec, definition_of, export

WHOLE = "moe"  # the entry of a model that is itself one block
FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def from_config(config: Mapping[str, Any], where: str) -> nn.Module:
    """The model of a config.json on the meta device, with MXFP4 experts where the config says so."""
    import transformers

    model_type = config["model_type"]
    if model_type not in {family.model_type for family in families.FAMILIES}:
        raise ModelError(f"{where} is a model of type {model_type!r}, which moeloom does not know; {families.KNOWN}")
    packed = quantisation(config, where) == "mxfp4"
    if packed and model_type != "gpt_oss":
        raise ModelError(f"{where} is a {model_type} quantised by 'mxfp4'; moeloom reads that format of gpt_oss only")
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if str(dtype) not in FLOATS:
        raise ModelError(f"the dtype in {where} is {dtype!r}; moeloom compiles {' and '.join(FLOATS)}, set one of them")
    try:
        parsed = transformers.AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(parsed, dtype=FLOATS[dtype]).eval()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"transformers cannot build the model of {where}: {type(error).__name__}: {reason}") from error
    for name, block in families.find_blocks(model).items():
        check_sizes(name, block)
        if packed:
            block.experts = families.Mxfp4Experts(block.experts)
    return model


def check_sizes(name: str, block: Any) -> None:
    """ModelError unless the block's contractions divide into groups and its dtype is one we compute in."""
    for size, meaning in zip(families.sizes(block.experts), ("hidden", "intermediate"), strict=True):
        if size % GROUP:
            raise ModelError(f"the {meaning} size of '{name or WHOLE}' is {size}; MXFP4 needs a multiple of {GROUP}")
    dtype = families.output_dtype(block.experts)
    if dtype not in FLOATS.values():
        raise ModelError(
            f"'{name or WHOLE}' is {str(dtype).removeprefix('torch.')}; moeloom compiles {' and '.join(FLOATS)}: "
            "convert the module by .to(torch.bfloat16)"
        )


def import_blocks(blocks: Mapping[str, nn.Module], activations: Literal["mxfp4", "bf16"]) -> ir.Module:
    """One module with the functions of each distinct block, and the entries of every block."""
    importer = FxImporter(context=dialects.context())
    programs: dict[tuple, list[str]] = {}
    for path, block in blocks.items():
        check_sizes(path, block)
        key = families.structure(block)
        if key not in programs:
            programs[key] = import_block(importer, f"moe_block_{len(programs)}", block, activations)
        stem = programs[key][0]
        with importer.module.context, ir.Location.unknown(), ir.InsertionPoint(importer.module.body):
            for program in programs[key]:
                moe.EntryOp(
                    entry=ir.StringAttr.get((path or WHOLE) + program.removeprefix(stem)),
                    program=ir.FlatSymbolRefAttr.get(program),
                    prefix=ir.StringAttr.get(f"{path}." if path else ""),
                )
    return importer.module


def declared(block: nn.Module) -> dict[str, Spec]:
    """Every weight of a block by its name in it, as its program takes it."""
    family = families.family_of(block)
    return {
        name: (tuple(value.shape), torch.float32 if name in family.float32 else value.dtype)
        for name, value in block.state_dict().items()
    }


def import_block(importer: FxImporter, stem: str, block: Any, activations: Literal["mxfp4", "bf16"]) -> list[str]:
    """The functions of one block, the block itself first; their names."""
    spec: Spec = ((None, families.sizes(block.experts)[0]), families.output_dtype(block.experts))
    inputs: dict[str, Spec] = {"x": spec, "num_tokens": ((1,), torch.int32)}
    add_function(importer, stem, block, families.run_block, inputs, declared(block))
    with importer.module.context:
        where = definition_of(type(block))
        location = str(ir.Location.unknown() if where is None else ir.Location.file(*where, 0))
    ours = experts_of(block)
    return [stem, *add_functions(importer.module, ours, stem, prequantised=activations == "mxfp4", location=location)]


def experts_of(block: Any) -> Experts:
    """A block's experts as their operator takes them."""
    experts, element = block.experts, TORCH_DTYPE_TO_MLIR_TYPE_ASM
    weights = {name: (tuple(value.shape), element[value.dtype]) for name, value in experts.state_dict().items()}
    return Experts(
        families.sizes(experts)[0],
        getattr(block, families.family_of(block).router).top_k,
        element[families.output_dtype(experts)],
        {f"experts.{name}": weight for name, weight in weights.items()},
        tuple(None if name is None else f"experts.{name}" for name in families.operands(experts)),
        *families.arguments(experts),
    )


def add_function(
    importer: FxImporter,
    name: str,
    block: nn.Module,
    function: Callable[..., Tensor],
    inputs: Mapping[str, Spec],
    weights: Mapping[str, Spec],
) -> None:
    """Export `function(block, *inputs)` and import it as `name`, its arguments called what they are."""
    made = importer.import_program(export(block, function, inputs, weights), func_name=name)
    with made.context:
        attributes = [{"moe.input": ir.StringAttr.get(input_name)} for input_name in inputs]
        attributes += [{"moe.weight": ir.StringAttr.get(weight)} for weight in weights]
        made.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(one) for one in attributes])
