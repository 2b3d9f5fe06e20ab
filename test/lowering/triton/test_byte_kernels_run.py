"""Kernels for sm_90 that must give bytes, whole: their PTX runs on the machine of ptx/, against runtime/reference.py.

What the contract leaves undefined is 0xFF before the run and stays so, and of operands nobody reads it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

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
from moeloom.lowering.triton.tiles import SM_90, program_groups
from moeloom.runtime import reference

EXPERTS, TOPK, TOKENS, LIVE, BLOCK, COLUMNS = 5, 3, 13, 11, 8, 1088
TILES = {tile.template: dict(tile.params) for tile in reversed(SM_90) if not tile.when}
SORT = {"experts": EXPERTS, "topk": TOPK, "block": BLOCK, "has_num_tokens": True, "map": "none", "has_slot_rows": True}
QUANT = {"columns": COLUMNS, "x": "bf16", "scale_mode": "even"}
PLACE = {"topk": TOPK, "layout": "tiled_32x8"}
COMBINE = {"columns": COLUMNS, "topk": TOPK, "experts": EXPERTS, "map": "none", "has_num_tokens": True}
COMBINE |= {"out": "bf16", "splits": 2, "early": True}
EARLY = ", early"
KERNELS = {
    "sort_tokens": ("sort_tokens", SORT),
    **{
        f"sort_quant, {warps} warps": ("sort_quant", SORT | QUANT | PLACE | {"stage": 1, "num_warps": warps})
        for warps in (2, 4)
    },
    **{f"quant{e}": ("quant", QUANT | {"factor": 1, "early": bool(e)}) for e in ("", EARLY)},
    **{
        f"quant_sort {s}{e}": ("quant_sort", QUANT | PLACE | {"stage": s, "block": BLOCK, "early": bool(e)})
        for s in (1, 2)
        for e in ("", EARLY)
    },
    **{f"sort_scales {s}": ("sort_scales", PLACE | {"columns": COLUMNS // 32, "stage": s}) for s in (1, 2)},
    "combine": ("combine", COMBINE),
    "combine with mask": ("combine", COMBINE | {"map": "mask"}),
    "combine with index": ("combine", COMBINE | {"map": "index"}),
    "fake_quant": ("fake_quant", QUANT),
    **{
        f"quant_sort_sm_90 {name}": ("quant_sort_sm_90", QUANT | PLACE | params)
        for name, params in {
            "1": {"stage": 1, "block": BLOCK, "early": False},
            "2, early": {"stage": 2, "block": BLOCK, "early": True},
            "2, blocks of 16, ceil": {"stage": 2, "block": 16, "early": False, "scale_mode": "ceil"},
            "1, blocks of 144, early": {
                "stage": 1,
                "block": 144,
                "early": True,
                "pieces": 1,
                "columns": 96,
            },
            "2, blocks of 32": {"stage": 2, "block": 32, "early": False, "num_warps": 2},
            "1, blocks of 64, early": {"stage": 1, "block": 64, "early": True, "columns": 96, "num_warps": 1},
            "1, row_major, rceil": {
                "stage": 1,
                "block": BLOCK,
                "early": False,
                "layout": "row_major",
                "scale_mode": "rceil",
                "pieces": 3,
            },
            "2, row_major, blocks of 32, floor": {
                "stage": 2,
                "block": 32,
                "early": True,
                "layout": "row_major",
                "scale_mode": "floor",
                "num_warps": 1,
            },
        }.items()
    },
    "expand 1": ("expand", PLACE | {"columns": COLUMNS, "stage": 1}),
    "expand 2": ("expand", PLACE | {"columns": COLUMNS, "stage": 2, "layout": "row_major"}),
}


@pytest.fixture(scope="module")
def assembly(code_cache) -> Mapping[str, str]:
    kernels = {
        name: {"template": template, "params": TILES[template] | params} for name, (template, params) in KERNELS.items()
    }
    compiled = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)
    return {name: Path(folder, ASSEMBLY).read_text() for name, folder in compiled.items()}


def run(
    text: str,
    name: str,
    operands: Mapping[str, Tensor | int],
    results: list[Tensor],
    m: int,
    tiles: int,
    defined: Mapping[str, Tensor] = {},
) -> None:
    """Fill `results` in place by a grid of `tiles`, last first. `defined`: which rows of an operand were written, all
    where it is silent."""
    memory = Memory()
    template, params = KERNELS[name]
    names = [argument for argument, _ in TEMPLATES[template].arguments(TILES[template] | params)]
    given = [operands[argument] for argument in names[: len(names) - len(results)]]
    early = ("ids", "num_tokens", "expert_map", "x") if params.get("early") else ()
    places = [
        value
        if isinstance(value, int)
        else memory.place(
            value.view(torch.uint8).numpy(), old=argument in early, written=bytes_of(value, defined.get(argument))
        )
        for argument, value in zip(names, given, strict=False)
    ]
    out = [memory.place(result.view(torch.uint8).numpy(), writable=True) for result in results]
    machine = Machine(text, memory, np.full(16 << 10, 0xFF, np.uint8))
    machine.launch(tiles, [*places, *out, m], list(range(tiles))[::-1])
    for result, place in zip(results, out, strict=True):
        raw = result.view(torch.uint8)
        raw.copy_(torch.from_numpy(memory.read_back(place, raw.numpy())))


def bytes_of(value: Tensor, defined: Tensor | None) -> np.ndarray | bool:
    """For each byte of `value` whether its row is `defined`."""
    if defined is None:
        return True
    return defined.repeat_interleave(value.numel() * value.element_size() // defined.numel()).numpy()


def poison(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((size,), 0xFF, dtype=torch.uint8).view(dtype).view(shape)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    torch.manual_seed(0)
    chosen = torch.randint(EXPERTS, (TOKENS, TOPK), dtype=torch.int32)
    chosen[2], chosen[4, 1] = -1, -1
    return chosen


@pytest.mark.parametrize("name", ["sort_tokens", "sort_quant, 2 warps", "sort_quant, 4 warps"])
def test_token_sort(assembly, ids, name):
    """Alone and with the fused quantiser of stage 1."""
    shares = torch.rand(TOKENS, TOPK)
    want = reference.sort_tokens(ids, shares, EXPERTS, BLOCK, LIVE)
    found = [torch.full(t.shape, -1, dtype=torch.int32).view(t.dtype) for t in want]
    slot_rows = torch.full((TOKENS, TOPK), 7, dtype=torch.int32)  # the poison is what stands for no row
    operands = {"ids": ids, "weights": shares, "num_tokens": torch.tensor([LIVE], dtype=torch.int32)}
    if name == "sort_tokens":
        run(assembly[name], name, operands, [*found, slot_rows], TOKENS, EXPERTS)
    else:
        x = torch.randn(TOKENS, COLUMNS).bfloat16()
        codes, scales = reference.quantise(x, "even")
        scales = reference.sort_scales(scales, want[0], want[3], 1, TOPK, "tiled_32x8")
        fused = [poison(*codes.shape), poison(*scales.shape)]
        tiles = EXPERTS + TOKENS * -(-scales.shape[1] // TILES["sort_quant"]["groups"])
        defined = {"x": torch.arange(TOKENS) < LIVE}
        operands |= {"x": x, "x_stride": COLUMNS}
        run(assembly[name], name, operands, [*found, slot_rows, *fused], TOKENS, tiles, defined)
        payload = reference.defined_payload(want[0], want[3], 1, TOPK, TOKENS)
        assert torch.equal(fused[0], torch.where(payload[:, None], codes, 0xFF))
        assert torch.equal(fused[1], torch.where(reference.defined_scales(want[3], scales.shape), scales, 0xFF))
    used = int(want[3][0])
    assert torch.equal(found[3], want[3])
    for result, wanted, count in zip(found, want, (used, used, used // BLOCK), strict=False):
        assert torch.equal(result[:count], wanted[:count])
        assert bool((result.view(torch.int32)[count:] == -1).all())
    assert torch.equal(slot_rows, slots(want, ids))


def slots(lists: tuple[Tensor, ...], ids: Tensor, block: int = BLOCK) -> Tensor:
    """The sorted row of each slot, 2^30 more for the last one of an expert, -1 where it has none."""
    rows = reference.source_rows(lists[0], lists[3], 2, TOPK).tolist()
    out = torch.full((ids.numel(),), -1, dtype=torch.int32)
    last = {int(lists[2][place // block]): row for place, row in enumerate(rows) if row >= 0}
    for place, row in enumerate(rows):
        if row >= 0:
            out[row] = place + (row in last.values()) * 2**30
    return out.view(ids.shape)


@pytest.mark.parametrize(
    ("name", "expert_map"),
    [
        ("combine", None),
        ("combine with mask", torch.tensor([True, False, True, True, False])),
        ("combine with index", torch.tensor([1, -1, 0, 2, -1], dtype=torch.int32)),
    ],
)
def test_early_combine(assembly, ids, name, expert_map):
    """It reads the ids before it waits, and no row without an expert, which is NaN here."""
    rows = torch.randn(2, TOKENS * TOPK, COLUMNS)
    here = reference.local_experts(ids, EXPERTS, LIVE, expert_map) >= 0
    summed = torch.where(here.reshape(1, -1, 1), rows, 0).sum(0).view(TOKENS, TOPK, COLUMNS)
    want = ((summed[:, 0] + summed[:, 1]) + summed[:, 2]).bfloat16()
    rows[:, ~here.flatten()] = torch.nan
    out = poison(TOKENS, COLUMNS, dtype=torch.bfloat16)
    operands = {"rows": rows, "ids": ids, "num_tokens": torch.tensor([LIVE], dtype=torch.int32)}
    operands |= {} if expert_map is None else {"expert_map": expert_map}
    tiles = TOKENS * -(-COLUMNS // TILES["combine"]["block_n"])
    run(assembly[name], name, operands, [out], TOKENS, tiles, {"rows": here.flatten().repeat(2)})
    assert torch.equal(out, want)


@pytest.mark.parametrize("name", ["quant", "quant_sort 1", "quant_sort 2"])
def test_early_quantisers_read_x_before_they_wait(assembly, name):
    for early in ("", EARLY):
        before = assembly[name + early].partition("griddepcontrol.wait")[0]
        assert bool(re.search(r"ld\.global\.\S*cg", before)) == bool(early)


@pytest.mark.parametrize("early", ["", EARLY])
@pytest.mark.parametrize("stage", [1, 2])
def test_fused_and_split_quantisers(assembly, ids, stage, early):
    lists = reference.sort_tokens(ids, torch.zeros(TOKENS, TOPK), EXPERTS, BLOCK, LIVE)
    sorted_ids, num_valid = lists[0].clone(), lists[3]
    assert num_valid[0] % 32, "the last block in use is filled up"
    sorted_ids[int(num_valid[0]) :] = 0
    rows = TOKENS if stage == 1 else TOKENS * TOPK
    x = torch.randn(rows, COLUMNS).bfloat16()
    x[0, :32], x[1, 40], x[5, 70] = 0, torch.nan, torch.inf
    codes, scales = reference.quantise(x, "even")
    groups = COLUMNS // 32
    payload = reference.defined_payload(sorted_ids, num_valid, stage, TOPK, rows)

    quantised = [poison(rows, COLUMNS // 2), poison(rows, groups)]
    if stage == 1:
        kernel = f"quant{early}"
        run(assembly[kernel], kernel, {"x": x, "x_stride": COLUMNS}, quantised, rows, rows * -(-groups // 32))
        assert torch.equal(quantised[1], scales)
        numbers = (scales != 255).repeat_interleave(16, 1)
        assert torch.equal(quantised[0][numbers], codes[numbers])

    want = reference.sort_scales(scales, sorted_ids, num_valid, stage, TOPK, "tiled_32x8")
    defined = reference.defined_scales(num_valid, want.shape)
    place = {"sorted_ids": sorted_ids, "num_valid": num_valid}
    split = poison(*want.shape)
    operands = {"scales": scales, "scales_stride": groups, **place}
    named = {"scales": payload, "sorted_ids": torch.arange(len(sorted_ids)) < num_valid[0]}
    run(assembly[f"sort_scales {stage}"], f"sort_scales {stage}", operands, [split], TOKENS, len(want) // 32, named)
    fused = [poison(rows, COLUMNS // 2), poison(*want.shape)]
    operands = {"x": x, "x_stride": COLUMNS, "slot_rows": slots(lists, ids), "num_valid": num_valid}
    tiles = rows * (TOPK if stage == 1 else 1) * -(-want.shape[1] // 32)
    kernel = f"quant_sort {stage}{early}"
    run(assembly[kernel], kernel, operands, fused, TOKENS, tiles, {} if early else {"x": payload})
    for sorted_scales in (split, fused[1]):
        assert torch.equal(sorted_scales, torch.where(defined, want, 0xFF))
    assert torch.equal(fused[0][payload], codes[payload])
    assert bool((fused[0][~payload] == 0xFF).all())


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("quant_sort_sm_90")])
def test_quant_sort_thread_by_thread(assembly, ids, name):
    """Any bits in some rows of x, whose rows lie apart."""
    params = TILES["quant_sort_sm_90"] | KERNELS[name][1]
    stage, block, columns = params["stage"], params["block"], params["columns"]
    lists = reference.sort_tokens(ids, torch.zeros(TOKENS, TOPK), EXPERTS, block, LIVE)
    rows = TOKENS if stage == 1 else TOKENS * TOPK
    torch.manual_seed(3)
    x = torch.randint(1 << 16, (rows, columns + 8)).to(torch.int32).to(torch.uint16).view(torch.bfloat16)
    x[::2] = torch.randn(len(x[::2]), columns + 8).bfloat16()
    x[0, :32] = 0
    codes, scales = reference.quantise(x[:, :columns].contiguous(), params["scale_mode"])
    want = reference.sort_scales(scales, lists[0], lists[3], stage, TOPK, params["layout"])
    payload = reference.defined_payload(lists[0], lists[3], stage, TOPK, rows)
    assert bool((scales == 255).any()) and not bool(payload.all())
    found = [poison(rows, columns // 2), poison(*want.shape)]
    operands = {"x": x, "x_stride": columns + 8, "slot_rows": slots(lists, ids, block), "num_valid": lists[3]}
    tiles = -(-rows * want.shape[1] // program_groups(params))
    run(assembly[name], name, operands, found, TOKENS, tiles, {} if params["early"] else {"x": payload})
    assert torch.equal(found[0], torch.where(payload[:, None], codes, 0xFF))
    assert torch.equal(found[1], torch.where(reference.defined_scales(lists[3], want.shape), want, 0xFF))


def test_fake_quant(assembly):
    """Rows of any stride, any bits in them."""
    torch.manual_seed(2)
    x = torch.randint(1 << 16, (TOKENS, COLUMNS + 8)).to(torch.int32).to(torch.uint16).view(torch.bfloat16)
    x[::2] = torch.randn(len(x[::2]), COLUMNS + 8).bfloat16()
    want = reference.dequantise(*reference.quantise(x[:, :COLUMNS].contiguous(), "even")).bfloat16()
    found = poison(TOKENS, COLUMNS, dtype=torch.bfloat16)
    tiles = TOKENS * -(-COLUMNS // 32 // TILES["fake_quant"]["groups"])
    run(assembly["fake_quant"], "fake_quant", {"x": x, "x_stride": COLUMNS + 8}, [found], TOKENS, tiles)
    assert torch.equal(found.isnan(), want.isnan()) and bool(want.isnan().any()) and bool(want[::2].isfinite().all())
    assert torch.equal(found.nan_to_num(0).view(torch.int16), want.nan_to_num(0).view(torch.int16))


@pytest.mark.parametrize(("stage", "layout"), [(1, "tiled_32x8"), (2, "row_major")])
def test_expand(assembly, ids, stage, layout):
    """Every scale, every code; rows without an expert stay as they are."""
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.zeros(TOKENS, TOPK), EXPERTS, BLOCK, LIVE)
    rows = TOKENS if stage == 1 else TOKENS * TOPK
    named = reference.defined_payload(sorted_ids, num_valid, stage, TOPK, rows)
    torch.manual_seed(1)
    codes = torch.randint(256, (rows, COLUMNS // 2), dtype=torch.uint8)
    scales = torch.arange(rows * (COLUMNS // 32)).view(rows, -1).to(torch.uint8)
    assert len(scales[named].unique()) == 256
    want = reference.dequantise(codes, scales).bfloat16()
    codes[~named] = 0xFF
    sorted_scales = reference.sort_scales(scales, sorted_ids, num_valid, stage, TOPK, layout)
    sorted_ids[int(num_valid[0]) :] = 0
    operands = {"x": codes, "x_stride": COLUMNS // 2, "x_scales": sorted_scales}
    operands |= {"sorted_ids": sorted_ids, "num_valid": num_valid}
    found = poison(rows, COLUMNS, dtype=torch.bfloat16)
    tiles = len(sorted_scales) // 32 * -(-COLUMNS // 32 // TILES["expand"]["groups"])
    defined = {"x": named, "sorted_ids": torch.arange(len(sorted_ids)) < num_valid[0]}
    defined["x_scales"] = reference.defined_scales(num_valid, sorted_scales.shape)
    run(assembly[f"expand {stage}"], f"expand {stage}", operands, [found], TOKENS, tiles, defined)
    assert torch.equal(found[named].isnan(), want[named].isnan())
    assert torch.equal(found[named].nan_to_num(0).view(torch.int16), want[named].nan_to_num(0).view(torch.int16))
    assert bool((found[~named].view(torch.uint8) == 0xFF).all())
