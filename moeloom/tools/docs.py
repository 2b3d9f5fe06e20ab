"""The pages of docs/ that come from docstrings: `make docs` writes them, a test fails when they are stale."""

import inspect
from pathlib import Path

from torch_mlir.dialects import ext

from moeloom.dialects import kernel, moe
from moeloom.passes.base import Pass, text, wanted
from moeloom.tools.cli_page import cli_page
from moeloom.tools.opt import PASSES

GENERATED = "<!-- Written by moeloom/tools/docs.py (`make docs`); change the docstrings instead. -->"
FOLDER = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    """Write every page."""
    for name, page in pages().items():
        (FOLDER / name).write_text(page)


def pages() -> dict[str, str]:
    """The text of each generated page by file name."""
    return {"dialects.md": dialects_page(), "passes.md": passes_page(), "cli.md": f"{GENERATED}\n\n{cli_page()}"}


def dialects_page() -> str:
    sections = []
    for module, dialect in ((moe, moe.Moe), (kernel, kernel.Kernel)):
        sections.append(f"# The `{dialect.DIALECT_NAMESPACE}` dialect\n\n{inspect.getdoc(module)}")
        sections += [operation(op) for op in dialect.operations]
    return "\n\n".join([GENERATED, *sections]) + "\n"


def operation(op: type[ext.Operation]) -> str:
    """An op: its docstring, its operands, results, attributes and regions in order."""
    operands, attributes, results, regions = ext.partition_fields(op._fields)
    lines = [f"## {op.OPERATION_NAME}", "", inspect.getdoc(op) or "", ""]
    for title, fields in (
        ("Operands", operands),
        ("Attributes", attributes),
        ("Regions", regions),
        ("Results", results),
    ):
        names = [f"`{f.name}`" + " (optional)" * (f.variadicity == ext.Variadicity.optional) for f in fields]
        if names:
            lines.append(f"- {title}: {', '.join(names)}")
    return "\n".join(lines)


def passes_page() -> str:
    start = [
        GENERATED,
        "# Passes",
        "Run by `moeloom-opt FILE -p PIPELINE`, or from Python with `moeloom.passes.pipeline.run`. Passes of upstream "
        "MLIR may stand in the same pipeline by their names.",
    ]
    return "\n\n".join([*start, *(section(kind) for _, kind in sorted(PASSES.items()))]) + "\n"


def section(kind: type[Pass]) -> str:
    """A pass: its docstring and a table of its options."""
    lines = [f"## {kind.name}", "", inspect.getdoc(kind) or ""]
    if kind.options():
        lines += ["", "| option | values | default |", "|---|---|---|"]
        default = kind()
        for name, values in kind.options().items():
            lines.append(f"| `{name}` | {wanted(values)} | {text(getattr(default, name))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
