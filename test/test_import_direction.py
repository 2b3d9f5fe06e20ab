"""Which room may import which (docs/program.md's rooms), and what an import may drag in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("dialects", "passes", "lowering", "runtime")
# Besides itself. `moeloom` (the front door) may import every room.
ALLOWED = {
    "dialects": (),
    "passes": ("moeloom.dialects",),
    # The formats of an artifact: what the runtime reads, lowering writes.
    "lowering": (
        "moeloom.dialects",
        "moeloom.passes",
        "moeloom.runtime.sizes",
        "moeloom.runtime.stream",
    ),
    "runtime": (),
}
BANNED_PACKAGES = {
    "dialects": {"torch", "triton", "transformers"},
    "passes": {"torch", "triton", "transformers"},
    "runtime": {"torch_mlir", "triton", "transformers"},
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that `path` names in an import, absolute, with its line."""
    package = ["moeloom", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from moeloom.runtime import pack` names the module moeloom.runtime.pack.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in allowed)


def violations(path: Path, room: str) -> list[str]:
    """Imports of `path`, a file of `room`, that the table does not allow."""
    found = []
    for line, module in imports(path):
        top = module.partition(".")[0]
        ours = top == "moeloom" and not within(module, (f"moeloom.{room}", *ALLOWED[room]))
        if ours or top in ROOMS or top in BANNED_PACKAGES.get(room, ()):
            found.append(f"{path.name}:{line}: {room} imports {module}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_table_allows(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert [found for path in files for found in violations(path, room)] == []


def test_examples_use_the_front_door():
    rooms = tuple(f"moeloom.{room}" for room in ROOMS)
    files = sorted((ROOT / "examples").rglob("*.py"))
    assert files
    assert [(path.name, module) for path in files for _, module in imports(path) if within(module, rooms)] == []


def test_benchmarks_use_no_private_names():
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert files
    found = [(path.name, module) for path in files for _, module in imports(path) if module.startswith("moeloom")]
    assert [(name, module) for name, module in found if "._" in module] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runtime", "from moeloom.lowering.cpu import tiers"),
        ("runtime", "def load():\n    import torch_mlir.ir"),
        ("passes", "import moeloom.lowering"),
        ("passes", "from torch import nn"),
        ("dialects", "from moeloom import passes"),
        ("lowering", "from moeloom.runtime import executable"),
        ("lowering", "from ..runtime.executable import load"),
        ("lowering", "import runtime.pack"),
    ],
)
def test_a_violation_is_found(tmp_path, monkeypatch, room, source):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / room / "offender.py"
    path.parent.mkdir()
    path.write_text(source)
    assert violations(path, room)


def loaded_after(statement: str) -> set[str]:
    """The top-level packages in `sys.modules` after `statement` in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_moeloom_loads_neither_torch_nor_mlir():
    assert not loaded_after("import moeloom") & {"torch", "torch_mlir", "triton", "transformers", "numpy"}


def test_help_loads_neither_torch_nor_mlir():
    assert not loaded_after("import moeloom.tools.main") & {"torch", "torch_mlir", "triton", "transformers"}


def test_compiler_loads_none_of_what_takes_seconds():
    """Workers compile kernels, and those that are ordered ahead are under way before torch is imported."""
    assert not loaded_after("import moeloom.compiler") & {"torch", "triton", "transformers"}


def test_kernels_are_ordered_without_torch(checkpoint):
    code = f"""
import pathlib, unittest.mock
from moeloom import ahead
from moeloom.lowering.pipeline import Options
from moeloom.lowering.targets import target
from moeloom.model_config import read_config
workers = unittest.mock.Mock()
config = read_config(pathlib.Path({str(checkpoint("gpt_oss") / "config.json")!r}))
ahead.order(config, Options(), [target("cpu"), target("sm_90")], workers)
assert workers.order.call_count == 2"""
    assert not loaded_after(code) & {"torch", "triton", "transformers"}


def test_runtime_loads_no_compiler():
    """Every module of it, in one process: none does, so none would alone."""
    names = [f"moeloom.runtime.{path.stem}" for path in sorted((ROOT / "runtime").glob("[!_]*.py"))]
    assert len(names) > 20
    assert not loaded_after(f"import {', '.join(names)}") & {"torch_mlir", "triton", "transformers"}
