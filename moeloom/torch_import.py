"""A model in any of its forms -> MLIR of its MoE blocks, and where their weights are.

What a config.json becomes can be kept by content: then neither transformers nor torch.export is imported again.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from torch_mlir import ir
from torch_mlir.dialects import func

from moeloom import dialects
from moeloom.checkpoint import Checkpoint, ModuleWeights
from moeloom.dialects import moe
from moeloom.import_cache import kept
from moeloom.lowering import emit
from moeloom.model_config import ModelError, read_config
from moeloom.passes.diagnostics import collected
from moeloom.runtime.bind import AsDeclared
from moeloom.runtime.pack import Source
from moeloom.runtime.program import Shaped

Activations = Literal["mxfp4", "bf16"]


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


def import_torch(
    model: str | Path | nn.Module,
    *,
    activations: Activations = "mxfp4",
    cache: Path | None = None,
) -> ImportedModule:
    """The MoE blocks of `model` as one MLIR module, in the torch dialect with `torch.moe` operators.

    `model` is a checkpoint directory, a config.json, a Python "module:factory" whose call returns a torch.nn.Module,
    such a module (a transformers model or one MoE block), or a .mlir file, which is parsed. With `activations` mxfp4
    each block gets an entry for pre-quantised activations. `cache` is a folder that keeps what a config.json became.
    Raises ModelError, in one line, for what it cannot import.
    """
    if activations not in get_args(Activations):
        raise ModelError(f"activations is {activations!r}; it must be {' or '.join(get_args(Activations))}")
    if isinstance(model, nn.Module):
        from moeloom import block_import, families

        return _declaring(block_import.import_blocks(families.find_blocks(model), activations), ModuleWeights(model))
    path = Path(model)
    if path.suffix == ".mlir":
        return ImportedModule(parse(path))
    if ":" in str(model) and not path.exists():
        return import_torch(call_factory(str(model)), activations=activations)
    if path.is_file():
        config = read_config(path)
        return ImportedModule(import_config(config, str(path), activations, cache), config=config)
    checkpoint = Checkpoint(path)
    module = import_config(checkpoint.config, str(path), activations, cache)
    check_weights(checkpoint, module)
    return _declaring(module, checkpoint, checkpoint.config)


def import_config(
    config: Mapping[str, Any],
    where: str,
    activations: Activations,
    cache: Path | None = None,
) -> ir.Module:
    """The MoE blocks of the model that a config.json describes; `where` is how an error calls it. `cache` as of
    `import_torch`."""

    def make() -> ir.Module:
        from moeloom import block_import, families

        model = block_import.from_config(config, where)
        return block_import.import_blocks(families.find_blocks(model), activations)

    return make() if cache is None else kept(make, config, activations, cache)


def _weights(module: ir.Module) -> dict[str, Shaped]:
    """Every weight of every entry by its name in the checkpoint."""
    imported = ImportedModule(module)
    functions = {op.name.value: op for op in module.body.operations if isinstance(op, func.FuncOp)}
    return {
        entry.prefix + name: Shaped(about["dtype"], tuple(about["shape"]))
        for entry in imported.entries
        for name, about in emit.declared_weights(functions[entry.program]).items()
    }


def _declaring(module: ir.Module, weights: Source, config: Mapping[str, Any] | None = None) -> ImportedModule:
    """The module with a source whose tensors come in the dtypes that its functions declare."""
    dtypes = {name: about.storage for name, about in _weights(module).items()}
    return ImportedModule(module, AsDeclared(weights, dtypes), config)


def check_weights(checkpoint: Checkpoint, module: ir.Module) -> None:
    """ModelError unless the checkpoint has every weight that the module takes, in its shape."""
    for name, about in _weights(module).items():
        found = checkpoint.shape(name)
        if found != about.at(0):
            raise ModelError(f"'{name}' in {checkpoint.directory} is {found}; config.json asks for {about.at(0)}")


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
