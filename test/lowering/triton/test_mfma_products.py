"""gate_up and down of an MFMA stream: bit for bit what the same kernels give of the same weights row_major."""

import json

import pytest
import torch
from torch import Tensor

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import FACTS
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.runtime import reference
from moeloom.runtime.pack_mfma import pack_mfma

EXPERTS, TOPK, TOKENS = 3, 2, 11
ACTIVATION = {"activation": "swiglu", "alpha": 1.702, "limit": 7.0, "requantize": "none"}
GATE_UP_SIZES = [  # hidden, intermediate, block, block_n, block_k
    pytest.param(96, 64, 16, 32, 64, id="a step half full"),
    pytest.param(160, 96, 64, 64, 128, id="two tiles at once, the last absent"),
    pytest.param(1088, 64, 16, 64, 128, id="nine steps, the last half full"),
]
DOWN_SIZES = [  # hidden, intermediate, block, block_n, block_k, splits
    pytest.param(96, 64, 16, 64, 64, 1, id="a tile half full"),
    pytest.param(160, 96, 64, 128, 64, 2, id="two tiles at once, the last absent"),
    pytest.param(64, 1056, 16, 64, 128, 3, id="nine steps, the last a quarter full, splits"),
]
ROWS = [("bf16", "none"), ("f4E2M1FN", "tiled_32x8"), ("f4E2M1FN", "row_major")]


def mx(*shape: int) -> tuple[Tensor, Tensor]:
    """Codes u8 [.., columns/2] and scales [.., columns/32] so near to one another that sums in f32 are exact."""
    *rows, columns = shape
    codes = torch.randint(256, (*rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(120, 123, (*rows, columns // 32), dtype=torch.uint8)


def streams(weight: tuple[Tensor, Tensor], rows: str) -> Tensor:
    """The stream of each expert, u8 [E, ..], in memory that goes on with NaN scales."""
    packed = torch.stack([pack_mfma(codes, scales, rows) for codes, scales in zip(*weight, strict=True)])
    memory = torch.full((packed.numel() + packed[0].numel(),), 0xFF, dtype=torch.uint8)
    memory[: packed.numel()] = packed.flatten()
    return memory[: packed.numel()].view(packed.shape)


def activations(sort: tuple[Tensor, ...], stage: int, columns: int, x: str, layout: str) -> list[Tensor]:
    """x, and its sorted scales; rows that no sorted row names are NaN (0xFF)."""
    rows = TOKENS if stage == 1 else TOKENS * TOPK
    ids, _, _, num_valid = sort
    named = reference.defined_payload(ids, num_valid, stage, TOPK, rows)
    if x == "bf16":
        values = torch.randint(-8, 9, (rows, columns)).bfloat16()
        values[~named] = torch.nan
        return [values]
    codes, scales = mx(rows, columns)
    codes[~named] = 0xFF
    return [codes, reference.sort_scales(scales, ids, num_valid, stage, TOPK, layout)]


def sorted_rows(block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = torch.randint(EXPERTS, (TOKENS, TOPK), dtype=torch.int32)
    ids[0] = -1
    return reference.sort_tokens(ids, torch.rand(TOKENS, TOPK) + 0.5, EXPERTS, block)


def assert_same_bits(found: Tensor, wanted: Tensor) -> None:
    """And most of them are numbers."""
    assert wanted.isfinite().float().mean() > 0.8
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize(("x", "layout"), ROWS)
@pytest.mark.parametrize(("hidden", "intermediate", "block", "block_n", "block_k"), GATE_UP_SIZES)
def test_gate_up(interpret, hidden, intermediate, block, block_n, block_k, x, layout):
    torch.manual_seed(0)
    sort = sorted_rows(block)
    weight, bias = mx(EXPERTS, 2 * intermediate, hidden), torch.randn(EXPERTS, 2 * intermediate)
    params = {"hidden": hidden, "intermediate": intermediate, "topk": TOPK, "block": block, "x": x, "layout": layout}
    params |= {"has_bias": True, "has_weights": True, "block_n": block_n, "block_k": block_k, **ACTIVATION}
    first, *scales = activations(sort, 1, hidden, x, layout)
    given = [(first, first.stride(0)), *scales, sort[0], sort[2], sort[3], sort[1]]
    tiles = len(sort[2]) * -(-intermediate // block_n)
    wanted = torch.full((TOKENS * TOPK, intermediate), torch.nan, dtype=torch.bfloat16)
    found = wanted.clone()
    interpret("gate_up", params, [*given, *weight, bias], [wanted], TOKENS, tiles)
    params |= {"weights": "mfma_stream"}
    interpret("gate_up", params, [*given, streams(weight, "gate_up_concatenated"), bias], [found], TOKENS, tiles)
    assert_same_bits(found, wanted)


@pytest.mark.parametrize(("x", "layout"), ROWS)
@pytest.mark.parametrize(("hidden", "intermediate", "block", "block_n", "block_k", "splits"), DOWN_SIZES)
def test_down(interpret, hidden, intermediate, block, block_n, block_k, splits, x, layout):
    torch.manual_seed(1)
    sort = sorted_rows(block)
    weight, bias = mx(EXPERTS, hidden, intermediate), torch.randn(EXPERTS, hidden)
    params = {"hidden": hidden, "intermediate": intermediate, "topk": TOPK, "block": block, "x": x, "layout": layout}
    params |= {"has_bias": True, "has_weights": True, "block_n": block_n, "block_k": block_k, "splits": splits}
    given = [*activations(sort, 2, intermediate, x, layout), sort[0], sort[2], sort[3], sort[1]]
    tiles = len(sort[2]) * -(-hidden // block_n) * splits
    wanted = torch.full((splits, TOKENS * TOPK, hidden), torch.nan)
    found = wanted.clone()
    interpret("down", params, [*given, *weight, bias], [wanted], TOKENS, tiles)
    params |= {"weights": "mfma_stream"}
    interpret("down", params, [*given, streams(weight, "plain"), bias], [found], TOKENS, tiles)
    assert_same_bits(found, wanted)


GPT_OSS = {
    "hidden": 2880,
    "intermediate": 2880,
    "topk": 4,
    "block": 64,
    "x": "bf16",
    "layout": "none",
    "has_bias": True,
    "has_weights": True,
    **ACTIVATION,
    "weights": "mfma_stream",
    "block_n": 64,
    "block_k": 64,
    "num_warps": 4,
    "num_stages": 2,
}
A4 = {"x": "f4E2M1FN", "layout": "tiled_32x8"}


@pytest.mark.parametrize(("target", "instruction"), [("gfx950", "v_mfma_scale_f32"), ("gfx942", "v_mfma_f32")])
def test_mfma_streams_are_read_by_sixteen_bytes(target, instruction, tmp_path):
    kernels = {"gate_up": {"template": "gate_up", "params": GPT_OSS | A4}}
    compiled = build.compile_kernels(kernels, ARCHITECTURES[target], tmp_path, lambda *_: None)
    found = json.loads((compiled["gate_up"] / FACTS).read_text())
    assert (found["spills"], found["scalar_spills"], found["stack"]) == (0, 0, 0)
    assert found["wide_loads"] and found["occupancy"] >= 2
    assert all(name.startswith(instruction) for name in found["matrix"])


def test_the_stream_is_one_operand():
    types = dict(TEMPLATES["gate_up"].arguments(GPT_OSS))
    assert types["weight"] == "*u8"
    assert list(types) == [
        "x", "x_stride", "sorted_ids", "expert_ids", "num_valid", "sorted_weights", "weight", "bias", "h",
    ]  # fmt: skip
