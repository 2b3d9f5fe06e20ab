"""The generated pages are those that the docstrings give now, and cover every op and pass."""

import pytest

from moeloom.dialects import kernel, moe
from moeloom.tools import docs


@pytest.mark.parametrize("name", ["dialects.md", "passes.md", "cli.md"])
def test_page_is_fresh(name):
    assert (docs.FOLDER / name).read_text() == docs.pages()[name], "stale: run `make docs`"


def test_every_op_and_pass_has_a_section():
    pages = docs.pages()
    for op in (*moe.Moe.operations, *kernel.Kernel.operations):
        assert f"## {op.OPERATION_NAME}\n" in pages["dialects.md"]
    for name in docs.PASSES:
        assert f"## {name}\n" in pages["passes.md"]


def test_every_command_has_a_section():
    for name in ("compile", "run", "check", "bench", "inspect", "tune"):
        assert f"## moeloom {name}\n" in docs.pages()["cli.md"]
