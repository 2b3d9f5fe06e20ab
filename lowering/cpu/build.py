"""All kernels of a lowered module as native libraries, one a tier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from .compile import CompileError, write_library
from .templates import TEMPLATES
from .tiers import BEST_FIRST


def write_libraries(kernels: Mapping[str, Mapping], folder: Path, progress: Callable[[int, int], None]) -> list[dict]:
    """Compile `kernels` (symbol -> {"template", "params"}) into `folder`: the manifest's `libraries`, best first."""
    unknown = sorted({kernel["template"] for kernel in kernels.values()} - TEMPLATES.keys())
    if unknown:
        raise CompileError(f"target cpu has no kernel template {', '.join(unknown)}")
    builders = {name: (TEMPLATES[kernel["template"]], kernel["params"]) for name, kernel in kernels.items()}
    libraries = []
    for number, tier in enumerate(BEST_FIRST):
        progress(number, len(BEST_FIRST))
        path = folder / f"cpu-{tier.name}.so"
        write_library(builders, tier, path)
        libraries.append(
            {
                "tier": tier.name,
                "file": f"{folder.name}/{path.name}",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "features": list(tier.features),
            }
        )
    progress(len(BEST_FIRST), len(BEST_FIRST))
    return libraries
