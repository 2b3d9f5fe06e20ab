"""`moeloom compile`: a model becomes an artifact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from moeloom.tools import output
from moeloom.tools.errors import needs_compiler

STAGES: dict[str, Literal["auto", 1, 2]] = {"auto": "auto", "1": 1, "2": 2}
EPILOG = """\b
Examples:
  moeloom compile gpt-oss-20b/ -o model.moel
  moeloom compile gpt-oss-20b/ -o model.moel --activations bf16 --stages 2
  moeloom compile mixtral/ -o model.moel --quantize-weights mxfp4 --require-fusion 64
  moeloom compile gpt-oss-120b/ -o model.moel --weights reference
  moeloom compile gpt-oss-120b/config.json -o shape.moel --weights random --seed 1
  moeloom compile gpt-oss-120b/ -o model.moel --target sm_90 --tuning tuned/sm_90.json
  moeloom compile models.py:tiny_block -o block.moel
  moeloom compile layer.mlir -o layer.moel --dump-phases phases/"""


@click.command("compile", epilog=EPILOG)
@click.argument("model")
@click.option(
    "-o", "--output", "artifact", required=True, type=click.Path(path_type=Path), help="The artifact to write."
)
@click.option("--target", "targets", multiple=True, default=("cpu",), show_default=True, help="May be given again.")
@click.option(
    "--scope", type=click.Choice(["moe"]), default="moe", show_default=True, help="moe: an entry an MoE block."
)
@click.option(
    "--activations",
    type=click.Choice(["mxfp4", "bf16"]),
    default="mxfp4",
    show_default=True,
    help="What experts multiply: activations quantised to MXFP4 (A4), or as they are (A16).",
)
@click.option(
    "--stages",
    type=click.Choice(list(STAGES)),
    default="auto",
    show_default=True,
    help="Both expert products in one kernel, or one each.",
)
@click.option(
    "--fusion",
    type=click.Choice(["auto", "fused", "split"]),
    default="auto",
    show_default=True,
    help="Quantiser and scale sort: inside the product that reads them where a target has such a product, else by the "
    "number of tokens; always one kernel; or always two.",
)
@click.option(
    "--weight-layout",
    type=click.Choice(["auto", "row_major", "stream"]),
    default="auto",
    show_default=True,
    help="Expert weights on a GPU: as was measured to be fastest; row by row, for any scales; or for its decode "
    "kernels, where it has them.",
)
@click.option(
    "--scale-mode",
    type=click.Choice(["even", "rceil", "floor", "ceil"]),
    default="even",
    show_default=True,
    help="How a block's shared scale is rounded.",
)
@click.option("--quantize-weights", type=click.Choice(["mxfp4"]), help="Quantise the weights of a bf16 checkpoint.")
@click.option(
    "--weights",
    type=click.Choice(["copy", "reference", "random", "none"]),
    default="copy",
    show_default=True,
    help="Pack the weights into the artifact; pack them at load from where the checkpoint lies now; make them at load "
    "from --seed; or leave them out.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of random weights.")
@click.option(
    "--tuning",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A table that moeloom tune wrote; may be given again, for another target.",
)
@click.option(
    "--require-fusion", type=click.IntRange(0), default=0, metavar="N", help="Fail if fewer sites were fused."
)
@click.option("--dump-phases", type=click.Path(path_type=Path), metavar="DIR", help="Write the IR after each phase.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where imports and code are kept between compilations, 2 GiB at most  [default: $MOELOOM_CACHE, else "
    "moeloom/objects in $XDG_CACHE_HOME or ~/.cache]",
)
@click.option("--overwrite", is_flag=True, help="Replace the artifact if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(model: str, artifact: Path, targets: Sequence[str], stages: str, as_json: bool, **options: Any) -> None:
    """Compile MODEL into an artifact.

    MODEL is a checkpoint directory (config.json and safetensors), a config.json alone (--weights random or none), a
    Python `module:factory` or `file.py:factory` that returns a torch module, or an .mlir file.
    """
    output.quieten_imports()
    with needs_compiler(), output.progress() as progress:
        import moeloom

        report = moeloom.compile(
            model,
            artifact,
            targets=tuple(targets),
            stages=STAGES[stages],
            progress=progress,
            **options,
        )
    if as_json:
        found = {name: getattr(report, name) for name in ("path", "entries", "records", "fused", "seconds")}
        output.print_json(found)
        return
    for line in fusion_lines(report.records):
        click.echo(line)
    spent = sum(report.seconds.values())
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in report.seconds.items() if seconds >= 0.05)
    click.echo(f"{report.path}: {len(report.entries)} entries, {report.fused} sites fused, {spent:.1f} s ({phases})")


def fusion_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """The match report, a line a record: `fused   model.layers.0.mlp (x36) stage 1: why  [file:line:col]`."""
    lines = []
    for record in records:
        layers = f" (x{record['sites']})" if record["sites"] != "1" else ""
        what = f"{record['decision']:8}{record['entry']}{layers} {record['site']}"
        lines.append(f"{what}: {record['reason']}  [{record['location']}]")
    return lines
