"""`moeloom bench`: how fast, and how far from the memory floor."""

import sys
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
    from moeloom.peers import Peer
    from moeloom.runtime.executable import Executable

INPUTS = 32
"""Random inputs that calls take in turns, so that other experts are touched each time."""
ROUTINGS = ("natural", "uniform", "zipf", "one_set", "topics")
EPILOG = """\b
Examples:
  moeloom bench model.moel --tokens 1,4,16,64
  moeloom bench a4.moel a16.moel --tokens 1,16 --threads 2
  moeloom bench model.moel --fusion --no-peers
  moeloom bench model.moel --device cuda --sustained --routing zipf --peers-from .peers"""


@click.command("bench", epilog=EPILOG)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--entry", "entries", multiple=True, metavar="NAME", help="Entries to call in turns (default: every block)."
)
@click.option("--tokens", type=Tokens(), default="1,4,16", show_default=True, help="Numbers of tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random inputs.")
@click.option(
    "--peers/--no-peers", "with_peers", default=True, show_default=True, help="Also time other libraries' layers."
)
@click.option(
    "--peers-from",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Look for other libraries in this folder too.",
)
@click.option(
    "--routing",
    type=click.Choice(ROUTINGS),
    default="natural",
    show_default=True,
    help="Where tokens go: as the router's weights have it, or inputs made for a distribution (moeloom/routing.py).",
)
@click.option("--sustained", is_flag=True, help="Also time 1.2 s of calls without a pause; their second half counts.")
@click.option("--fusion", "both", is_flag=True, help="Time each artifact with the fused and with the split quantiser.")
@load_options
@json_option
def command(
    artifacts: Sequence[Path],
    entries: Sequence[str],
    tokens: tuple[int, ...],
    seed: int,
    with_peers: bool,
    peers_from: Path | None,
    routing: str,
    sustained: bool,
    both: bool,
    as_json: bool,
    **load: Any,
) -> None:
    """Median time of a call for each of ARTIFACTS, measured in turns.

    Calls go through the entries and several inputs in turns, so that weights come from memory as in a whole model. The
    floor is the bytes of the weights that a call touches over the read bandwidth, measured before and after each row
    with the same threads, or on the same GPU. On a GPU all these calls are captured in one graph and replayed.

    Peers are layers of other libraries that are installed, on the weights of the first artifact; their numbers are
    compared before they are timed. The ratio is a row's time to the first artifact's.
    """
    if peers_from is not None:
        sys.path.insert(0, str(peers_from))
    opened = [open_artifact(path, **load) for path in artifacts]
    names = [str(path) for path in artifacts]
    if both:
        from moeloom.check import forced

        names = [f"{name} {which}" for name in names for which in ("fused", "split")]
        opened = [forced(executable, which) for executable in opened for which in ("first", "second")]
    rows: list[dict[str, Any]] = []
    with output.progress() as progress:
        others, notes = _peers(opened[0], entries, seed) if with_peers else ({}, [])
        for number, m in enumerate(tokens):
            progress("bench", number, len(tokens))
            own = measure(opened, names, entries, m, seed, routing, sustained)
            own += _peer_rows(others, opened[0], m, seed, routing, sustained)
            rows += [row | {"ratio": row["seconds"] / own[0]["seconds"]} for row in own]
        progress("bench", len(tokens), len(tokens))
    for executable in opened:
        executable.close()
    description = opened[0].device.description
    if as_json:
        output.print_json({"device": description, "rows": rows, "peers_left_out": notes})
        return
    columns = {name: column for name, column in COLUMNS.items() if sustained or name != "sustained ms"}
    output.print_table(list(columns), [[_cell(row, *column) for column in columns.values()] for row in rows])
    click.echo(f"{description}; layers called in turns: {rows[0]['layers']}")
    for peer, error in others.items():
        click.echo(f"{peer.name}: relative L2 {error:.2g}")
    for note in notes:
        click.echo(f"no peer: {note}")


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "artifact": ("artifact", str),
    "tokens": ("tokens", str),
    "ms": ("seconds", lambda value: f"{value * 1e3:.3f}"),
    "sustained ms": ("sustained", lambda value: f"{value * 1e3:.3f}"),
    "ratio": ("ratio", lambda value: f"{value:.2f}"),
    "launches": ("launches", str),
    "weights touched": ("touched_bytes", output.mebibytes),
    "GB/s read": ("bandwidth", lambda value: f"{value / 1e9:.1f}"),
    "floor ms": ("floor_seconds", lambda value: f"{value * 1e3:.3f}"),
    "of the floor": ("percent_of_floor", lambda value: f"{value:.0f} %"),
}


def _cell(row: dict[str, Any], key: str, text: Callable[[Any], str]) -> str:
    return text(row[key]) if key in row else "-"


def _peers(executable: "Executable", entries: Sequence[str], seed: int) -> "tuple[dict[Peer, float], list[str]]":
    """The peers of the first artifact, how far their numbers are from its own, and why other libraries are none."""
    from moeloom import peers

    output.quieten_imports()
    found, reasons = peers.find(executable, named_entries(executable.entries, entries, blocks(executable.entries)))
    return {peer: peers.compare(peer, executable, seed) for peer in found}, reasons


def _peer_rows(
    others: "dict[Peer, float]", executable: "Executable", tokens: int, seed: int, routing: str, sustained: bool
) -> list[dict[str, Any]]:
    from moeloom import peers, timing

    rows = []
    for peer, error in others.items():
        if not peer.fits(tokens):
            continue
        seconds = peers.time(peer, executable, tokens, INPUTS, seed, routing)
        row = {"artifact": peer.name, "tokens": tokens, "seconds": seconds}
        if sustained:
            with timing.torch_threads(executable.device):
                calls = peers.calls(peer, executable, tokens, INPUTS, seed, routing)
                row["sustained"] = timing.sustained(timing.Round(calls, executable.device))
        rows.append(row | {"layers": len(peer.layers), "relative_l2": error})
    return rows


def measure(
    opened: "Sequence[Executable]",
    names: Sequence[str],
    entries: Sequence[str],
    tokens: int,
    seed: int,
    routing: str = "natural",
    sustained: bool = False,
) -> list[dict[str, Any]]:
    """A row for each artifact at M = `tokens`."""
    from moeloom import timing
    from moeloom.measure import bandwidth, medians

    device = opened[0].device
    layers = [named_entries(e.entries, entries, blocks(e.entries)) for e in opened]
    calls = [_calls(executable, own, tokens, seed, routing) for executable, own in zip(opened, layers, strict=True)]
    before = bandwidth(device)
    times = medians([call for call, _, _ in calls])
    fastest = max(before, bandwidth(device))
    rows = []
    for executable, name, own, taken, (_, count, read) in zip(opened, names, layers, times, calls, strict=True):
        seconds, floor = taken / count, read / fastest
        row = {
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
        if sustained:
            again = timing.calls(executable, timing.turns(executable, own, tokens, INPUTS, seed, routing))
            row["sustained"] = timing.sustained(timing.Round(again, device))
        rows.append(row)
    return rows


def _calls(
    executable: "Executable", layers: Sequence[str], tokens: int, seed: int, routing: str = "natural"
) -> tuple[Callable[[int], Any], int, float]:
    """What is timed, how many calls it makes, and the mean weight bytes of one: the layers and the inputs in turns."""
    from moeloom import timing
    from moeloom.replay import Replay

    turns = timing.turns(executable, layers, tokens, INPUTS, seed, routing)
    read = sum(Replay(executable, name).touched_bytes(inputs) for name, inputs in turns)
    return *timing.timed(timing.calls(executable, turns), executable.device), read / len(turns)
