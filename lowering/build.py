"""The machine code of a target: what its lowered programs launch, compiled and described for the manifest."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeloom.lowering.cpu.build import write_libraries
from moeloom.lowering.targets import Target
from moeloom.lowering.triton.architecture import ALIGNED
from moeloom.lowering.triton.build import write_kernels

Progress = Callable[[int, int], None]


def write_code(
    target: Target, kernels: Mapping[str, dict], programs: Mapping[str, dict], folder: Path, cache: Path, step: Progress
) -> dict[str, Any]:
    """Compile `kernels` into `folder`: the manifest's `architecture`, `libraries` and `kernels` of the target.

    kernels: symbol -> {"template", "params"}. programs: as docs/program.md writes them. `cache` keeps what was
    compiled. CompileError of one line where a kernel does not compile.
    """
    if target.architecture is None:
        return {"libraries": write_libraries(kernels, folder, cache, step), "kernels": dict(kernels)}
    generic: dict[str, set[int]] = {}
    for program in programs.values():
        for name, arguments in _unknown(program):
            generic.setdefault(name, set()).update(arguments)
    architecture = {name: asdict(target.architecture)[name] for name in ("backend", "name", "warp_size")}
    described = write_kernels(kernels, target.architecture, folder, cache, step, generic)
    return {"architecture": architecture, "libraries": [], "kernels": described}


def _unknown(program: Mapping[str, Any]) -> Iterator[tuple[str, set[int]]]:
    """The kernels that touch a caller's tensor, or rows whose stride the fast variant does not take, and which of their
    arguments those are (docs/program.md, "Kernel ABI (GPU)")."""
    foreign = {item["value"] for item in (*program["inputs"], *program["outputs"])}
    foreign |= {int(value) for value, about in program["values"].items() if about["slot"] is None}
    for launch in _launches(program["steps"]):
        arguments: list[tuple[int, bool]] = []
        for number, value in enumerate(launch["operands"]):
            arguments.append((value, False))
            if number in launch["strided"]:
                arguments.append((value, True))
        arguments += [(value, False) for value in launch["results"]]
        unknown = {
            number
            for number, (value, is_stride) in enumerate(arguments)
            if value in foreign or (is_stride and _width(program, value) % ALIGNED)
        }
        if unknown:
            yield launch["launch"], unknown


def _width(program: Mapping[str, Any], value: int) -> int:
    """The elements of a row of an intermediate tensor."""
    return program["values"][str(value)]["shape"][-1]


def _launches(steps: list[dict]) -> Iterator[dict]:
    for step in steps:
        if "launch" in step:
            yield step
        elif "alternatives" in step:
            yield from _launches([*step["first"], *step["second"]])
