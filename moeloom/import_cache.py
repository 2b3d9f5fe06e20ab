"""Imported modules kept by content, so that a model's second compilation needs no import of it."""

import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch_mlir import ir

from moeloom import dialects
from moeloom.lowering.cache import hit
from moeloom.lowering.jobs import content_key, sources
from moeloom.passes.diagnostics import collected


def kept(make: Callable[[], ir.Module], config: Mapping[str, Any], activations: str, folder: Path) -> ir.Module:
    """The module that `make` makes of a config.json, from `folder` where it is there, else made and put there.

    It depends on the config, on our sources and transformers', and on the versions of what imports it.
    """
    path = folder / f"{_key(config, activations)}.mlir"
    if hit(path):
        context = dialects.context()
        with suppress(ir.MLIRError), collected(context):  # cut short by a machine that stopped
            return ir.Module.parseFile(str(path), context)
    module = make()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # into its place whole, or not at all
        made = Path(scratch, path.name)
        made.write_text(module.operation.get_asm(enable_debug_info=True), encoding="utf-8")
        made.replace(path)
    return module


def is_kept(config: Mapping[str, Any], activations: str, folder: Path) -> bool:
    """Whether `kept` would find the module in `folder`."""
    return (folder / f"{_key(config, activations)}.mlir").exists()


def _key(config: Mapping[str, Any], activations: str) -> str:
    here = Path(__file__).parent
    tools = [platform.python_version(), sources(here, "torch")]
    tools.append(sources(Path(dialects.__file__).parent, "torch-mlir"))
    found = find_spec("transformers")  # without importing it
    if found is not None and found.origin is not None:
        tools.append(sources(Path(found.origin).parent / "models" / str(config["model_type"]), "transformers"))
    return content_key({"import": dict(config), "activations": activations}, json.dumps(tools))
