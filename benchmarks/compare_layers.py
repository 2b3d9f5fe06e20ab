"""Artifacts of one layer in turns, such as a commit's and the one's before: what a change is worth on this GPU.

    python benchmarks/compare_layers.py BEFORE.moel AFTER.moel [--tokens 128,256,4096] [--routing uniform]

Layers, inputs, bursts and what is sustained are those of moe_layer.py. Numbers of one run alone can be compared: from
machine to machine, and from minute to minute, a GPU at its power limit differs by more than most changes.
"""

import gc
from pathlib import Path

import click
import torch
from moe_layer_row import calls_of

import moeloom
from moeloom import timing
from moeloom.routing import DRAWS
from moeloom.tools.artifact import Tokens, blocks


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.argument("artifacts", type=click.Path(path_type=Path, exists=True, file_okay=False), nargs=-1, required=True)
@click.option("--tokens", type=Tokens(), default="1,4,16,64,128,256,1024,4096", show_default=True)
@click.option("--routing", type=click.Choice(list(DRAWS)), default="uniform", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--sustained-seconds", type=float, default=0.4, show_default=True)
def main(
    artifacts: tuple[Path, ...], tokens: tuple[int, ...], routing: str, rounds: int, sustained_seconds: float
) -> None:
    loaded = [moeloom.load(path, verify="fast") for path in artifacts]
    for m in tokens:
        sides = []
        for executable in loaded:
            turns = timing.turns(executable, blocks(executable.entries), m, calls_of(m), 1000 + m, routing)
            sides.append(timing.Round(timing.calls(executable, turns), executable.device))
        for _ in range(rounds):
            cells = []
            for path, side in zip(artifacts, sides, strict=True):
                burst, sustained = timing.burst(side), timing.sustained(side, sustained_seconds)
                cells.append(f"{path}: {burst * 1e6:.1f} / {sustained * 1e6:.1f} us")
            click.echo(f"{routing} M = {m}   " + "   ".join(cells))
        sides.clear()
        gc.collect()
        torch.cuda.empty_cache()  # which without a GPU does nothing


if __name__ == "__main__":
    main()
