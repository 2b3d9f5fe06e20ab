"""MLIR's diagnostics as values: where, how bad, what."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch_mlir import ir


@dataclass(frozen=True)
class Diagnostic:
    """`location` is `file:line:col` or "unknown"; `severity` is error, warning, remark or note."""

    location: str
    severity: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.severity}: {self.message}"


def position(location: ir.Location) -> str:
    """`file:line:col` of the first place in the source that `location` names, or "unknown"."""
    return next(_positions(location), "unknown")


def _positions(location: ir.Location) -> Iterator[str]:
    match location:
        case ir.FileLineColLoc():
            yield f"{location.filename}:{location.start_line}:{location.start_col}"
        case ir.NameLoc():
            yield from _positions(location.child_loc)
        case ir.CallSiteLoc():
            yield from _positions(location.callee)
            yield from _positions(location.caller)
        case ir.FusedLoc():
            for part in location.locations:
                yield from _positions(part)


@contextmanager
def collected(context: ir.Context) -> Iterator[list[Diagnostic]]:
    """Every diagnostic of the body, in order, instead of MLIR's printing to stderr.

    Notes follow what they belong to. MLIR hands over diagnostics only where `emit_error_diagnostics` is set.
    """
    found: list[Diagnostic] = []

    def take(diagnostic: ir.Diagnostic) -> bool:
        severity = str(diagnostic.severity).rpartition(".")[2].lower()
        found.append(Diagnostic(position(diagnostic.location), severity, diagnostic.message))
        for note in diagnostic.notes:
            # MLIR adds the whole op to verifier errors; a function's worth of text hides the one line that matters.
            if not note.message.startswith("see current operation:"):
                found.append(Diagnostic(position(note.location), "note", note.message))
        return True

    before = context.emit_error_diagnostics
    context.emit_error_diagnostics = True
    handler = context.attach_diagnostic_handler(take)
    try:
        yield found
    finally:
        handler.detach()
        context.emit_error_diagnostics = before
