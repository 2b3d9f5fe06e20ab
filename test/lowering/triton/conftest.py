"""Runs a Triton template on the CPU, by Triton's interpreter, and compiles templates of the tests' own."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moeloom.lowering.triton import build
from moeloom.lowering.triton.templates import TEMPLATES

# The machine of ptx/ is imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def interpret() -> Callable[..., None]:
    """interpret(template, params, operands, results, m, tiles): fills `results` in place.

    A strided operand is passed as (tensor, row stride); docs/program.md lists operands, results and tiles. `target`
    takes the code paths of an architecture, those without instructions of its own.
    """

    def run(
        template: str,
        params: Mapping[str, Any],
        operands: Sequence[Tensor | tuple[Tensor, int]],
        results: Sequence[Tensor],
        m: int,
        tiles: int,
        target: str = "",
    ) -> None:
        kernel = TEMPLATES[template]
        given = [part for operand in operands for part in (operand if isinstance(operand, tuple) else (operand,))]
        named = [name for name, _ in kernel.arguments(params)]
        arguments = dict(zip(named, [*given, *results], strict=True))
        kernel.function[(tiles, 1, 1)](**arguments, M=m, TARGET=target, **kernel.constants(params))

    return run


@pytest.fixture
def own_templates(monkeypatch) -> None:
    """Adds the templates of worker_of_test.py, for this process and for the workers."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(build, "WORKER", "worker_of_test")
    for name, template in import_module("worker_of_test").OWN.items():
        monkeypatch.setitem(TEMPLATES, name, template)
