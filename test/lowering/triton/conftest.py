"""Runs a Triton template on the CPU, by Triton's interpreter, and compiles templates of the tests' own."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from triton.runtime import interpreter

from moeloom.lowering.cache import default_folder, opened
from moeloom.lowering.triton import build
from moeloom.lowering.triton.templates import TEMPLATES

# The machine of ptx/ is imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def language_prepared_once() -> Iterator[None]:
    """Triton's interpreter puts its own functions into the language anew at every call of a function in a kernel, half
    of a test's time. Here once a module: what a call leaves in it stays there."""
    prepared: set[str] = set()

    def called(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function.fn.__module__ not in prepared:
            prepared.add(function.fn.__module__)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", called)
        yield


@pytest.fixture(scope="session")
def code_cache() -> Path:
    """Where users' compilations keep code: several tests judge or run the same kernels."""
    return opened(default_folder())


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
