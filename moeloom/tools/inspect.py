"""`moeloom inspect`: what an artifact holds, what was fused and why not, which kernel runs for any number of tokens."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moeloom.tools import output
from moeloom.tools.artifact import Tokens, artifact_argument, json_option
from moeloom.tools.compile import fusion_lines

if TYPE_CHECKING:
    from moeloom.runtime.artifact import Manifest, Target
    from moeloom.runtime.program import Program, Step

EPILOG = """\b
Examples:
  moeloom inspect model.moel
  moeloom inspect model.moel --tokens 1,512,513
  moeloom inspect model.moel --json | jq .report"""


@click.command("inspect", epilog=EPILOG)
@artifact_argument
@click.option("--tokens", type=Tokens(), default=(), help="List the launches for these numbers of tokens.")
@json_option
def command(artifact: Path, tokens: tuple[int, ...], as_json: bool) -> None:
    """Say what ARTIFACT holds. Nothing is run, and the weights are not read."""
    from moeloom.runtime.artifact import read

    manifest = read(artifact, verify="fast")
    found = describe(manifest, tokens)
    if as_json:
        output.print_json(found)
        return
    tools = ", ".join(f"{name} {version}" for name, version in found["tools"].items())
    click.echo(f"{artifact}: compiled by moeloom {found['compiler']} ({tools})")
    click.echo("options: " + ", ".join(f"{name} {value}" for name, value in found["options"].items()))
    click.echo("\nfusion of quantiser and scale sort")
    for line in fusion_lines(found["report"]) or ["no candidate: nothing is quantised"]:
        click.echo(f"  {line}")
    for target in found["targets"]:
        _print_target(target)


def describe(manifest: "Manifest", tokens: Sequence[int]) -> dict[str, Any]:
    """Everything that `inspect` says, as plain data."""
    raw = manifest.raw
    head = {name: raw[name] for name in ("schema", "compiler", "tools", "options", "report")}
    targets = [_target(manifest, target, tokens) for target in manifest.targets.values()]
    return {"path": str(manifest.path), **head, "entries": list(manifest.entries), "targets": targets}


def _target(manifest: "Manifest", target: "Target", tokens: Sequence[int]) -> dict[str, Any]:
    users: dict[str, list[str]] = {}
    for entry in manifest.entries.values():
        users.setdefault(entry.program, []).append(entry.name)
    return {
        "target": target.name,
        "libraries": [{"tier": own.tier, "features": list(own.features)} for own in target.libraries],
        "runs_here": _tier_here(target),
        "weights_bytes": sum(weight_sizes(manifest, target).values()),
        "programs": [_program(target, target.programs[name], entries, tokens) for name, entries in users.items()],
    }


def weight_sizes(manifest: "Manifest", target: "Target") -> dict[str, int]:
    """Bytes of every packed weight that the entries read, wherever it comes from."""
    programs = ((entry.prefix, target.programs[entry.program]) for entry in manifest.entries.values())
    return {
        prefix + weight.name: prod(weight.tensor.at(0)) * weight.tensor.storage.itemsize
        for prefix, program in programs
        for weight in program.weights
    }


def _tier_here(target: "Target") -> str | None:
    """The tier that this CPU takes, None where it runs none."""
    from moeloom.runtime.cpu import choose
    from moeloom.runtime.errors import ArtifactError

    try:
        return choose(target.libraries).tier
    except ArtifactError:
        return None


def _program(target: "Target", program: "Program", entries: Sequence[str], tokens: Sequence[int]) -> dict[str, Any]:
    from moeloom.runtime.plan import slot_offsets

    at = [
        {
            "tokens": m,
            "workspace_bytes": slot_offsets(program, m, target.alignment)[1],
            "steps": _steps(target, program.steps, m, ""),
        }
        for m in tokens
    ]
    return {
        "program": program.name,
        "entries": list(entries),
        "inputs": {wanted.name: str(wanted.tensor) for wanted in program.inputs},
        "outputs": [str(made.tensor) for made in program.outputs],
        "weights": {weight.name: str(weight.tensor) for weight in program.weights},
        "at": at,
    }


def _steps(target: "Target", steps: "Sequence[Step]", m: int, why: str) -> list[dict[str, Any]]:
    """The steps that run at M = `m`: launches with their kernel and tiles, ATen operators by name."""
    from moeloom.runtime.program import Alternatives, Launch, evaluate

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


def _print_target(target: dict[str, Any]) -> None:
    click.echo(f"\ntarget {target['target']}: {output.mebibytes(target['weights_bytes'])} of weights")
    libraries = target["libraries"]
    for library, lesser in zip(libraries, [*libraries[1:], {"tier": "", "features": []}], strict=True):
        here = "  <- this machine" if library["tier"] == target["runs_here"] else ""
        own = " ".join(feature for feature in library["features"] if feature not in lesser["features"])
        beyond = f" beyond {lesser['tier']}" if lesser["tier"] else ""
        click.echo(f"  library {library['tier']}: needs {own}{beyond}{here}")
    if target["runs_here"] is None:
        click.echo("  no library runs on this machine")
    for program in target["programs"]:
        entries = program["entries"]
        more = f" and {len(entries) - 1} more of the same program" if len(entries) > 1 else ""
        inputs = ", ".join(f"{name}: {about}" for name, about in program["inputs"].items())
        click.echo(f"\n  {entries[0]}{more}\n    ({inputs}) -> {', '.join(program['outputs'])}")
        for at in program["at"]:
            steps = at["steps"]
            launches = sum("launch" in step for step in steps)
            click.echo(
                f"    {at['tokens']} tokens: {launches} launches, {output.mebibytes(at['workspace_bytes'])} workspace"
            )
            rows = [[step.get("launch") or step["aten"], str(step.get("tiles", "")), step["why"]] for step in steps]
            output.print_table(["step", "tiles", "why"], rows, indent="      ")
