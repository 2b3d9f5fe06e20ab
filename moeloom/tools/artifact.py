"""What the commands that run an artifact have in common: its argument, its options, its entries."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moeloom.tools.errors import CommandError

if TYPE_CHECKING:
    from moeloom.runtime.executable import Executable

VARIANTS = (".experts", ".experts_prequantised")


class Tokens(click.ParamType):
    """Numbers of tokens: `1,4,16`."""

    name = "M[,M...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not all(part.isdigit() and int(part) for part in value.split(",")):
            self.fail(f"{value!r} is no list of numbers of tokens, such as 1,4,16", param, ctx)
        return tuple(int(part) for part in value.split(","))


def artifact_argument(function: Callable) -> Callable:
    return click.argument("artifact", type=click.Path(path_type=Path))(function)


def load_options(function: Callable) -> Callable:
    """How an artifact is loaded; the command passes them on to `moeloom.load`."""
    for option in (
        click.option(
            "--weights-from",
            "weights",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Pack the weights from this checkpoint directory.",
        ),
        click.option("--tier", help="Kernel library by name (default: the best this CPU runs)."),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="Where to run: cpu, cuda, cuda:N, or auto, the GPU where some code of the artifact runs on it.",
        ),
        click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads (default: every CPU it may use)."),
        click.option(
            "--overlap/--no-overlap",
            default=True,
            show_default=True,
            help="Let launches begin while the one in front runs, on GPUs that can.",
        ),
    ):
        function = option(function)
    return function


def json_option(function: Callable) -> Callable:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def open_artifact(path: Path, **load: Any) -> "Executable":
    """The artifact at `path`, loaded as `load_options` say."""
    import moeloom

    return moeloom.load(path, **load)


def blocks(entries: Sequence[str]) -> list[str]:
    """The entries that are no variant of another one."""
    return [name for name in entries if not any(name.endswith(v) and name.removesuffix(v) in entries for v in VARIANTS)]


def named_entries(available: Sequence[str], wanted: Sequence[str], default: Sequence[str]) -> list[str]:
    """The entries asked for, or `default`."""
    for name in wanted:
        if name not in available:
            raise CommandError(f"the artifact has no entry {name!r}; it has {', '.join(available)}")
    return list(wanted or default)
