"""The decode kernels that route: their PTX, on the machine of ptx/, writes the bytes of route_sort and of the kernels
that read its list."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ptx.machine import Fault, Machine
from ptx.memory import Memory
from ptx.products import exchange_of
from torch import Tensor

from moeloom.lowering.jobs import CompileError
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import ASSEMBLY, FACTS
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.lowering.triton.tiles import SM_90
from moeloom.runtime import reference
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.stream import EXCHANGE_FLAGS

EXPERTS, TOPK, HIDDEN, INTERMEDIATE, PROGRAMS = 40, 3, 96, 72, 4
BLOCK, SHARED_BYTES = 8, 64 << 10
ROUTER = {"experts": EXPERTS, "topk": TOPK, "score": "softmax_after_topk", "renormalise": False, "scale": 1.0}
ROUTER |= {"logits": "bf16", "has_num_tokens": True}
SIZES = {"hidden": HIDDEN, "intermediate": INTERMEDIATE, "topk": TOPK, "block": BLOCK, "x": "bf16", "layout": "none"}
PRODUCT = SIZES | {"num_stages": 1, "ring": 6, "maxnreg": 128, "programs": PROGRAMS, "quantise": "none"}
GATE_UP = PRODUCT | {"has_bias": True, "has_weights": False, "activation": "swiglu", "alpha": 1.702, "limit": 7.0}
DOWN = PRODUCT | {"hidden": 80, "intermediate": 1088, "splits": 2, "has_bias": True, "has_weights": True}
DOWN |= {"num_warps": 4, "stream_warps": 4, "paired": False}
BY_LIST = {"routes": "none", "experts": 0, "has_num_tokens": False}
BY_LOGITS = {"routes": "bf16", "experts": EXPERTS, "has_num_tokens": True, "early": True}
OTHERS = {"score": "softmax_before_topk", "renormalise": True, "scale": 2.5, "logits": "f32"}
TILE = dict(next(tile.params for tile in SM_90 if tile.template == "route_sort"))
GROUPLESS = {"has_bias": False, "groups": 1, "top_groups": 1, "block": BLOCK, "has_slot_rows": False}
OLD = {"decode_routed_gate_up": ("x",), "decode_down": ("logits", "num_tokens")}
"""What the launch before does not make, by template."""


def kernels() -> dict[str, tuple[str, dict[str, Any]]]:
    made = {}
    for name, warps, own in (
        ("plain", 8, {"counted": False}),
        ("counted, quantising, 4 warps", 4, {"counted": True, "quantise": "even"}),
        ("softmax first, no bias", 8, {"counted": True, "has_bias": False, **OTHERS}),
        ("3 records that programs share", 4, {"counted": False, "hidden": 2112, "programs": 20}),
    ):
        params = GATE_UP | ROUTER | {"num_warps": warps} | own
        made[name] = ("decode_routed_gate_up", params)
        own = {"num_warps": warps, "early": False, "paired": False}
        listed = {key: value for key, value in params.items() if key in GATE_UP} | own
        made[f"{name}, gate_up"] = ("decode_gate_up", listed)
        router = {key: params[key] for key in (*ROUTER, "counted")} | GROUPLESS
        made[f"{name}, route_sort"] = ("route_sort", router | TILE)
    made["down by the list"] = ("decode_down", DOWN | BY_LIST | {"early": False})
    made["down by the logits"] = ("decode_down", DOWN | BY_LOGITS)
    return made


KERNELS = kernels()
NAMES = tuple(name for name, (template, _) in KERNELS.items() if template == "decode_routed_gate_up")
APART = tuple(name for name in NAMES if "share" not in name)


@pytest.fixture(scope="module")
def folders(code_cache) -> Mapping[str, Path]:
    described = {name: {"template": template, "params": params} for name, (template, params) in KERNELS.items()}
    return build.compile_kernels(described, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)


def run(
    folder: Path,
    name: str,
    operands: Mapping[str, Tensor | int],
    results: list[Tensor],
    m: int,
    tiles: int,
    old: Sequence[str] | None = None,
) -> None:
    """Fill `results`, which are full of poison, by a grid whose last program runs first but for those that share units.
    `old`: operands that the launch before does not make."""
    template, params = KERNELS[name]
    memory, given = Memory(), [argument for argument, _ in TEMPLATES[template].arguments(params)]
    old = OLD.get(template, ()) if old is None else old
    exchange = memory.place(exchange_of(params), writable=True, old=True) if "exchange" in given else 0
    operands = {**operands, "exchange": exchange}
    places = [
        operands[argument]
        if isinstance(operands[argument], int)
        else memory.place(array(operands[argument]), constant=argument in ("weight", "bias"), old=argument in old)
        for argument in given[: len(given) - len(results)]
    ]
    out = [memory.place(array(result), writable=True) for result in results]
    text = (folder / ASSEMBLY).read_text()
    machine = Machine(text, memory, np.full(SHARED_BYTES, 0xFF, np.uint8))
    machine.launch(tiles, [*places, *out, m], list(range(tiles))[:: 1 if "share" in name else -1])
    if exchange:
        assert not memory.read_back(exchange, np.zeros(EXCHANGE_FLAGS, np.int32)).any(), "flags are left behind"
    for result, place in zip(results, out, strict=True):
        result.view(torch.uint8).copy_(torch.from_numpy(memory.read_back(place, array(result))))


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def poison(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.full((torch.Size(shape).numel() * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype).view(shape)


def batch(m: int, live: int, kind: str, hidden: int = HIDDEN) -> dict[str, Tensor | int]:
    """x with rows apart, and logits with ties, a NaN and an infinity."""
    torch.manual_seed(m)
    logits = torch.randn(m, EXPERTS).round(decimals=1).to({"bf16": torch.bfloat16, "f32": torch.float32}[kind])
    logits[0, 5:9] = logits[0].max() + 1
    logits[m - 1, [2, 39]] = torch.tensor([torch.nan, -torch.inf], dtype=logits.dtype)
    x = torch.randn(m, hidden + 16).bfloat16()
    count = torch.tensor([live], dtype=torch.int32)
    return {"x": x, "logits": logits, "num_tokens": count, "x_stride": x.stride(0), "stride": EXPERTS}


def weights(params: Mapping[str, Any], stage: int) -> dict[str, Tensor]:
    torch.manual_seed(stage)
    hidden, intermediate = params["hidden"], params["intermediate"]
    inner, outer = (hidden, 2 * intermediate) if stage == 1 else (intermediate, hidden)
    codes = torch.randint(256, (EXPERTS, outer, inner // 2), dtype=torch.uint8)
    scales = torch.randint(119, 127, (EXPERTS, outer, inner // 32), dtype=torch.uint8)
    order = "gate_up_concatenated" if stage == 1 else "plain"
    packed = [pack_stream(w, s, order, params["num_warps"]) for w, s in zip(codes, scales, strict=True)]
    return {"weight": torch.stack(packed), "bias": torch.randn(EXPERTS, outer)}


def lists(m: int) -> list[Tensor]:
    """weights, ids, sorted_ids, sorted_weights, expert_ids, num_valid."""
    entries = m * TOPK + EXPERTS * BLOCK
    floats, entry = torch.float32, (entries,)
    sizes = [((m, TOPK), floats), ((m, TOPK), torch.int32), (entry, torch.int32), (entry, floats)]
    return [poison(*size, dtype=kind) for size, kind in sizes] + [poison(entries // BLOCK), poison(2)]


@pytest.mark.parametrize(
    ("name", "m", "live"),
    [
        *((name, *sizes) for name in APART for sizes in ((1, 1), (2, 2), (4, 4), (4, 3), (3, 0), (8, 8))),
        *((name, 2, 1) for name in NAMES if name not in APART),
    ],
)
def test_gives_the_bytes_of_two_launches(folders, name, m, live):
    _, params = KERNELS[name]
    programs = params["programs"]
    given = batch(m, live, params["logits"], params["hidden"]) | weights(params, 1)
    found, h = lists(m), poison(m * TOPK, INTERMEDIATE, dtype=torch.bfloat16)
    run(folders[name], name, given, [*found, h], m, programs)

    want, wanted_h = lists(m), poison(m * TOPK, INTERMEDIATE, dtype=torch.bfloat16)
    run(folders[f"{name}, route_sort"], f"{name}, route_sort", given, want, m, EXPERTS)
    listed = dict(zip(("sorted_ids", "expert_ids", "num_valid"), (want[2], want[4], want[5]), strict=True))
    run(folders[f"{name}, gate_up"], f"{name}, gate_up", given | listed, [wanted_h], m, programs)
    for one, other in zip([*found, h], [*want, wanted_h], strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    rows = reference.source_rows(found[2], found[5], 2, TOPK)
    assert (rows >= 0).sum() == live * TOPK == (~h.isnan().all(1)).sum()


@pytest.mark.parametrize(("m", "live"), [(1, 1), (4, 4), (4, 2), (3, 0)])
def test_down_by_the_logits(folders, m, live):
    name = NAMES[0]
    given = batch(m, live, "bf16")
    given["logits"][m - 1, 2] = 0  # a NaN would go into every weight of its token
    made = lists(m)
    run(folders[f"{name}, route_sort"], f"{name}, route_sort", given, made, m, EXPERTS)
    names = ("sorted_ids", "sorted_weights", "expert_ids", "num_valid")
    given |= dict(zip(names, made[2:], strict=True)) | weights(DOWN, 2)
    given |= {"x": torch.randn(m * TOPK, DOWN["intermediate"]).bfloat16()}
    shape = (DOWN["splits"], m * TOPK, DOWN["hidden"])
    found, want = (poison(*shape, dtype=torch.float32) for _ in range(2))
    run(folders["down by the logits"], "down by the logits", given, [found], m, PROGRAMS)
    run(folders["down by the list"], "down by the list", given, [want], m, PROGRAMS)
    assert torch.equal(found.view(torch.uint8), want.view(torch.uint8))
    assert (~found[0].isnan().all(1)).sum() == live * TOPK


def test_reads_x_alone_before_the_wait(folders):
    """The launch before makes the logits, which the other tests hold as such; where x is its result too, that shows."""
    name = NAMES[0]
    given = batch(2, 2, "bf16") | weights(KERNELS[name][1], 1)
    with pytest.raises(Fault, match="wait"):
        run(folders[name], name, given, [*lists(2), poison(2 * TOPK, INTERMEDIATE, dtype=torch.bfloat16)], 2, 4, ())


@pytest.mark.parametrize("name", NAMES)
def test_keeps_everything_in_registers(folders, name):
    facts = json.loads((folders[name] / FACTS).read_text())
    assert facts["spills"] == 0 and facts["registers"] <= 128


@pytest.mark.parametrize(
    ("template", "changed", "message"),
    [
        ("decode_routed_gate_up", {"block": 16}, "takes bf16 x in sort blocks of 8 rows"),
        ("decode_routed_gate_up", {"x": "f4E2M1FN"}, "launch route_sort and decode_gate_up"),
        ("decode_down", {"block": 16}, "by the logits an expert has one sort block"),
    ],
)
def test_refuses_what_it_cannot_do(template, changed, message):
    params = {**(DOWN | BY_LOGITS if template == "decode_down" else KERNELS[NAMES[0]][1]), **changed}
    with pytest.raises(CompileError, match=message):
        TEMPLATES[template].arguments(params)
        TEMPLATES[template].constants(params)
