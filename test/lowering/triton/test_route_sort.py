"""Template route_sort: to the byte what route and then sort_tokens give, interpreted and as PTX for sm_90."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ptx.machine import Machine
from ptx.memory import Memory
from torch import Tensor

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import ASSEMBLY
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.lowering.triton.tiles import SM_90

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy names what overflows to Inf or NaN
TILES = {tile.template: dict(tile.params) for tile in reversed(SM_90) if not tile.when}
BLOCK = 8
PLAIN = {"renormalise": False, "scale": 1.0, "groups": 1, "top_groups": 1, "has_bias": False, "has_num_tokens": False}
ROUTERS: dict[str, dict[str, Any]] = {
    "gpt-oss": PLAIN | {"experts": 32, "topk": 4, "score": "softmax_after_topk", "logits": "bf16"},
    "qwen3": PLAIN | {"experts": 32, "topk": 8, "score": "softmax_before_topk", "renormalise": True, "logits": "f32"},
    "deepseek": PLAIN
    | {"experts": 32, "topk": 3, "score": "sigmoid", "renormalise": True, "scale": 2.5, "logits": "f32"}
    | {"groups": 8, "top_groups": 4, "has_bias": True, "has_num_tokens": True},
    "one": PLAIN | {"experts": 3, "topk": 1, "score": "softmax_after_topk", "logits": "bf16", "has_num_tokens": True},
}
Run = Callable[[str, Mapping[str, Any], Mapping[str, Any], list[Tensor], int, int], None]
"""Runs (template, params, operands by name, results, M, tiles)."""


def prologue(run: Run, router: Mapping[str, Any], m: int, tiles: Mapping[str, dict], live: int) -> None:
    """Compare the two ways, the sort with the router's count of tokens where M is odd."""
    generator = torch.Generator().manual_seed(m)
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[router["logits"]]
    experts, topk = router["experts"], router["topk"]
    logits = (torch.randn(m, experts, generator=generator) * 3).to(kind)
    logits[0, :2] = logits[0].max()  # a tie
    count = {"num_tokens": torch.tensor([live], dtype=torch.int32)} if router["has_num_tokens"] else {}
    bias = {"correction_bias": torch.randn(experts, generator=generator)} if router["has_bias"] else {}
    counted = bool(count) and m % 2 == 1
    sort = {"experts": experts, "topk": topk, "block": BLOCK, "has_num_tokens": counted, "map": "none"}
    capacity = m * topk + experts * BLOCK

    def empty() -> list[Tensor]:
        """weights, ids, sorted_ids, sorted_weights, expert_ids, num_valid, slot_rows."""
        sizes = ((m, topk), (m, topk), (capacity,), (capacity,), (capacity // BLOCK,), (2,), (m, topk))
        return [
            torch.full(size, -1, dtype=torch.int32).view(torch.float32 if n in (0, 3) else torch.int32)
            for n, size in enumerate(sizes)
        ]

    apart, joined = empty(), empty()
    given = {"logits": logits, "stride": logits.stride(0), **bias, **count}
    run("route", router | tiles["route"], given, apart[:2], m, -(-m // tiles["route"]["rows"]))
    lists = {"weights": apart[0], "ids": apart[1], **(count if counted else {})}
    run("sort_tokens", sort | {"has_slot_rows": True} | tiles["sort_tokens"], lists, apart[2:], m, experts)
    both = router | {"block": BLOCK, "has_slot_rows": True, "counted": counted} | tiles["route_sort"]
    run("route_sort", both, given, joined, m, experts)
    for one, other in zip(apart, joined, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    assert int(joined[5][0]) > 0 and bool((joined[1][:live] >= 0).all())


@pytest.mark.parametrize("name", ROUTERS)
def test_interpreted(interpret, name):
    """Of five tokens the fifth is in a step of its own."""

    def run(template, params, operands, results, m, tiles):
        names = [argument for argument, _ in TEMPLATES[template].arguments(params)]
        interpret(template, params, [operands[n] for n in names if n in operands], results, m, tiles)

    prologue(run, ROUTERS[name], 5, {**TILES, "route_sort": {"rows": 4}}, 4)


@pytest.fixture(scope="module")
def assembly(code_cache) -> Callable[[str, Mapping[str, Any]], str]:
    def compiled(template: str, params: Mapping[str, Any]) -> str:
        kernels = {template: {"template": template, "params": dict(params)}}
        made = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)
        return Path(made[template], ASSEMBLY).read_text()

    return compiled


def on_the_machine(assembly: Callable[[str, Mapping[str, Any]], str]) -> Run:
    def run(template, params, operands, results, m, tiles):
        memory = Memory()
        names = [argument for argument, _ in TEMPLATES[template].arguments(params)]
        given = [operands[argument] for argument in names[: len(names) - len(results)]]
        places = [value if isinstance(value, int) else memory.place(array(value)) for value in given]
        out = [memory.place(array(result), writable=True) for result in results]
        machine = Machine(assembly(template, params), memory, np.full(32 << 10, 0xFF, np.uint8))
        machine.launch(tiles, [*places, *out, m], list(range(tiles))[::-1])
        for result, place in zip(results, out, strict=True):
            result.view(torch.uint8).copy_(torch.from_numpy(memory.read_back(place, array(result))))

    return run


@pytest.mark.parametrize("m", [1, 8, 11])
@pytest.mark.parametrize("name", ROUTERS)
def test_as_ptx(assembly, name, m):
    prologue(on_the_machine(assembly), ROUTERS[name], m, TILES, max(1, m - 1))


@pytest.mark.parametrize("tile", [{"rows": 2, "num_warps": 1}, {"rows": 16, "num_warps": 8}])
def test_sums_do_not_depend_on_the_tile(assembly, tile):
    """A row over several warps, or several rows a warp."""
    tiles = {**TILES, "route_sort": TILES["route_sort"] | tile}
    prologue(on_the_machine(assembly), ROUTERS["qwen3"], 5, tiles, 5)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()
