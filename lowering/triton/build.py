"""All kernels of a lowered module as code objects for one GPU architecture."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from moeloom.lowering.workers import CompileError, Job, content_key, make, sources

from .architecture import ALIGNED, Architecture
from .compile import CODE, FACTS
from .templates import TEMPLATES

COSTLY = ("gate_up", "down", "experts_one_stage", "prefill_gate_up", "prefill_down")
WORDS = {"num_tokens"}
"""Arguments that point to one word."""
SORTS = ("sort_tokens", "sort_count", "sort_scatter")
"""Templates that read a word or four a thread of the caller's ids and weights, and of nothing else that is his."""
WORKER = "moeloom.lowering.triton.compile"


def write_kernels(
    kernels: Mapping[str, Mapping[str, Any]],
    architecture: Architecture,
    folder: Path,
    cache: Path,
    progress: Callable[[int, int], None],
    generic: Mapping[str, Collection[int]],
) -> dict[str, dict[str, Any]]:
    """Compile `kernels` (name -> {"template", "params"}) into `folder`/<architecture>: the manifest's `kernels`.

    generic: the kernels that need a second variant, each with the numbers of the arguments that it assumes nothing of.
    `cache` keeps code objects between compilations. CompileError (one line) when a kernel does not compile.
    """
    compiled = compile_kernels(kernels, architecture, cache, progress, generic)
    place = folder / architecture.name
    place.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, kernel in kernels.items():
        variants = []
        for divisible, made in compiled[name].items():
            path = place / f"{name}{'' if divisible == ALIGNED else f'.{divisible}'}.{architecture.code}"
            shutil.copyfile(made / CODE, path)
            variants.append(
                {
                    "file": str(path.relative_to(folder.parent)),
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    **json.loads((made / FACTS).read_text()),
                }
            )
        described[name] = {
            "template": kernel["template"],
            "params": kernel["params"],
            "arguments": [kind for _, kind in TEMPLATES[kernel["template"]].arguments(kernel["params"])],
            "variants": variants,
        }
    return described


def compile_kernels(
    kernels: Mapping[str, Mapping[str, Any]],
    architecture: Architecture,
    cache: Path,
    progress: Callable[[int, int], None],
    generic: Mapping[str, Collection[int]],
) -> dict[str, dict[int, Path]]:
    """The folders of every kernel's variants in `cache` (code, assembly, facts: see compile.py), by divisibility."""
    absent = sorted({kernel["template"] for kernel in kernels.values()} - TEMPLATES.keys())
    if absent:
        raise CompileError(f"target {architecture.name} has no kernel template {', '.join(absent)}")
    wanted = [(name, ALIGNED, ()) for name in kernels if not _reads_words(kernels[name], generic.get(name, ()))] + [
        (name, 1, generic[name]) for name in kernels if name in generic
    ]
    jobs = [_job(name, kernels[name], architecture, unknown) for name, _, unknown in wanted]
    compiled: dict[str, dict[int, Path]] = {name: {} for name in kernels}
    for (name, divisible, _), path in zip(wanted, make(WORKER, jobs, cache, progress, _environment()), strict=True):
        compiled[name][divisible] = path
    return compiled


def _reads_words(kernel: Mapping[str, Any], unknown: Collection[int]) -> bool:
    """Whether all that a kernel's second variant assumes nothing of is read by the word: then it is as fast."""
    names = [argument for argument, _ in TEMPLATES[kernel["template"]].arguments(kernel["params"])]
    return bool(unknown) and (kernel["template"] in SORTS or {names[number] for number in unknown} <= WORDS)


def _job(name: str, kernel: Mapping[str, Any], architecture: Architecture, unknown: Collection[int]) -> Job:
    template = kernel["template"]
    work = {
        "template": template,
        "params": dict(kernel["params"]),
        "architecture": architecture.name,
        "unknown": sorted(unknown),
    }
    key = content_key(work, sources(Path(__file__).parent, "triton"))
    return Job(f"kernel {name} for {architecture.name}", work, f"{key}.{architecture.code}", template in COSTLY)


def _environment() -> dict[str, str]:
    """Ours without Triton's switches: its interpreter, dumps, overrides and other compilers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
