"""The kernels of decode_products.py and prefill_products.py are ones that their templates take."""

import importlib
from pathlib import Path

import pytest

from moeloom.lowering.triton.templates import TEMPLATES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("benchmark", ["decode_products", "prefill_products"])
def test_templates_take_the_kernels(benchmark, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    kernels = list(importlib.import_module(benchmark).kernels())
    assert len(kernels) > 10
    for _, template, params in kernels:
        names = [name for name, _ in TEMPLATES[template].arguments(params)]
        assert set(names) <= set(TEMPLATES[template].function.arg_names)
        TEMPLATES[template].constants(params)
