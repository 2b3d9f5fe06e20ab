"""All kernels of a lowered module as code objects for one GPU architecture.

Workers alone import Triton and the templates: a second less before there is work for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moeloom.lowering.jobs import Job, content_key, sources
from moeloom.lowering.workers import Workers, make
from moeloom.runtime import stream

from .architecture import Architecture

WORKER = "moeloom.lowering.triton.compile"
CODE, ASSEMBLY, FACTS = "code", "assembly", "facts.json"
"""The files of a compiled kernel."""
PRODUCTS = ("gate_up", "down", "experts_one_stage")
"""What the names of their templates end in."""


def write_kernels(
    kernels: Mapping[str, Mapping[str, Any]],
    architecture: Architecture,
    folder: Path,
    cache: Path,
    progress: Callable[[int, int], None],
    odd_strides: Mapping[str, Collection[int]] = MappingProxyType({}),
    workers: Workers | None = None,
) -> dict[str, dict[str, Any]]:
    """Compile `kernels` (name -> {"template", "params"}) into `folder`/<architecture>: the manifest's `kernels`.

    odd_strides: by kernel the numbers of the arguments that are strides, but may not be multiples of ALIGNED.
    `cache` keeps code objects between compilations; `workers` is as of `make`. CompileError (one line) when a kernel
    does not compile.
    """
    compiled = compile_kernels(kernels, architecture, cache, progress, odd_strides, workers)
    place = folder / architecture.name
    place.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, kernel in kernels.items():
        path = place / f"{name}.{architecture.code}"
        shutil.copyfile(compiled[name] / CODE, path)
        facts = json.loads((compiled[name] / FACTS).read_text())
        described[name] = {
            "template": kernel["template"],
            "params": kernel["params"],
            "arguments": facts.pop("arguments"),
            "divisible": facts.pop("divisible"),
            "code": {
                "file": str(path.relative_to(folder.parent)),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                **facts,
            },
        }
    return described


def compile_kernels(
    kernels: Mapping[str, Mapping[str, Any]],
    architecture: Architecture,
    cache: Path,
    progress: Callable[[int, int], None],
    odd_strides: Mapping[str, Collection[int]] = MappingProxyType({}),
    workers: Workers | None = None,
) -> dict[str, Path]:
    """The folder of every kernel in `cache` (code, assembly, facts: see compile.py)."""
    jobs = kernel_jobs(kernels, architecture, odd_strides)
    return dict(zip(kernels, make(WORKER, jobs, cache, progress, environment(), workers), strict=True))


def kernel_jobs(
    kernels: Mapping[str, Mapping[str, Any]], architecture: Architecture, odd_strides: Mapping[str, Collection[int]]
) -> list[Job]:
    """What makes each kernel."""
    return [_job(name, kernel, architecture, odd_strides.get(name, ())) for name, kernel in kernels.items()]


def _job(name: str, kernel: Mapping[str, Any], architecture: Architecture, odd_strides: Collection[int]) -> Job:
    template = kernel["template"]
    work = {
        "template": template,
        "params": dict(kernel["params"]),
        "architecture": architecture.name,
        "odd_strides": sorted(odd_strides),
    }
    key = content_key(work, sources(Path(__file__).parent, "triton", Path(stream.__file__)))
    # The code of a product grows with the rows of a block; of what is left, one kernel takes longer than any other.
    cost = kernel["params"]["block"] if template.endswith(PRODUCTS) else int(template == "route_sort")
    return Job(f"kernel {name} for {architecture.name}", work, f"{key}.{architecture.code}", cost)


def environment() -> dict[str, str]:
    """Ours without Triton's switches: its interpreter, dumps, overrides and other compilers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
