"""`moeloom inspect`: what an artifact holds, what was fused and why not, which kernel runs for any number of tokens."""

from pathlib import Path
from typing import Any

import click

from moeloom.tools import output
from moeloom.tools.artifact import Tokens, artifact_argument, json_option
from moeloom.tools.compile import fusion_lines

FACTS = ("threads", "shared", "registers", "spills")
"""What is printed of each code object of a GPU kernel; --json and --html have all of it."""
EPILOG = """\b
Examples:
  moeloom inspect model.moel
  moeloom inspect model.moel --tokens 1,512,513
  moeloom inspect model.moel --json | jq .report
  moeloom inspect model.moel --target gfx950 --html report.html"""


@click.command("inspect", epilog=EPILOG)
@artifact_argument
@click.option("--tokens", type=Tokens(), default=(), help="List the launches for these numbers of tokens.")
@click.option("--target", metavar="NAME", help="Of this target alone (default: every one).")
@click.option(
    "--html",
    "report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a report with plots, one HTML file.",
)
@json_option
def command(artifact: Path, tokens: tuple[int, ...], target: str | None, report: Path | None, as_json: bool) -> None:
    """Say what ARTIFACT holds. Nothing is run, and the weights are not read."""
    from moeloom.runtime.artifact import read
    from moeloom.tools.describe import describe, origin

    manifest = read(artifact, verify="fast")
    if report is not None:
        from moeloom.tools.html_report import TOKENS, write

        write(report, manifest, describe(manifest, tokens or TOKENS, target))
        click.echo(f"{report}: written")
        return
    found = describe(manifest, tokens, target)
    if as_json:
        output.print_json(found)
        return
    tools = ", ".join(f"{name} {version}" for name, version in found["tools"].items())
    click.echo(f"{artifact}: compiled by moeloom {found['compiler']} ({tools})")
    click.echo("options: " + ", ".join(f"{name} {value}" for name, value in found["options"].items()))
    click.echo(f"weights: {origin(found)}")
    click.echo("\nfusion of quantiser and scale sort")
    for line in fusion_lines(found["report"]) or ["no candidate: nothing is quantised"]:
        click.echo(f"  {line}")
    for own in found["targets"]:
        _print_target(own)


def _print_target(target: dict[str, Any]) -> None:
    from moeloom.tools.describe import setting, table_of

    click.echo(f"\ntarget {target['target']}: {output.mebibytes(target['weights_bytes'])} of weights")
    click.echo(f"  table: {table_of(target)}")
    if target["tuning"]:
        output.print_table(["tuned", "where", "params"], [setting(row) for row in target["tuning"]["settings"]], "    ")
    if target["architecture"] is None:
        _print_libraries(target)
    else:
        _print_code(target["kernels"])
    for program in target["programs"]:
        entries = program["entries"]
        more = f" and {len(entries) - 1} more of the same program" if len(entries) > 1 else ""
        inputs = ", ".join(f"{name}: {about}" for name, about in program["inputs"].items())
        click.echo(f"\n  {entries[0]}{more}\n    ({inputs}) -> {', '.join(program['outputs'])}")
        for switch in program["switches"]:
            click.echo(f"    switches above M = {switch['max_m']} ({switch['choice']}): {switch['reason']}")
        if program["rounding"]:
            names = ", ".join(program["rounding"])
            click.echo(f"    round x to MXFP4, so that no quantiser is launched (--fusion fused keeps it): {names}")
        for at in program["at"]:
            steps = at["steps"]
            launches = sum("launch" in step for step in steps)
            click.echo(
                f"    {at['tokens']} tokens: {launches} launches, {output.mebibytes(at['workspace_bytes'])} workspace"
            )
            rows = [[step.get("launch") or step["aten"], str(step.get("tiles", "")), step["why"]] for step in steps]
            output.print_table(["step", "tiles", "why"], rows, indent="      ")


def _print_libraries(target: dict[str, Any]) -> None:
    """The native libraries of a CPU target, and which one this machine takes."""
    libraries = target["libraries"]
    for library, lesser in zip(libraries, [*libraries[1:], {"tier": "", "features": []}], strict=True):
        here = "  <- this machine" if library["tier"] == target["runs_here"] else ""
        own = " ".join(feature for feature in library["features"] if feature not in lesser["features"])
        beyond = f" beyond {lesser['tier']}" if lesser["tier"] else ""
        click.echo(f"  library {library['tier']}: needs {own}{beyond}{here}")
    if target["runs_here"] is None:
        click.echo("  no library runs on this machine")


def _print_code(kernels: dict[str, Any]) -> None:
    """The code objects of a GPU target, and what the compiler noted of each."""
    header = ["kernel", "threads", "shared, bytes", "registers", "spills"]
    tuned = any("tile" in kernel for kernel in kernels.values())
    rows = [
        [name, *(str(kernel["code"][fact]) for fact in FACTS), *([kernel.get("tile", "-")] if tuned else [])]
        for name, kernel in kernels.items()
    ]
    output.print_table([*header, *(["tile"] if tuned else [])], rows, indent="  ")
