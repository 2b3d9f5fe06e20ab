"""One Triton kernel -> code object, assembly and facts. This file run as a module is a worker.

Workers run without Triton's environment variables: what a kernel becomes depends on its job and on nothing else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime import cache
from triton.runtime.cache import FileCacheManager

from moeloom.lowering.jobs import CompileError
from moeloom.lowering.processes import serve

from . import assembly
from .architecture import ALIGNED, ARCHITECTURES, SIMDS, Architecture
from .build import ASSEMBLY, CODE, FACTS
from .template import Params, Template
from .templates import TEMPLATES

FUSED_MULTIPLY_ADD = False
"""Whether a*b + c may round once. Never: the CPU target and Triton's interpreter round twice, and scales, codes and
routing weights must be their bytes. Matrix instructions are not concerned."""

UNREAD = (".source", ".ttir", ".glir", ".ttgir", ".llir")
"""Of the files that Triton keeps of a kernel, those of modules."""

LIMITS = {"maxnreg": "maxnreg", "waves": "waves_per_eu"}
"""Triton's options for the params that say how many registers a thread, or how many waves a SIMD shall have."""

UNSUPPORTED = (
    "global_scratch_size",
    "profile_scratch_size",
    "tensordesc_meta",
    "launch_cooperative_grid",
    "launch_pdl",
)
"""What a launch would have to provide for and ours does not: zero, empty or absent in the metadata."""


class Kept(FileCacheManager):
    """Triton's cache without what a module was between its stages: to print that takes as long as a pass."""

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        return super().put("" if filename.endswith(UNREAD) else data, filename, binary)


def write_kernel(work: Mapping[str, Any], folder: Path) -> None:
    """Make the folder of one kernel: work = {"template", "params", "architecture", "odd_strides"}.

    odd_strides: the numbers of the arguments that are strides, but may not be multiples of ALIGNED.
    """
    if work["template"] not in TEMPLATES:
        raise CompileError(f"there is no kernel template {work['template']}")
    template, params = TEMPLATES[work["template"]], work["params"]
    multiples = divisible(template, params, work["odd_strides"])
    try:
        compile_kernel(template, params, ARCHITECTURES[work["architecture"]], multiples, folder)
    except CompilationError as error:
        raise CompileError(_described(error)) from error


def divisible(template: Template, params: Params, odd_strides: Collection[int] = ()) -> list[int]:
    """What each argument of a kernel is assumed to be a multiple of, pointers in bytes and strides in elements."""
    return [
        1 if name in template.by_element or number in odd_strides else ALIGNED
        for number, (name, _) in enumerate(template.arguments(params))
    ]


def _described(error: CompilationError) -> str:
    """The line of the kernel that Triton refuses, and why: the innermost error, past the calls that led there."""
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    line = (error.src or "").splitlines()[error.node.lineno - 1 : error.node.lineno]
    reason = (error.error_message or repr(error.__cause__)).splitlines()[0]
    return f"{reason} at `{''.join(line).strip()}`"


def compile_kernel(
    template: Template, params: Params, architecture: Architecture, divisible: Sequence[int], folder: Path
) -> None:
    """Compile and write code object, assembly and facts (all that a manifest says of them but file and hash) into
    `folder`.

    divisible: what each argument is assumed to be a multiple of, pointers in bytes and strides in elements.
    CompileError when the template's lists do not fit its function, or when the code needs what no launch gives it.
    """
    knobs.compilation.disable_line_info = True  # it holds paths of this machine
    with tempfile.TemporaryDirectory() as kept:
        knobs.cache.dir = kept  # what is kept is our own business: workers.make
        knobs.cache.manager_class = Kept
        # A hash of Triton, half a second: as one folder is for one kernel, keys in it may be the same.
        cache.triton_key = lambda: ""
        kernel = triton.compile(
            source(template, params, architecture, divisible),
            target=GPUTarget(architecture.backend, architecture.arch, architecture.warp_size),
            options={
                "num_warps": params["num_warps"],
                "num_stages": params["num_stages"],
                "enable_fp_fusion": FUSED_MULTIPLY_ADD,
                "sanitize_overflow": False,  # asserts that debug builds alone keep; without, 4 % sooner compiled
                **{option: params[name] for name, option in LIMITS.items() if name in params},
            },
        )
        code, text = kernel.asm[architecture.code], kernel.asm[architecture.assembly]
    types = [kind for _, kind in template.arguments(params)]
    facts = {"arguments": types, "divisible": list(divisible)}
    facts |= kernel_facts(types, kernel.metadata._asdict(), code, text, architecture)
    folder.mkdir()
    (folder / CODE).write_bytes(code)
    (folder / ASSEMBLY).write_text(text)
    (folder / FACTS).write_text(json.dumps(facts))


def source(template: Template, params: Params, architecture: Architecture, divisible: Sequence[int]) -> ASTSource:
    """The function with its signature, its constants and what each of its arguments is a multiple of."""
    function, names = template.function.__name__, list(template.function.arg_names)
    arguments = dict([*template.arguments(params), ("M", "i32")])
    constants = template.constants(params) | {"TARGET": architecture.name}
    if foreign := sorted(constants.keys() - set(names)):
        raise CompileError(f"{function} has no parameter {', '.join(foreign)}; its template sets one")
    # Triton passes arguments in the function's order, whatever the signature's.
    wanted = [name for name in names if name not in constants]
    if list(arguments) != wanted:
        raise CompileError(f"{function} takes {wanted}, its template passes {list(arguments)}: give both one order")
    attributes = {
        (names.index(name),): [["tt.divisibility", multiple]]
        for name, multiple in zip(arguments, [*divisible, 1], strict=True)
        if multiple > 1
    }
    signature = {name: arguments.get(name, "constexpr") for name in names}
    form = GluonASTSource if template.function.is_gluon() else ASTSource
    return form(template.function, signature, constants, attributes)


def kernel_facts(
    types: Sequence[str], metadata: Mapping[str, Any], code: bytes, text: str, architecture: Architecture
) -> dict[str, Any]:
    """The facts of a code object whose arguments have Triton's `types`."""
    asks = {name: metadata[name] for name in UNSUPPORTED if metadata.get(name)}
    if metadata["num_ctas"] != 1:
        asks["num_ctas"] = metadata["num_ctas"]
    if asks:
        listed = ", ".join(f"{name} {value}" for name, value in asks.items())
        raise CompileError(f"its code asks for {listed}, which a launch does not provide")
    shared = metadata["shared"]
    if shared > architecture.shared_limit:
        raise CompileError(
            f"it needs {shared} bytes of shared memory, {architecture.name} has {architecture.shared_limit}: "
            "use smaller tiles or fewer stages"
        )
    hip = architecture.backend == "hip"
    resources = assembly.amdgcn_resources(text) if hip else assembly.cubin_resources(code)
    found = assembly.instructions(text)
    facts = {
        "symbol": metadata["name"],
        "threads": metadata["num_warps"] * architecture.warp_size,
        "scratch": _scratch(types, text),
        "shared": shared,
        "registers": resources.registers,
        "spills": resources.spills,
        "stack": resources.stack,
        "dependent": assembly.waits(found),
        "wide_loads": sum(assembly.matching(found, assembly.WIDE_LOADS).values()),
        "matrix": assembly.matching(found, assembly.MATRIX),
    }
    if hip:
        facts["scalar_spills"] = resources.scalar_spills
        facts["occupancy"] = min(resources.waves, _waves_by_shared(shared, metadata["num_warps"], architecture))
    return facts


def _waves_by_shared(shared: int, warps: int, architecture: Architecture) -> int:
    """The waves a SIMD can hold when a workgroup takes `shared` bytes of a compute unit's LDS."""
    groups = architecture.shared_limit // max(shared, 1)
    return -(-groups * warps // SIMDS)


def _scratch(types: Sequence[str], text: str) -> int:
    """The null pointers that follow the arguments and M: Triton's global and profile scratch."""
    ours = [kind[:1] if kind.startswith("*") else kind for kind in (*types, "i32")]
    found = assembly.parameters(text)
    rest = found[len(ours) :]
    if found[: len(ours)] != ours or set(rest) - {"*"}:
        raise CompileError(f"its code takes {found}, the launch passes {ours} and null pointers")
    return len(rest)


if __name__ == "__main__":
    serve(write_kernel)
