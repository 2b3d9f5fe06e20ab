"""`moeloom check`: is what this machine computes right?"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from moeloom.tools import output
from moeloom.tools.artifact import Tokens, artifact_argument, json_option, load_options, named_entries, open_artifact
from moeloom.tools.errors import EXIT_FAILED_CHECK

EPILOG = """\b
Examples:
  moeloom check model.moel
  moeloom check model.moel --entry model.layers.0.mlp --tokens 1,64"""


@click.command("check", epilog=EPILOG)
@artifact_argument
@click.option("--entry", "entries", multiple=True, metavar="NAME", help="Entry to check; may be given again.")
@click.option("--tokens", type=Tokens(), default="1,5,16", show_default=True, help="Numbers of tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random inputs.")
@load_options
@json_option
def command(
    artifact: Path,
    entries: Sequence[str],
    tokens: tuple[int, ...],
    seed: int,
    as_json: bool,
    **load: Any,
) -> None:
    """Compare the entries of ARTIFACT (default: one of each program) with a float64 reference on the same weights.

    Also compares the fused with the split quantiser where a program has both, and the prequantised with the fresh
    entry, byte for byte. Exit code 3 if a comparison fails.
    """
    from moeloom.check import Figure, check

    with open_artifact(artifact, **load) as executable, output.progress() as progress:
        known = executable.manifest.entries
        firsts = {known[name].program: name for name in reversed(executable.entries)}
        chosen = named_entries(executable.entries, entries, list(reversed(firsts.values())))
        figures: list[Figure] = []
        progress("check", 0, len(chosen) * len(tokens))
        for number, (name, m) in enumerate((name, m) for name in chosen for m in tokens):
            figures += check(executable, [name], [m], seed)
            progress("check", number + 1, len(chosen) * len(tokens))
    failed = sum(not figure.passed for figure in figures)
    if as_json:
        output.print_json({"figures": [asdict(f) | {"passed": f.passed} for f in figures], "failed": failed})
    else:
        rows = [
            [
                f.entry,
                str(f.tokens),
                f.compared,
                f"{f.value:.3g}",
                f.measure,
                "ok" if f.passed else f"FAILED > {f.limit}",
            ]
            for f in figures
        ]
        output.print_table(["entry", "tokens", "compared", "value", "measure", "result"], rows)
        click.echo(f"{len(figures)} comparisons, {failed} failed")
    sys.exit(EXIT_FAILED_CHECK if failed else 0)
