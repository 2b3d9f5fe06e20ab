"""Up to which M a tuned table has gate_up route: only as far as the launch before it is the router's own kernel."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch_mlir import ir

from moeloom import dialects
from moeloom.lowering.lower_to_kernels import LowerToKernels
from moeloom.lowering.targets import TARGETS
from moeloom.passes.pipeline import run

LAYER = Path(__file__).with_name("lower_to_kernels_routing.mlir").read_text().split("// -----")[0]


@pytest.mark.parametrize(
    ("router_tokens", "route_sort_tokens", "limit"),
    [(16, 8, 4), (2, 8, 2), (16, 3, 3), (0, 8, None), (16, 0, None)],
)
def test_ends_with_the_kernels_it_stands_behind(router_tokens, route_sort_tokens, limit):
    row = replace(TARGETS["sm_90"], router_tokens=router_tokens, route_sort_tokens=route_sort_tokens)
    module = ir.Module.parse(LAYER, dialects.context())
    run(module, [LowerToKernels.of(row)])
    text = str(module)
    assert ("decode_routed_gate_up" in text) == (limit is not None)
    assert text.count(f'choice = "routing", max_m = {limit} :') == (0 if limit is None else 2)
    assert text.count('choice = "routing"') == (0 if limit is None else 2)
