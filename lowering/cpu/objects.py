"""Object files of the CPU's kernels, made by workers. This file run as a module is a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeloom.lowering.jobs import Job, content_key, sources
from moeloom.lowering.processes import serve

from .compile import RUN, write_object
from .templates import TEMPLATES
from .tiers import BEST_FIRST

COSTLY = ("gate_up", "down", "experts_one_stage")


def jobs(kernels: Mapping[str, Mapping], tier: str) -> list[Job]:
    """The objects of one library: moeloom_run, then each kernel."""
    return [_job(RUN, "", {}, tier), *(_job(name, k["template"], k["params"], tier) for name, k in kernels.items())]


def _job(name: str, template: str, params: Mapping[str, Any], tier: str) -> Job:
    work = {"name": name, "template": template, "params": dict(params), "tier": tier}
    key = content_key(work, sources(Path(__file__).parent, "torch-mlir"))
    return Job(f"kernel {name} for tier {tier}", work, f"{key}.o", int(template in COSTLY))


def write(work: Mapping[str, Any], path: Path) -> None:
    """The object file of one job; template "" is moeloom_run."""
    kernels = {work["name"]: (TEMPLATES[work["template"]], work["params"])} if work["template"] else {}
    write_object(kernels, {tier.name: tier for tier in BEST_FIRST}[work["tier"]], path)


if __name__ == "__main__":
    serve(write)
