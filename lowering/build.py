"""The machine code of a target: what its lowered programs launch, compiled and described for the manifest."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeloom.lowering.cpu import objects
from moeloom.lowering.cpu.build import library_jobs, write_libraries
from moeloom.lowering.targets import Target
from moeloom.lowering.triton.architecture import ALIGNED
from moeloom.lowering.triton.build import WORKER, environment, kernel_jobs, write_kernels
from moeloom.lowering.workers import Workers

Progress = Callable[[int, int], None]


def write_code(
    target: Target,
    kernels: Mapping[str, dict],
    programs: Mapping[str, dict],
    folder: Path,
    workers: Workers,
    step: Progress,
) -> dict[str, Any]:
    """Compile `kernels` into `folder`: the manifest's `architecture`, `libraries` and `kernels` of the target.

    kernels: symbol -> {"template", "params"}. programs: as docs/program.md writes them. The folder of `workers` keeps
    what was compiled. CompileError of one line where a kernel does not compile.
    """
    cache = workers.folder
    if target.architecture is None:
        return {"libraries": write_libraries(kernels, folder, cache, step, workers), "kernels": dict(kernels)}
    architecture = {name: asdict(target.architecture)[name] for name in ("backend", "name", "warp_size")}
    described = write_kernels(kernels, target.architecture, folder, cache, step, _odd_strides(programs), workers)
    return {"architecture": architecture, "libraries": [], "kernels": described}


def order_code(target: Target, kernels: Mapping[str, dict], programs: Mapping[str, dict], workers: Workers) -> None:
    """Have what `write_code` of the same would compile compiled in the background."""
    if target.architecture is None:
        workers.order(objects.__name__, library_jobs(kernels), os.environ)
    else:
        workers.order(WORKER, kernel_jobs(kernels, target.architecture, _odd_strides(programs)), environment())


def start_workers(targets: Sequence[Target], workers: Workers) -> None:
    """Start those that will compile the kernels of `targets`, while there is something else to do."""
    if any(target.architecture is None for target in targets):
        workers.start(objects.__name__, os.environ)
    if any(target.architecture is not None for target in targets):
        workers.start(WORKER, environment())


def _odd_strides(programs: Mapping[str, dict]) -> dict[str, set[int]]:
    """By kernel the numbers of the arguments of `_odd`."""
    found: dict[str, set[int]] = {}
    for program in programs.values():
        for name, number in _odd(program):
            found.setdefault(name, set()).add(number)
    return found


def _odd(program: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Kernel and number of the argument of every stride that is no multiple of ALIGNED where rows lie side by side.

    Where it is one, the runtime copies a caller's tensor whose rows lie otherwise.
    """
    shapes = {item["value"]: item["shape"] for item in (*program["inputs"], *program["outputs"])}
    shapes |= {int(value): about["shape"] for value, about in program["values"].items()}
    for launch in _launches(program["steps"]):
        number = 0
        for position, value in enumerate(launch["operands"]):
            number += 1
            if position in launch["strided"]:
                if shapes[value][-1] % ALIGNED:
                    yield launch["launch"], number
                number += 1


def _launches(steps: list[dict]) -> Iterator[dict]:
    for step in steps:
        if "launch" in step:
            yield step
        elif "alternatives" in step:
            yield from _launches([*step["first"], *step["second"]])
