"""What `moeloom inspect` says about an artifact, as plain data."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from moeloom import switches
from moeloom.runtime.artifact import Manifest
from moeloom.runtime.cpu import choose
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.plan import slot_offsets
from moeloom.runtime.program import Alternatives, Launch, Program, Step
from moeloom.runtime.sizes import evaluate
from moeloom.runtime.target import Target
from moeloom.tools.errors import CommandError


def describe(manifest: Manifest, tokens: Sequence[int], target: str | None = None) -> dict[str, Any]:
    """Everything, with the launches at each M of `tokens`; of one target alone where it is named."""
    if target is not None and target not in manifest.targets:
        raise CommandError(f"the artifact has no target {target!r}; it has {', '.join(manifest.targets)}")
    raw = manifest.raw
    targets = [own for name, own in manifest.targets.items() if target in (None, name)]
    return {
        "path": str(manifest.path),
        **{name: raw[name] for name in ("schema", "compiler", "tools", "options", "report")},
        "checkpoint": raw.get("checkpoint"),
        "entries": list(manifest.entries),
        "targets": [_target(manifest, own, tokens) for own in targets],
    }


def origin(found: Mapping[str, Any]) -> str:
    """Where the weights come from."""
    checkpoint = found["checkpoint"]
    if checkpoint is None:
        return "none; load with --weights-from" if found["options"].get("weights") == "none" else "in the artifact"
    if "random" in checkpoint:
        return f"random, made at load from seed {checkpoint['random']['seed']}"
    return f"packed at load from {checkpoint['reference']['directory']}"


def table_of(target: Mapping[str, Any]) -> str:
    """Which table of sizes and thresholds a target was compiled by."""
    tuning = target["tuning"]
    if tuning is None:
        return "built in"
    rows = f"{len(tuning['settings'])} tuned rows before the built-in ones"
    if "sha256" not in tuning:
        return f"{rows}, from {tuning['file']}"
    model = tuning["model"]
    sizes = ", ".join(f"{name} {size}" for name, size in model.items()) if isinstance(model, Mapping) else model
    return (
        f"{rows}, measured on {tuning['device']}, {tuning['date'][:10]}, for {sizes} "
        f"({tuning['file']} of moeloom {tuning['moeloom']}, sha256 {tuning['sha256'][:12]})"
    )


def setting(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """A tuned row: what, where it holds, its params."""
    facts = [
        name if value is True else f"not {name}" if value is False else f"{name} {value}"
        for name, value in row["when"].items()
    ]
    return row["what"], ", ".join(facts), ", ".join(f"{name} {value}" for name, value in row["params"].items())


def _target(manifest: Manifest, target: Target, tokens: Sequence[int]) -> dict[str, Any]:
    users: dict[str, list[str]] = {}
    for entry in manifest.entries.values():
        users.setdefault(entry.program, []).append(entry.name)
    sizes = weight_sizes(manifest, target)
    return {
        "target": target.name,
        "architecture": target.architecture and target.architecture.name,
        "tuning": manifest.raw["targets"].get(target.name, {}).get("tuning"),
        "libraries": [{"tier": own.tier, "features": list(own.features)} for own in target.libraries],
        "runs_here": _tier_here(target),
        "weights_bytes": sum(sizes.values()),
        "weights": sizes,
        "kernels": {name: _kernel(dict(kernel)) for name, kernel in target.kernels.items()},
        "programs": [_program(target, target.programs[name], entries, tokens) for name, entries in users.items()],
    }


def _kernel(kernel: dict[str, Any]) -> dict[str, Any]:
    """Template, params and, on a GPU, the facts of its code; where a table was given, whose tile it has."""
    facts = {k: v for k, v in kernel.get("code", {}).items() if k not in ("file", "sha256")}
    own = {"tile": kernel["tile"]} if "tile" in kernel else {}
    return {"template": kernel["template"], "params": dict(kernel["params"]), **own, "code": facts or None}


def weight_sizes(manifest: Manifest, target: Target) -> dict[str, int]:
    """Bytes of every packed weight that the entries read, wherever it comes from."""
    programs = ((entry.prefix, target.programs[entry.program]) for entry in manifest.entries.values())
    return {
        prefix + weight.name: prod(weight.tensor.at(0)) * weight.tensor.storage.itemsize
        for prefix, program in programs
        for weight in program.weights
    }


def _tier_here(target: Target) -> str | None:
    """The tier that this CPU takes, None where it runs none."""
    try:
        return choose(target.libraries).tier
    except ArtifactError:
        return None


def _program(target: Target, program: Program, entries: Sequence[str], tokens: Sequence[int]) -> dict[str, Any]:
    at = [
        {"tokens": m, "workspace_bytes": workspace_bytes(target, program, m), "steps": _steps(target, program.steps, m)}
        for m in tokens
    ]
    launched = [launch.kernel for launch in switches.launches(program.steps)]
    return {
        "program": program.name,
        "entries": list(entries),
        "inputs": {wanted.name: str(wanted.tensor) for wanted in program.inputs},
        "outputs": [str(made.tensor) for made in program.outputs],
        "weights": {weight.name: str(weight.tensor) for weight in program.weights},
        "switches": [
            {"choice": step.choice, "max_m": step.max_m, "reason": step.reason}
            for step in switches.alternatives(program.steps)
        ],
        "rounding": [name for name in dict.fromkeys(launched) if _rounds(target.kernels[name])],
        "at": at,
    }


def _rounds(kernel: Mapping[str, Any]) -> bool:
    """Whether a kernel takes the place of a quantiser: it rounds x to MXFP4, and writes neither codes nor scales."""
    return kernel["template"] == "fake_quant" or kernel["params"].get("quantise", "none") != "none"


def workspace_bytes(target: Target, program: Program, m: int) -> int:
    """Bytes of workspace for up to `m` tokens."""
    return slot_offsets(program, m, target.alignment)[1]


def _steps(target: Target, steps: Sequence[Step], m: int, why: str = "") -> list[dict[str, Any]]:
    """The steps that run at M = `m`: launches with their kernel and tiles, ATen operators by name."""
    found: list[dict[str, Any]] = []
    for step in steps:
        if isinstance(step, Alternatives):
            taken = step.first if m <= step.max_m else step.second
            relation = "<=" if m <= step.max_m else ">"
            found += _steps(target, taken, m, f"M {relation} {step.max_m}: {step.reason}")
        elif isinstance(step, Launch):
            kernel = target.kernels[step.kernel]
            found.append(
                {
                    "launch": step.kernel,
                    "tiles": evaluate(step.tiles, m),
                    "template": kernel["template"],
                    "params": dict(kernel["params"]),
                    "why": why,
                }
            )
        else:
            found.append({"aten": step.op, "why": why})
    return found
