"""`moeloom tune`: which variants are fastest on the device at hand."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moeloom.tools import output
from moeloom.tools.artifact import Tokens, json_option
from moeloom.tools.errors import EXIT_FAILED_CHECK, needs_compiler

if TYPE_CHECKING:
    from moeloom.tuning.tune import Tuned

EPILOG = """\b
Examples:
  moeloom tune gpt-oss-20b/ -o tuned --target cpu --budget 900
  moeloom tune -o tuned --budget 900                            goes on where that ended
  moeloom tune --shape hidden=2880,intermediate=2880,experts=128,topk=4 -o tuned --target sm_90 --only compile
  moeloom tune -o tuned --only measure                          on the machine with the GPU: no compiler needed
  moeloom compile gpt-oss-120b/ -o model.moel --target sm_90 --tuning tuned/sm_90.json

\b
Exit codes: 0 the table is written, or the variants compiled (what is left for another run is said); 1 an error;
2 a wrong command line; 3 the table in force gives wrong numbers on this device; 130 interrupted."""


@click.command("tune", epilog=EPILOG)
@click.argument("model", required=False)
@click.option(
    "--shape",
    metavar="SIZES",
    help="Instead of MODEL: hidden=H,intermediate=I,experts=E,topk=K, a gpt-oss layer of it.",
)
@click.option("--target", help="The target whose table is tuned.")
@click.option(
    "-o",
    "--output",
    "directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Variants, measurements and the table, DIR/TARGET.json.",
)
@click.option("--tokens", type=Tokens(), help="Numbers of tokens to be fast at (default: 1,4,16,64,256,1024).")
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds this run may take.",
)
@click.option(
    "--only", type=click.Choice(["compile", "measure", "select"]), help="One step alone (default: all of them)."
)
@click.option("--what", "what", help="Try these settings alone, such as fusion,gate_up (default: every one).")
@click.option(
    "--tuning", type=click.Path(path_type=Path), metavar="FILE", help="Start from this table, not the built-in one."
)
@click.option("--activations", type=click.Choice(["mxfp4", "bf16"]), help="As in compile (default: mxfp4).")
@click.option("--stages", type=click.Choice(["auto", "1", "2"]), help="As in compile (default: auto).")
@click.option("--quantize-weights", type=click.Choice(["mxfp4"]), help="As in compile.")
@click.option("--weight-layout", type=click.Choice(["auto", "row_major"]), help="As in compile (default: auto).")
@click.option("--device", default="auto", show_default=True, help="Where to measure: cpu, cuda, cuda:N, or auto.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads (default: every CPU it may use).")
@click.option("--tier", help="Kernel library by name (default: the best this CPU runs).")
@json_option
def command(
    model: str | None,
    shape: str | None,
    target: str | None,
    directory: Path,
    budget: float,
    only: Any,
    what: str | None,
    tuning: Path | None,
    stages: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
    tier: str | None,
    **wanted: Any,
) -> None:
    """Measure variants of the target's table on MODEL's layers, and write the table that won.

    A variant differs from the table in force in one change of one row: tile sizes of a kernel, a plan; thresholds are
    measured by forcing either side. It wins by more than 2 % and than the noise (the table against itself) over the
    numbers of tokens, in each of three rounds, with right numbers; what wins is then measured together. Anything else
    leaves the table as it is.

    Steps: compile (needs the compiler, no device), measure (needs the device, no compiler), select (writes the table
    from what is measured; measure ends with it). Every measurement is kept in DIR at once: a run that was interrupted
    or out of budget is gone on with by the same command; MODEL and its options may then be left out.
    """
    from moeloom.shape import Shape
    from moeloom.tuning.budget import Budget
    from moeloom.tuning.interrupts import remembered
    from moeloom.tuning.measuring import WrongNumbers
    from moeloom.tuning.tune import request_of, tune

    output.quieten_imports()
    load = {"device": device, "threads": threads, "tier": tier}
    own = {name: value for name, value in load.items() if value is not None}
    try:
        with remembered() as check:
            limit = Budget(budget, check)
            with needs_compiler(), output.progress(lambda: limit.left) as progress:
                request = request_of(
                    directory,
                    model=model,
                    shape=Shape.parse(shape) if shape else None,
                    what=tuple(what.split(",")) if what else None,
                    in_force=_settings(tuning, target) if tuning else None,
                    target=target,
                    stages=int(stages) if stages in ("1", "2") else stages,
                    **wanted,
                )
                found = tune(directory, request, only=only, budget=limit, progress=progress, **own)
    except WrongNumbers as error:
        click.echo(f"moeloom: error: {error}", err=True)
        sys.exit(EXIT_FAILED_CHECK)
    if as_json:
        output.print_json(vars(found))
        return
    _print(directory, found)


def _settings(path: Path, target: str | None) -> Sequence[Mapping[str, Any]]:
    """The settings of a table, for the target that is tuned."""
    from moeloom.tuning.table import by_target, read

    tuning = read(path)
    by_target(tuning, [target or tuning.target])
    return tuning.manifest()["settings"]


def _print(directory: Path, found: "Tuned") -> None:
    missing = found.variants - found.compiled
    if found.table is None:
        click.echo(f"{directory}: {found.compiled} of {found.variants} variants compiled; measure: --only measure")
        return
    table = found.table
    rows = [[_change(row), _gain(row), _tokens(row)] for row in table["rows"]]
    click.echo(f"{found.path}: {len(rows)} rows for {table['target']}, measured on {table['machine']['device']}")
    known = [value for value in table["noise"].values() if value is not None]
    if known:
        click.echo(f"  noise: {min(known):.1%} to {max(known):.1%}")
    if rows:
        output.print_table(["row", "of the time before", "at M"], rows, indent="  ")
    for one in table["kept"]:
        click.echo(f"  left out: {one['row']}: {one['state']}{_ratio(one)}{_reason(one)}")
    for one in table["refused"]:
        click.echo(f"  refused: {one['row']}{_reason(one)}")
    if table["together"] is not None:
        click.echo(f"  all winners together: {table['together']['state']}{_ratio(table['together'])}")
    if missing:
        click.echo(f"  {missing} variants are not compiled: the same command without --only, or --only compile, does")
    if found.unfinished:
        click.echo(f"  {found.unfinished} trials are unfinished: the same command goes on")


def _ratio(one: Mapping[str, Any]) -> str:
    return f", {one['ratio']:.3f} of the time before" if one["ratio"] else ""


def _reason(one: Mapping[str, Any]) -> str:
    return f": {one['reason']}" if one["reason"] else ""


def _change(row: Mapping[str, Any]) -> str:
    from moeloom.tuning.plan import Row

    return str(Row(*(row[name] for name in ("what", "when", "params", "replaces"))))


def _gain(row: Mapping[str, Any]) -> str:
    """The least and the most over the tokens; of a threshold, where its first side is the faster one."""
    found = [one["ratio"] for one in row["measured"]]
    if found:
        return f"{min(found):.3f} to {max(found):.3f}"
    faster = [str(one["tokens"]) for one in row.get("sides", ()) if one["ratio"] < 1]
    return f"first side faster at M = {','.join(faster) or 'none'}" if "sides" in row else "from the table before"


def _tokens(row: Mapping[str, Any]) -> str:
    return ",".join(str(one["tokens"]) for one in row["measured"] or row.get("sides", ()))
