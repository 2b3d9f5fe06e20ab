"""How long `moeloom compile` takes on a model's config.json, the first time and again.

    python benchmarks/compile_time.py [--target T]... [--activations bf16] [--layers 1] [--json]

A gpt-oss-120b layer (H = I = 2880, E = 128, k = 4). Whole command, Python's start included, by the wall clock: cold has
an empty cache, warm the one that it left. Files of Python itself are read once before.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from moeloom.shape import Shape


def seconds(home: Path, options: list[str]) -> tuple[float, float]:
    """Wall seconds of the command, and seconds of CPU that it and its workers took."""
    command = [sys.executable, "-m", "moeloom.tools.main", "compile", str(home / "config.json"), *options]
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, env=os.environ | {"MOELOOM_CACHE": str(home)}, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.option("--target", "targets", multiple=True, default=("gfx950", "gfx942", "sm_90", "cpu"), show_default=True)
@click.option("--activations", type=click.Choice(["mxfp4", "bf16"]), default="mxfp4", show_default=True)
@click.option("--layers", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(targets: tuple[str, ...], activations: str, layers: int, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "config.json").write_text(json.dumps(Shape(2880, 2880, 128, 4, layers).config()))
        options = ["--weights", "random", "--overwrite", "--activations", activations, "-o", str(home / "made.moel")]
        options += [word for target in targets for word in ("--target", target)]
        subprocess.run([sys.executable, "-c", "import moeloom.compiler, transformers"], check=True, capture_output=True)
        rows = {name: seconds(home, options) for name in ("cold", "warm")}
    if as_json:
        found = {name: {"seconds": wall, "cpu_seconds": spent} for name, (wall, spent) in rows.items()}
        click.echo(json.dumps({"targets": targets, "activations": activations, "layers": layers, **found}))
        return
    for name, (wall, spent) in rows.items():
        click.echo(f"{name}  {wall:6.1f} s  ({spent:.1f} s of CPU)  {', '.join(targets)}")


if __name__ == "__main__":
    main()
