"""PyTorch -> MLIR: each MoE block of a model becomes functions with named weight arguments, equal blocks the same.

No weight is read: the blocks of a checkpoint or a config.json are built on the meta device.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch_mlir import ir
from torch_mlir.dialects import func
from torch_mlir.extras.fx_importer import FxImporter

from moeloom import dialects, families
from moeloom.checkpoint import Checkpoint, ModelError, ModuleWeights, quantisation, read_config
from moeloom.dialects import moe
from moeloom.passes.diagnostics import collected
from moeloom.runtime.bind import AsDeclared
from moeloom.runtime.pack import Source
from moeloom.runtime.reference import GROUP
from moeloom.torch_export import Spec, export

Activations = Literal["mxfp4", "bf16"]
WHOLE = "moe"  # the entry of a model that is itself one block
FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Entry:
    """A callable of the program: function `program` with the weights found below `prefix`."""

    name: str
    program: str
    prefix: str


@dataclass
class ImportedModule:
    """A program in MLIR and where its weights are (None: a config.json or a .mlir file has none).

    `config` is the model's config.json, where it was imported from one.
    """

    module: ir.Module
    weights: Source | None = None
    config: Mapping[str, Any] | None = None

    @property
    def entries(self) -> list[Entry]:
        """The program's entries: its moe.entry ops or, without any, its public functions."""
        operations = list(self.module.body.operations)
        named = [
            Entry(op.entry.value, op.program.value, op.prefix.value) for op in operations if isinstance(op, moe.EntryOp)
        ]
        functions = [op.name.value for op in operations if isinstance(op, func.FuncOp) and is_public(op)]
        return named or [Entry(name, name, "") for name in functions]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint directory that the weights are in, if that is where they are."""
        source = self.weights.source if isinstance(self.weights, AsDeclared) else self.weights
        return source if isinstance(source, Checkpoint) else None

    @property
    def needs_weights(self) -> bool:
        """Whether any function has an argument that is a weight."""
        functions = [op for op in self.module.body.operations if isinstance(op, func.FuncOp)]
        return any("moe.weight" in str(op.attributes["arg_attrs"]) for op in functions if "arg_attrs" in op.attributes)


def is_public(function: func.FuncOp) -> bool:
    """Whether a function is one that others may call."""
    return "sym_visibility" not in function.attributes or function.visibility.value == "public"


def import_torch(model: str | Path | nn.Module, *, activations: Activations = "mxfp4") -> ImportedModule:
    """The MoE blocks of `model` as one MLIR module, in the torch dialect with `torch.moe` operators.

    `model` is a checkpoint directory, a config.json, a Python "module:factory" whose call returns a torch.nn.Module,
    such a module (a transformers model or one MoE block), or a .mlir file, which is parsed. With `activations` mxfp4
    each block gets an entry for pre-quantised activations. Raises ModelError, in one line, for what it cannot import.
    """
    if activations not in get_args(Activations):
        raise ModelError(f"activations is {activations!r}; it must be {' or '.join(get_args(Activations))}")
    if isinstance(model, nn.Module):
        return import_blocks(families.find_blocks(model), activations, ModuleWeights(model))
    path = Path(model)
    if path.suffix == ".mlir":
        return ImportedModule(parse(path))
    if ":" in str(model) and not path.exists():
        return import_torch(call_factory(str(model)), activations=activations)
    if path.is_file():
        config = read_config(path)
        found = import_blocks(families.find_blocks(from_config(config, str(path))), activations, None)
        return replace(found, config=config)
    checkpoint = Checkpoint(path)
    blocks = families.find_blocks(from_config(checkpoint.config, str(path)))
    for name, block in blocks.items():
        check_weights(checkpoint, name, block)
    return replace(import_blocks(blocks, activations, checkpoint), config=checkpoint.config)


def parse(path: Path) -> ir.Module:
    """The module in a .mlir file."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    context = dialects.context()
    with collected(context) as diagnostics:
        try:
            return ir.Module.parseFile(str(path), context)
        except ir.MLIRError:
            raise ModelError(f"not a valid module: {diagnostics[0]}") from None


def call_factory(name: str) -> nn.Module:
    """What the callable named "module:factory" returns; modules are also looked for in the working directory."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"cannot find '{name}': {error}; write module:factory, with the module on the Python path"
        ) from None
    made = factory()
    if not isinstance(made, nn.Module):
        raise ModelError(f"'{name}' returned a {type(made).__name__}; it must return a torch.nn.Module")
    return made


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
    if dtype not in FLOATS:
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


def check_weights(checkpoint: Checkpoint, name: str, block: nn.Module) -> None:
    """ModelError unless the checkpoint has every tensor of the block, in its shape."""
    for tensor, value in block.state_dict().items():
        found = checkpoint.shape(f"{name}.{tensor}")
        if found != tuple(value.shape):
            raise ModelError(
                f"'{name}.{tensor}' in {checkpoint.directory} is {found}; config.json asks for {tuple(value.shape)}"
            )


def import_blocks(blocks: Mapping[str, nn.Module], activations: Activations, weights: Source | None) -> ImportedModule:
    """One module with the functions of each distinct block, and the entries of every block."""
    importer = FxImporter(context=dialects.context())
    programs: dict[tuple, list[str]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path, block in blocks.items():
        check_sizes(path, block)
        prefix = f"{path}." if path else ""
        dtypes |= {prefix + name: dtype for name, (_, dtype) in declared(block).items()}
        key = families.structure(block)
        if key not in programs:
            programs[key] = import_block(importer, f"moe_block_{len(programs)}", block, activations)
        stem = programs[key][0]
        with importer.module.context, ir.Location.unknown(), ir.InsertionPoint(importer.module.body):
            for program in programs[key]:
                moe.EntryOp(
                    entry=ir.StringAttr.get((path or WHOLE) + program.removeprefix(stem)),
                    program=ir.FlatSymbolRefAttr.get(program),
                    prefix=ir.StringAttr.get(prefix),
                )
    return ImportedModule(importer.module, None if weights is None else AsDeclared(weights, dtypes))


def declared(block: nn.Module) -> dict[str, Spec]:
    """Every weight of a block by its name in it, as its program takes it."""
    family = families.family_of(block)
    return {
        name: (tuple(value.shape), torch.float32 if name in family.float32 else value.dtype)
        for name, value in block.state_dict().items()
    }


def import_block(importer: FxImporter, stem: str, block: Any, activations: Activations) -> list[str]:
    """The functions of one block, the block itself first; their names."""
    family, dtype = families.family_of(block), families.output_dtype(block.experts)
    hidden, topk = families.sizes(block.experts)[0], getattr(block, family.router).top_k
    every = declared(block)
    own = {name: spec for name, spec in every.items() if name.startswith("experts.")}
    x: Spec = ((None, hidden), dtype)
    routed: dict[str, Spec] = {"ids": ((None, topk), torch.int32), "weights": ((None, topk), torch.float32)}
    names = [stem, f"{stem}.experts"]
    add_function(importer, names[0], block, families.run_block, {"x": x, "num_tokens": ((1,), torch.int32)}, every)
    add_function(importer, names[1], block, run_experts, {"x": x} | routed, own)
    if activations == "mxfp4":
        payload: dict[str, Spec] = {
            "payload": ((None, hidden // 2), torch.uint8),
            "scales": ((None, hidden // GROUP), torch.uint8),
        }
        names.append(f"{stem}.experts_prequantised")
        add_function(importer, names[2], block, run_prequantised, payload | routed, own)
    return names


def run_experts(block: Any, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return families.run_experts(block.experts, x, ids, weights)


def run_prequantised(block: Any, payload: Tensor, scales: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return families.run_experts(block.experts, payload, ids, weights, x_scales=scales)


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
