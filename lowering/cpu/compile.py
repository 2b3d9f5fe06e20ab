"""Kernels as MLIR -> LLVM -> object code -> shared library, one library a tier, for any x86-64 on any x86-64 host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch_mlir import ir
from torch_mlir.execution_engine import ExecutionEngine
from torch_mlir.passmanager import PassManager

from moeloom.lowering.jobs import CompileError

from . import command_processor
from .tiers import Tier

RUN = "moeloom_run"

PIPELINE = [
    "canonicalize",
    "cse",
    "loop-invariant-code-motion",
    "convert-vector-to-scf",
    "lower-affine",
    "convert-scf-to-cf",
    "convert-vector-to-llvm",
    "expand-strided-metadata",
    "lower-affine",
    "convert-math-to-llvm",
    "finalize-memref-to-llvm",
    "convert-arith-to-llvm",
    "convert-index-to-llvm",
    "convert-cf-to-llvm",
    "convert-func-to-llvm",
    "reconcile-unrealized-casts",
    "canonicalize",
    "cse",
]


Builder = Callable[[str, Mapping, Tier], None]
"""Adds the kernel `name` with `params` for a tier to the module at the current insertion point."""


def build_module(kernels: Mapping[str, tuple[Builder, Mapping]], tier: Tier) -> ir.Module:
    """`moeloom_run` or, given any, kernels of one tier as a module in a context of its own, not yet lowered."""
    context = ir.Context()
    with context, ir.Location.unknown():
        module = ir.Module.create() if kernels else ir.Module.parse(command_processor.MLIR)
        with ir.InsertionPoint(module.body):
            for name, (builder, params) in kernels.items():
                builder(name, params, tier)
        module.operation.verify()
    return module


def lower_to_llvm(module: ir.Module, tier: Tier) -> None:
    """Run the upstream pipeline in place and pin every function to the tier's CPU."""
    with module.context, ir.Location.unknown():
        PassManager.parse(f"builtin.module({','.join(PIPELINE)})").run(module.operation)
        cpu = ir.StringAttr.get(tier.cpu)
        features = ", ".join(f'"{feature}"' for feature in tier.llvm_features)
        for op in module.body.operations:
            # The engine's own target is the host; these attributes override it function by function.
            op.attributes["target_cpu"] = cpu
            op.attributes["target_features"] = ir.Attribute.parse(f"#llvm.target_features<[{features}]>")


def linker() -> str:
    """The C compiler that links; CompileError with the way out when there is none."""
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return path
    raise CompileError("no C compiler found (looked for cc, gcc, clang); the cpu target needs one to link: install gcc")


def write_object(kernels: Mapping[str, tuple[Builder, Mapping]], tier: Tier, path: Path) -> None:
    """Compile `moeloom_run` or, given any, kernels of one tier into the object file `path`."""
    module = build_module(kernels, tier)
    lower_to_llvm(module, tier)
    with module.context:
        engine = ExecutionEngine(module, opt_level=3, enable_pic=True)
        # Asking for a symbol makes the engine compile; only then is there an object to write.
        engine.raw_lookup(next(iter(kernels), RUN))
    engine.dump_to_object_file(str(path))


def link(objects: Sequence[Path], kernels: Iterable[str], path: Path) -> None:
    """Link objects into the shared library `path`, which exports `moeloom_run` and the kernels and nothing else."""
    exports = path.with_suffix(".map")
    exports.write_text("{ global: " + " ".join(f"{name};" for name in (RUN, *kernels)) + " local: *; };\n")
    options = ["-shared", "-nostartfiles", "-Wl,--gc-sections", "-Wl,-z,noexecstack", f"-Wl,--version-script={exports}"]
    command = [linker(), *options, "-o", str(path), *map(str, objects), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    exports.unlink()
    if done.returncode:
        raise CompileError(f"linking {path.name} failed: {done.stderr.strip().splitlines()[-1]}")


def write_library(kernels: Mapping[str, tuple[Builder, Mapping]], tier: Tier, path: Path) -> None:
    """Build, lower, assemble and link kernels of one tier into the shared library `path`, in this process."""
    objects = [path.with_suffix(f".{number}.o") for number in range(2)]
    for part, file in zip(({}, kernels), objects, strict=True):
        write_object(part, tier, file)
    link(objects, kernels, path)
    for file in objects:
        file.unlink()
