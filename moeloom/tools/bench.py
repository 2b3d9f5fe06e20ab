"""`moeloom bench`: how fast, and how far from the memory floor."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moeloom.tools import output
from moeloom.tools.artifact import (
    Tokens,
    blocks,
    json_option,
    load_options,
    named_entries,
    open_artifact,
)

if TYPE_CHECKING:
    from torch import Tensor

    from moeloom.runtime.executable import Executable

INPUTS = 32
"""Random inputs that calls take in turns, so that other experts are touched each time."""
EPILOG = """\b
Examples:
  moeloom bench model.moel --tokens 1,4,16,64
  moeloom bench a4.moel a16.moel --tokens 1,16 --threads 2
  moeloom bench model.moel --fusion

Against other libraries: benchmarks/ in the repository."""


@click.command("bench", epilog=EPILOG)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--entry", "entries", multiple=True, metavar="NAME", help="Entries to call in turns (default: every block)."
)
@click.option("--tokens", type=Tokens(), default="1,4,16", show_default=True, help="Numbers of tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random inputs.")
@click.option("--fusion", "both", is_flag=True, help="Time each artifact with the fused and with the split quantiser.")
@load_options
@json_option
def command(
    artifacts: Sequence[Path],
    entries: Sequence[str],
    tokens: tuple[int, ...],
    seed: int,
    both: bool,
    as_json: bool,
    **load: Any,
) -> None:
    """Median time of a call for each of ARTIFACTS, measured in turns.

    Calls go through the entries and several inputs in turns, so that weights come from memory as in a whole model. The
    floor is the bytes of the weights that a call touches over the read bandwidth, measured before and after each row
    with the same threads, or on the same GPU. On a GPU all these calls are captured in one graph and replayed.
    """
    opened = [open_artifact(path, **load) for path in artifacts]
    names = [str(path) for path in artifacts]
    if both:
        from moeloom.check import forced

        names = [f"{name} {which}" for name in names for which in ("fused", "split")]
        opened = [forced(executable, which) for executable in opened for which in ("first", "second")]
    rows = []
    with output.progress() as progress:
        for number, m in enumerate(tokens):
            progress("bench", number, len(tokens))
            rows += measure(opened, names, entries, m, seed)
        progress("bench", len(tokens), len(tokens))
    for executable in opened:
        executable.close()
    if as_json:
        output.print_json({"device": opened[0].device.description, "rows": rows})
        return
    cells = [
        [
            row["artifact"],
            str(row["tokens"]),
            f"{row['seconds'] * 1e3:.3f}",
            str(row["launches"]),
            output.mebibytes(row["touched_bytes"]),
            f"{row['bandwidth'] / 1e9:.1f}",
            f"{row['floor_seconds'] * 1e3:.3f}",
            f"{row['percent_of_floor']:.0f} %",
        ]
        for row in rows
    ]
    header = ["artifact", "tokens", "ms", "launches", "weights touched", "GB/s read", "floor ms", "of the floor"]
    output.print_table(header, cells)
    click.echo(f"{opened[0].device.description}; layers called in turns: {rows[0]['layers']}")


def measure(
    opened: "Sequence[Executable]", names: Sequence[str], entries: Sequence[str], tokens: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each artifact at M = `tokens`."""
    from moeloom.measure import bandwidth, medians

    device = opened[0].device
    layers = [named_entries(e.entries, entries, blocks(e.entries)) for e in opened]
    calls = [_calls(executable, own, tokens, seed) for executable, own in zip(opened, layers, strict=True)]
    before = bandwidth(device)
    times = medians([call for call, _, _ in calls])
    fastest = max(before, bandwidth(device))
    rows = []
    for executable, name, own, taken, (_, count, read) in zip(opened, names, layers, times, calls, strict=True):
        seconds, floor = taken / count, read / fastest
        rows.append(
            {
                "artifact": name,
                "tokens": tokens,
                "seconds": seconds,
                "launches": len(executable[own[0]].launches(tokens)),
                "layers": len(own),
                "touched_bytes": read,
                "bandwidth": fastest,
                "floor_seconds": floor,
                "percent_of_floor": 100 * floor / seconds,
            }
        )
    return rows


def _calls(
    executable: "Executable", layers: Sequence[str], tokens: int, seed: int
) -> tuple[Callable[[int], Any], int, float]:
    """What is timed, how many calls it makes, and the mean weight bytes of one: the layers and the inputs in turns."""
    from moeloom.check import inputs_of
    from moeloom.replay import Replay

    turns: list[tuple[str, dict[str, Tensor]]] = []
    read = 0
    for turn in range(max(INPUTS, len(layers))):
        name = layers[turn % len(layers)]
        inputs = inputs_of(executable, name, tokens, seed + turn)
        read += Replay(executable, name).touched_bytes(inputs)
        turns.append((name, inputs))

    def call(turn: int) -> Any:
        name, inputs = turns[turn % len(turns)]
        return executable[name](**inputs)

    if executable.device.torch_device.type == "cpu":
        return call, 1, read / len(turns)
    return _replayed(executable, call, len(turns)), len(turns), read / len(turns)


def _replayed(executable: "Executable", call: Callable[[int], Any], turns: int) -> Callable[[int], Any]:
    """All the turns captured in one graph, so that the GPU and not Python sets the pace."""
    import torch

    for turn in range(turns):
        call(turn)
    executable.device.synchronise()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call(turn) for turn in range(turns)]

    def replay(_: int) -> Any:
        graph.replay()
        executable.device.synchronise()
        return outputs

    return replay
