"""The plots of a report, as SVG text."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from moeloom.tools.errors import CommandError

MEBIBYTE = 2**20
COLOUR = "#2f6db5"
# Any: matplotlib's stubs want each name as a literal.
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moeloom",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes, in inches; CommandError where matplotlib is missing."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise CommandError("--html needs matplotlib: pip install 'moeloom[report]'") from error
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(SETTINGS):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def workspace(lines: Mapping[str, Sequence[int]], tokens: Sequence[int]) -> str:
    """Bytes of workspace by program, over the number of tokens M; both axes logarithmic."""
    figure, axes = _figure(8, 3.2)
    for name, sizes in lines.items():
        axes.plot(tokens, [size / MEBIBYTE for size in sizes], label=name, marker="o", markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens M")
    axes.set_ylabel("workspace, MiB")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _svg(figure)


def weights(sizes: Mapping[str, int]) -> str:
    """Bytes of packed weights by part, a bar each, the largest on top."""
    ordered = sorted(sizes.items(), key=lambda item: item[1])
    figure, axes = _figure(8, 0.6 + 0.28 * len(ordered))
    bars = axes.barh([name for name, _ in ordered], [size / MEBIBYTE for _, size in ordered], color=COLOUR)
    axes.bar_label(bars, fmt="{:,.3g}", padding=3)
    axes.set_xlabel("MiB, all layers")
    axes.margins(x=0.12)
    return _svg(figure)
