"""What a kernel library asks of the system: nothing but libc's, whatever the tier: no libcalls for halves or maths."""

import itertools
import subprocess

import pytest

from moeloom.lowering.cpu.compile import write_library
from moeloom.lowering.cpu.templates import TEMPLATES
from moeloom.lowering.cpu.tiers import BEST_FIRST

LIBC = {"sched_yield", "memset", "memcpy"}
SORTED = {"stage": 2, "topk": 4, "layout": "tiled_32x8"}


def kernels():
    for x, score in itertools.product(("bf16", "f16"), ("softmax_after_topk", "softmax_before_topk", "sigmoid")):
        route = {"experts": 100, "topk": 4, "score": score, "renormalise": True, "scale": 2.0, "logits": x}
        yield "route", route | {"groups": 4, "top_groups": 2, "has_bias": True, "has_num_tokens": True}
    yield "sort_tokens", {"experts": 8, "topk": 4, "block": 32, "has_num_tokens": True, "map": "mask"}
    yield "sort_scales", {"columns": 90, **SORTED}
    yield "expand", {"columns": 2880, **SORTED}
    for x in ("bf16", "f16"):
        yield "quant", {"columns": 2880, "x": x, "scale_mode": "rceil"}
        yield "quant_sort", {"columns": 2880, "x": x, "scale_mode": "even", **SORTED}
        combine = {"columns": 2880, "topk": 4, "experts": 8, "out": x}
        yield "combine", combine | {"has_num_tokens": True, "map": "index"}


@pytest.mark.parametrize("tier", BEST_FIRST, ids=lambda tier: tier.name)
def test_needs_libc_only(tier, tmp_path):
    """Tiers that this machine cannot run are compiled all the same."""
    path = tmp_path / "kernels.so"
    builders = {f"k{i}": (TEMPLATES[template], params) for i, (template, params) in enumerate(kernels())}
    write_library(builders, tier, path)
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
    names = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    assert names <= LIBC
