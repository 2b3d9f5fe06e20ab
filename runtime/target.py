"""One target of an artifact: its code, kernels, programs and weights, as the manifest has them, checked."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.program import Alternatives, Launch, Program, Step, parse

BACKENDS = ("cuda", "hip")
CPU_ALIGNMENT, GPU_ALIGNMENT = 64, 256  # bytes: slots of the workspace start on a cache line, or as allocations do
MULTIPLES = tuple(1 << power for power in range(9))  # up to the alignment of whatever the runtime places itself
MOST_THREADS = 1024  # of a block, on every GPU


@dataclass(frozen=True)
class Library:
    """One native library of a target: runs where the CPU has all `features` (spelt as in /proc/cpuinfo)."""

    tier: str
    file: Path
    sha256: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """The GPUs that a target's code is for: `name` is gfx950 or sm_90."""

    backend: str
    name: str
    warp_size: int


@dataclass(frozen=True)
class Code:
    """The code object of a GPU kernel. `divisible`: what each of its arguments but M must be a multiple of, pointers in
    bytes and strides in elements. `shared` is in bytes; `scratch` counts the null pointers that end its arguments. Code
    that is `dependent` waits for the launch in front itself, so it may start before that ends."""

    divisible: tuple[int, ...]
    file: Path
    sha256: str
    symbol: str
    threads: int
    scratch: int
    shared: int
    dependent: bool


@dataclass(frozen=True)
class Target:
    """`kernels` and `weights` are plain data of the manifest. `architecture` is None for the CPU, whose code is in
    `libraries`; a GPU's is in `codes`, by kernel."""

    name: str
    libraries: tuple[Library, ...]
    kernels: Mapping[str, Mapping[str, Any]]
    programs: Mapping[str, Program]
    weights: Mapping[str, Mapping[str, Any]]
    """{"file", "tensor", "dtype", "shape", "sha256"} by prefix + packed name."""
    architecture: Architecture | None = None
    codes: Mapping[str, Code] = field(default_factory=dict)

    @property
    def alignment(self) -> int:
        """Bytes: where the slots of a workspace start."""
        return CPU_ALIGNMENT if self.architecture is None else GPU_ALIGNMENT


def parse_target(path: Path, name: str, raw: Mapping[str, Any]) -> Target:
    """The target `raw` of the artifact at `path`; ArtifactError for a file that is absent or has another hash, and for
    a GPU kernel that cannot be launched as its programs do. ValueError and KeyError where the structure is wrong."""
    kernels = {kernel: {"template": k["template"], "params": k["params"]} | k for kernel, k in raw["kernels"].items()}
    programs = {program: parse(program, text, kernels) for program, text in raw["programs"].items()}
    libraries = tuple(
        Library(item["tier"], _hashed(path, item), item["sha256"], tuple(item["features"])) for item in raw["libraries"]
    )
    weights = {}
    for weight, item in raw["weights"].items():
        inside(path, item["file"])
        weights[weight] = {key: item[key] for key in ("file", "tensor", "dtype", "shape", "sha256")}
    about = raw.get("architecture")
    if about is None:
        return Target(name, libraries, kernels, programs, weights)
    architecture = _architecture(about)
    codes = {kernel: _code(path, kernel, k, architecture) for kernel, k in kernels.items()}
    for program in programs.values():
        _check_launches(program, kernels)
    return Target(name, libraries, kernels, programs, weights, architecture, codes)


def inside(path: Path, file: str) -> Path:
    """The file of the artifact, which must exist and not lead out of it."""
    found = path / file
    if Path(file).is_absolute() or not found.resolve().is_relative_to(path.resolve()):
        raise ArtifactError(f"the manifest of {path} names {file!r}, which lies outside the artifact")
    if not found.is_file():
        raise ArtifactError(f"{path} lacks {file}; compile or copy the artifact again")
    return found


def _hashed(path: Path, item: Mapping[str, Any]) -> Path:
    file = inside(path, item["file"])
    if hashlib.sha256(file.read_bytes()).hexdigest() != item["sha256"]:
        raise ArtifactError(f"{file} does not match its hash in the manifest; compile or copy the artifact again")
    return file


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    if raw["backend"] not in BACKENDS:
        raise ValueError(f"backend {raw['backend']!r} is none of {', '.join(BACKENDS)}")
    return Architecture(raw["backend"], str(raw["name"]), _count(raw, "warp_size", 1))


def _count(raw: Mapping[str, Any], key: str, least: int) -> int:
    value = raw[key]
    if type(value) is not int or value < least:
        raise ValueError(f"{key} is {value!r}; it must be a number from {least}")
    return value


def _code(path: Path, kernel: str, raw: Mapping[str, Any], about: Architecture) -> Code:
    item, multiples = raw["code"], tuple(raw["divisible"])
    threads = _count(item, "threads", 1)
    if threads > MOST_THREADS or threads % about.warp_size:
        raise ValueError(f"kernel {kernel!r} has {threads} threads a block")
    if len(multiples) != len(raw["arguments"]):
        raise ValueError(f"kernel {kernel!r} has {len(multiples)} multiples for {len(raw['arguments'])} arguments")
    for multiple in multiples:
        if type(multiple) is not int or multiple not in MULTIPLES:
            raise ValueError(f"kernel {kernel!r} assumes multiples of {multiple!r}, no power of two up to 256")
    scratch, shared = _count(item, "scratch", 0), _count(item, "shared", 0)
    dependent = item["dependent"]
    if type(dependent) is not bool or (dependent and about.backend != "cuda"):
        raise ValueError(f"kernel {kernel!r} has dependent {dependent!r} for {about.backend}")
    file, symbol = _hashed(path, item), str(item["symbol"])
    return Code(multiples, file, item["sha256"], symbol, threads, scratch, shared, dependent)


def _check_launches(program: Program, kernels: Mapping[str, Any]) -> None:
    """Every launch passes what its kernel takes."""
    for launch in _launches(program.steps):
        passed = []
        for position in range(len(launch.operands) + len(launch.results)):
            passed += ["*", "i64"] if position in launch.strided else ["*"]
        taken = [kind[:1] if kind.startswith("*") else kind for kind in kernels[launch.kernel]["arguments"]]
        if passed != taken:
            raise ValueError(f"kernel {launch.kernel!r} takes {' '.join(taken)}; a launch passes {' '.join(passed)}")


def _launches(steps: Sequence[Step]) -> Iterator[Launch]:
    for step in steps:
        if isinstance(step, Alternatives):
            yield from _launches((*step.first, *step.second))
        elif isinstance(step, Launch):
            yield step
