"""What commands print: JSON for scripts, tables and a progress bar for people."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text


class Report(Protocol):
    """How long-running work says how far it is."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


class Left(ProgressColumn):
    """The time that is left of a budget, in seconds."""

    def __init__(self, left: Callable[[], float]):
        super().__init__()
        self.left = left

    def render(self, task: Task) -> Text:
        minutes, seconds = divmod(round(self.left()), 60)
        return Text(f"{minutes}:{seconds:02} left", style="progress.remaining")


@contextmanager
def progress(left: Callable[[], float] | None = None) -> Iterator[Report]:
    """A bar on stderr, one line a phase, gone when the work is done; nothing where stderr is no terminal.

    left: the seconds left of a budget, shown instead of the time that has passed.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    last = TimeElapsedColumn() if left is None else Left(left)
    with Progress(*columns, last, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield report


def quieten_imports() -> None:
    """transformers imports torchao where it is installed, which then complains about libraries for other machines."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def print_json(value: Any) -> None:
    """`value` as indented JSON on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [
            cell.rjust(width) if number and _numeric(rows, number) else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo((indent + "  ".join(cells)).rstrip())


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1].isdigit() or row[column] in ("", "-") for row in rows)


def mebibytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**20:,.1f} MiB"
