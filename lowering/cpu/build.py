"""All kernels of a lowered module as native libraries, one a tier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from moeloom.lowering.jobs import CompileError, Job
from moeloom.lowering.workers import Workers, make

from . import objects
from .compile import link
from .templates import TEMPLATES
from .tiers import BEST_FIRST


def write_libraries(
    kernels: Mapping[str, Mapping],
    folder: Path,
    cache: Path,
    progress: Callable[[int, int], None],
    workers: Workers | None = None,
) -> list[dict]:
    """Compile `kernels` (symbol -> {"template", "params"}) into `folder`: the manifest's `libraries`, best first.

    `cache` keeps object files between compilations; `workers` is as of `make`.
    """
    unknown = sorted({kernel["template"] for kernel in kernels.values()} - TEMPLATES.keys())
    if unknown:
        raise CompileError(f"target cpu has no kernel template {', '.join(unknown)}")
    made = make(objects.__name__, library_jobs(kernels), cache, progress, workers=workers)
    each = len(made) // len(BEST_FIRST)
    libraries = []
    for number, tier in enumerate(BEST_FIRST):
        path = folder / f"cpu-{tier.name}.so"
        link(made[number * each : (number + 1) * each], kernels, path)
        libraries.append(
            {
                "tier": tier.name,
                "file": f"{folder.name}/{path.name}",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "features": list(tier.features),
            }
        )
    return libraries


def library_jobs(kernels: Mapping[str, Mapping]) -> list[Job]:
    """The objects of every tier's library, in turn, as many for each."""
    return [job for tier in BEST_FIRST for job in objects.jobs(kernels, tier.name)]
