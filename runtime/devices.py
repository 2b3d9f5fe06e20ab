"""Which device a `load` means, and which target of the artifact runs on it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from moeloom.runtime.artifact import Manifest
from moeloom.runtime.cpu import Cpu
from moeloom.runtime.cuda import Cuda
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.gpu import Gpu
from moeloom.runtime.hip import Hip
from moeloom.runtime.null import Null
from moeloom.runtime.target import Architecture, Target

Device = Cpu | Gpu | Null


@dataclass(frozen=True)
class Found:
    """A GPU of this machine: `name` is gfx942 or sm_90."""

    index: int
    backend: str
    name: str
    model: str

    def __str__(self) -> str:
        return f"cuda:{self.index} is {self.model} ({self.name})"


def open_device(
    manifest: Manifest,
    wanted: str | torch.device = "auto",
    target: str | None = None,
    *,
    threads: int | None = None,
    tier: str | None = None,
    overlap: bool = True,
) -> tuple[Target, Device]:
    """The device that `wanted` names and the target of the artifact that runs on it.

    "auto" is the current GPU where some code of the artifact runs on it, else the CPU. `target` leaves only the target
    of that name; `threads` and `tier` are the CPU's, `overlap` is CUDA's (`executable.load`). Raises ArtifactError,
    which says what is here and what there is.
    """
    targets = _named(manifest, target)
    kind = _kind(wanted)
    if kind == "null":
        chosen = targets.get("cpu", next(iter(targets.values()), None))
        if chosen is None:
            raise ArtifactError(f"{manifest.path} holds no target; compile the model again")
        return chosen, Null(chosen)
    held = ", ".join(targets) or "no target"
    found = None
    if kind == "cuda" or (kind == "auto" and any(t.architecture for t in targets.values())):
        found = find_gpu(None if kind == "auto" else torch.device(wanted).index)
        fitting = None if found is None else next((t for t in targets.values() if runs_on(t.architecture, found)), None)
        if found is not None and fitting is not None:
            if threads is not None or tier is not None:
                raise ArtifactError(f"{found}; threads and tier are for the CPU: leave them out, or ask for device cpu")
            return fitting, Gpu((Hip if found.backend == "hip" else Cuda)(found.index), fitting, overlap)
    if kind != "cuda" and "cpu" in targets:
        return targets["cpu"], Cpu(targets["cpu"].libraries, threads=threads, tier=tier)
    here = "torch sees no GPU here" if found is None else str(found)
    if kind == "cpu":
        raise ArtifactError(f"the artifact holds {held}, nothing for the CPU: compile it with --target cpu too")
    way_out = "cpu" if found is None else found.name
    raise ArtifactError(f"{here}; the artifact holds {held}: compile it with --target {way_out} too")


def _kind(wanted: str | torch.device) -> str:
    if wanted in ("auto", "null"):
        return str(wanted)
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ArtifactError(f"there is no device {str(wanted)!r}; it must be auto, cpu, cuda, cuda:N or null")
    return kind


def _named(manifest: Manifest, target: str | None) -> Mapping[str, Target]:
    if target is None:
        return manifest.targets
    if target not in manifest.targets:
        raise ArtifactError(f"{manifest.path} holds {', '.join(manifest.targets)}; it has no target {target!r}")
    return {target: manifest.targets[target]}


def find_gpu(index: int | None = None) -> Found | None:
    """The GPU `index`, by default torch's current one; None where torch sees none. ArtifactError for one too many."""
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if index is None else index
    if index >= torch.cuda.device_count():
        raise ArtifactError(f"there is no cuda:{index}; torch sees {torch.cuda.device_count()} here")
    about = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Found(index, "hip", about.gcnArchName.partition(":")[0], about.name)
    return Found(index, "cuda", f"sm_{about.major}{about.minor}", about.name)


def runs_on(code: Architecture | None, gpu: Found) -> bool:
    """Whether a GPU runs code for an architecture: AMD the very same; NVIDIA from the same minor version on.

    From sm_90 on the code uses instructions of that very architecture (sm_90a), which no later one has.
    """
    if code is None or code.backend != gpu.backend:
        return False
    if code.backend == "hip":
        return code.name == gpu.name
    (code_major, code_minor), (major, minor) = _capability(code.name), _capability(gpu.name)
    return code_major == major and (code_minor == minor if major >= 9 else code_minor <= minor)


def _capability(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"sm_(\d+)(\d)", name)
    if match is None:
        raise ArtifactError(f"{name!r} is no CUDA architecture, such as sm_90; compile the model again")
    return int(match[1]), int(match[2])
