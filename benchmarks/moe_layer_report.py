"""What `moe_layer.py` prints and draws of its results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]
MEASURES = ("burst", "sustained")
OURS = "moeloom"
TITLES = {"uniform": "Uniform routing", "skewed": "Skewed routing", "shapes": "Other shapes", "prefill": "Prefill"}


@dataclass(frozen=True)
class Group:
    """The rows of one case, a run each; figures are medians over them."""

    rows: tuple[Record, ...]

    @property
    def first(self) -> Record:
        return self.rows[0]

    def mean(self, name: str) -> float:
        return sum(row[name] for row in self.rows) / len(self.rows)

    def names(self) -> list[str]:
        return [side["name"] for side in self.first["sides"]]

    def seconds(self, side: str, measure: str) -> float | None:
        """Median seconds of a call; None where it was not timed."""
        return _median(self._of(side, measure))

    def _of(self, side: str, measure: str) -> list[float | None]:
        return [next((s[measure] for s in row["sides"] if s["name"] == side), None) for row in self.rows]

    def of_floor(self, side: str, measure: str) -> float | None:
        """Percent: what reading the touched experts takes, of what the side took."""
        taken = self._of(side, measure)
        return _median([100 * row["floor_seconds"] / t if t else None for row, t in zip(self.rows, taken, strict=True)])

    def of_matmul(self, side: str, measure: str) -> float | None:
        """Percent: useful operations a second, of what torch's bf16 product reaches in the same run."""
        taken = self._of(side, measure)
        rates = [
            row["useful_flops"] / t / row["matmul_flops"][measure] if t else None
            for row, t in zip(self.rows, taken, strict=True)
        ]
        return _median([100 * rate if rate else None for rate in rates])

    def to_ours(self, side: str, measure: str) -> float | None:
        """The time of a side to that of the first one, which is ours."""
        ours = self._of(self.names()[0], measure)
        return _median([t / o if t and o else None for t, o in zip(self._of(side, measure), ours, strict=True)])

    def times(self, side: str) -> str:
        return _pair(lambda measure: _scaled(self.seconds(side, measure), 1e6), "{:.1f}")

    def share(self, side: str) -> str:
        """Of the floor, or of the matmul rate where compute bounds."""
        of = self.of_matmul if self.first["what"] == "prefill" else self.of_floor
        return _pair(lambda measure: of(side, measure), "{:.0f} %")

    def ratio(self, measure: str) -> float | None:
        """The fastest peer's time to ours (the first artifact's), the median over the runs."""
        return _median([_ratio(row, measure) for row in self.rows])

    def fastest(self) -> str:
        """The peer that was the fastest one, in bursts."""
        timed = {name: self.seconds(name, "burst") for name in self.names() if not name.startswith(OURS)}
        return min((name for name in timed if timed[name]), key=lambda name: timed[name] or 0, default="-")


def _ratio(row: Record, measure: str) -> float | None:
    ours = row["sides"][0][measure]
    peers = [side[measure] for side in row["sides"] if not side["name"].startswith(OURS) and side[measure]]
    return min(peers) / ours if peers and ours else None


def _median(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return median(held) if held else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def groups(records: Sequence[Record]) -> list[Group]:
    """The rows, runs of a case together, each with the rate of torch's product in its run of the benchmark."""
    rates: dict[str, float] = {}
    rows: list[Record] = []
    for record in records:
        if record["kind"] == "run":
            rates = record["matmul_flops"]
        if record["kind"] == "row":
            rows.append(record | {"matmul_flops": rates})

    def case(row: Record) -> tuple:
        return list(TITLES).index(row["what"]), row["layer"], row["routing"], row["tokens"]

    return [Group(tuple(same)) for _, same in groupby(sorted(rows, key=case), case)]


Column = tuple[str, Callable[[Group], str]]


def _case(some: Sequence[Group]) -> list[Column]:
    """The columns that say what a row is of."""
    wanted: list[Column] = []
    if len({group.first["layer"] for group in some}) > 1:
        wanted.append(("layer", lambda g: g.first["layer"]))
    if some[0].first["what"] == "skewed":
        wanted.append(("routing", lambda g: g.first["routing"]))
    wanted += [("M", lambda g: str(g.first["tokens"])), ("experts", lambda g: f"{g.mean('experts'):.1f}")]
    if some[0].first["what"] == "skewed":
        wanted.append(("busiest", lambda g: f"{100 * g.mean('busiest_share'):.0f} %"))
    floors = ("floor_seconds", "reference_floor_seconds")
    return [
        *wanted,
        ("floor us (at 4.57 TB/s)", lambda g: "{:.1f} ({:.1f})".format(*(1e6 * g.mean(f) for f in floors))),
    ]


def columns(some: Sequence[Group]) -> list[Column]:
    """A document's columns for the groups of one part: a line a group."""
    what = some[0].first["what"]
    wanted = _case(some)
    for name in dict.fromkeys(name for group in some for name in group.names()):
        wanted.append((f"{name} us", lambda g, n=name: g.times(n)))
        if name.startswith(OURS):
            wanted.append(("of bf16 matmul" if what == "prefill" else "of the floor", lambda g, n=name: g.share(n)))
    return [*wanted, ("best peer / ours", lambda g: f"{_pair(g.ratio, '{:.2f}')} {g.fastest()}"), ("MHz, W", _clocks)]


def lines(some: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """A terminal's table for the groups of one part, header and rows: a line a side."""
    case = _case(some)
    share = "of bf16 matmul" if some[0].first["what"] == "prefill" else "of the floor"
    header = [name for name, _ in case] + ["side", "us", share, "to ours", "L2"]
    rows = []
    for group in some:
        for number, name in enumerate(group.names()):
            told = [text(group) if number == 0 else "" for _, text in case]
            error = group.first["sides"][number]["relative_l2"]
            to_ours = _pair(lambda m, n=name, g=group: g.to_ours(n, m), "{:.2f}")
            rows.append([*told, name, group.times(name), group.share(name), to_ours, f"{error or 0:.1e}"])
    return header, rows


def _pair(value: Callable[[str], float | None], text: str) -> str:
    """Burst / sustained."""
    found = [value(measure) for measure in MEASURES]
    return " / ".join("-" if one is None else text.format(one) for one in found)


def _clocks(group: Group) -> str:
    """The SM clock and the power of the first artifact, sustained."""
    read = group.first["sides"][0]["clocks"].get("sustained")
    return f"{read['sm_mhz']:.0f}, {read.get('watts', 0):.0f}" if read else "-"


def parts(records: Sequence[Record]) -> Iterator[tuple[str, list[Group]]]:
    """Title and groups of each part that was measured."""
    for what, some in groupby(groups(records), lambda group: group.first["what"]):
        yield TITLES[what], list(some)


def remarks(records: Sequence[Record]) -> list[str]:
    """What was measured on, and every note, once."""
    found = []
    for record in records:
        if record["kind"] == "run":
            rates = " / ".join(f"{record['matmul_flops'][m] / 1e12:.3g}" for m in MEASURES)
            where = (
                f"{record['date']}, {record['device']}, torch {record['torch']}, clocks and power: {record['clocks']}"
            )
            found.append(f"{where}; bf16 matmul {rates} TFLOP/s")
        if record["kind"] == "note":
            found.append(f"{record['layer']}: {record['text']}")
        for side in record.get("sides", ()):
            if side["note"]:
                found.append(
                    f"{record['layer']}, {record['routing']}, M = {record['tokens']}, {side['name']}: {side['note']}"
                )
    return list(dict.fromkeys(found))


def markdown(records: Sequence[Record]) -> str:
    """The tables for docs/h200.md."""
    blocks = []
    for title, some in parts(records):
        wanted = columns(some)
        text = [f"### {title}", "", f"| {' | '.join(name for name, _ in wanted)} |", "|" + "---|" * len(wanted)]
        text += [f"| {' | '.join(cell(group) for _, cell in wanted)} |" for group in some]
        blocks.append("\n".join(text))
    return "\n\n".join([*blocks, "\n".join(f"- {text}" for text in remarks(records))])


def show(records: Sequence[Record]) -> None:
    """The tables for a terminal."""
    console = Console()
    for title, some in parts(records):
        header, rows = lines(some)
        table = Table(title=f"{title}: burst / sustained", box=SIMPLE_HEAD, padding=(0, 1))
        for name in header:
            left = name in ("layer", "routing", "side")
            table.add_column(name, justify="left" if left else "right", no_wrap=left)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for text in remarks(records):
        console.print(text, highlight=False, soft_wrap=True)


def plot(records: Sequence[Record], path: Path) -> None:
    """A panel for each layer and part: percent of the floor, or of the matmul rate, and the ratio under skew."""
    from matplotlib.figure import Figure

    panels = [
        (key, list(some)) for key, some in groupby(groups(records), lambda g: (g.first["what"], g.first["layer"]))
    ]
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for number, ((what, layer), some) in enumerate(panels):
        axes = figure.add_subplot(1, max(1, len(panels)), number + 1)
        axes.set_title(f"{layer}: {TITLES[what].lower()}", fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens M")
        axes.grid(alpha=0.3)
        if what == "skewed":
            _ratios(axes, some)
        else:
            _percents(axes, some, what)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _percents(axes: Any, some: Sequence[Group], what: str) -> None:
    prefill = what == "prefill"
    axes.set_ylabel("% of torch's bf16 matmul" if prefill else "% of the memory floor")
    for colour, name in enumerate(some[0].names()):
        for measure, style in zip(MEASURES, ("-", "--"), strict=True):
            values = [(g.of_matmul if prefill else g.of_floor)(name, measure) for g in some]
            _line(axes, some, values, f"{name}, {measure}", f"C{colour}", style)


def _ratios(axes: Any, some: Sequence[Group]) -> None:
    axes.set_ylabel("best peer's time / ours")
    axes.axhline(1, color="grey", linewidth=0.8)
    for colour, (routing, same) in enumerate(groupby(some, lambda g: g.first["routing"])):
        held = list(same)
        for measure, style in zip(MEASURES, ("-", "--"), strict=True):
            _line(axes, held, [g.ratio(measure) for g in held], f"{routing}, {measure}", f"C{colour}", style)


def _line(
    axes: Any, some: Sequence[Group], values: Sequence[float | None], label: str, colour: str, style: str
) -> None:
    points = [(g.first["tokens"], value) for g, value in zip(some, values, strict=True) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, marker="o", markersize=3)
