"""How long `moeloom compile` takes on a model's config.json, the first time and again.

    python benchmarks/compile_time.py [--target T]... [--activations bf16] [--layers 1] [--json]
    python benchmarks/compile_time.py --kernels [--target sm_90]

A gpt-oss-120b layer (H = I = 2880, E = 128, k = 4). Whole command, Python's start included, by the wall clock: cold has
an empty cache, warm the one that it left. Files of Python itself are read once before. --kernels compiles the kernels
of the first target, a GPU, one after the other in this process: seconds of each stage, by template.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

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


def kernel_seconds(artifact: Path, target: str, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds by template and sort block, then by stage: what Python traces, Triton's passes, the assembler."""
    from triton import knobs

    from moeloom.lowering.triton.compile import write_kernel

    def listen(*, times: Any, **_: Any) -> None:
        for stage, spent in [("traced", times.ir_initialization), *times.lowering_stages]:
            found[stage] += spent / 1e6

    knobs.compilation.listener = listen
    kernels = json.loads((artifact / "manifest.json").read_text())["targets"][target]["kernels"]
    seconds: dict[str, dict[str, float]] = {}
    for name, kernel in kernels.items():
        found = seconds.setdefault(f"{kernel['template']} {kernel['params'].get('block', '')}", defaultdict(float))
        odd = [number for number, multiple in enumerate(kernel["divisible"]) if multiple == 1]
        work = {"template": kernel["template"], "params": kernel["params"], "odd_strides": odd}
        write_kernel({**work, "architecture": target}, folder / name)
    return seconds


def show_kernels(seconds: dict[str, dict[str, float]]) -> None:
    stages = list(dict.fromkeys(stage for found in seconds.values() for stage in found))
    click.echo(f"{'':26}" + "".join(f"{stage:>9}" for stage in [*stages, "all"]))
    total = {stage: sum(found.get(stage, 0.0) for found in seconds.values()) for stage in stages}
    for name, found in [*sorted(seconds.items(), key=lambda item: -sum(item[1].values())), ("all", total)]:
        own = [found.get(stage, 0.0) for stage in stages]
        click.echo(f"{name:26}" + "".join(f"{spent:9.2f}" for spent in [*own, sum(own)]))


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.option("--target", "targets", multiple=True, default=("gfx950", "gfx942", "sm_90", "cpu"), show_default=True)
@click.option("--activations", type=click.Choice(["mxfp4", "bf16"]), default="mxfp4", show_default=True)
@click.option("--layers", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--kernels", "by_kernel", is_flag=True, help="The kernels of the first target instead, by stage.")
def main(targets: tuple[str, ...], activations: str, layers: int, as_json: bool, by_kernel: bool) -> None:
    if by_kernel and targets[0] == "cpu":
        raise click.UsageError("--kernels is for GPU targets: give --target sm_90")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "config.json").write_text(json.dumps(Shape(2880, 2880, 128, 4, layers).config()))
        options = ["--weights", "random", "--overwrite", "--activations", activations, "-o", str(home / "made.moel")]
        options += [word for target in targets for word in ("--target", target)]
        subprocess.run([sys.executable, "-c", "import moeloom.compiler, transformers"], check=True, capture_output=True)
        if by_kernel:
            seconds(home, options)
            found = kernel_seconds(home / "made.moel", targets[0], home)
            click.echo(json.dumps(found)) if as_json else show_kernels(found)
            return
        rows = {name: seconds(home, options) for name in ("cold", "warm")}
    if as_json:
        found = {name: {"seconds": wall, "cpu_seconds": spent} for name, (wall, spent) in rows.items()}
        click.echo(json.dumps({"targets": targets, "activations": activations, "layers": layers, **found}))
        return
    for name, (wall, spent) in rows.items():
        click.echo(f"{name}  {wall:6.1f} s  ({spent:.1f} s of CPU)  {', '.join(targets)}")


if __name__ == "__main__":
    main()
