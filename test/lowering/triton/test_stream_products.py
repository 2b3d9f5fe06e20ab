"""gate_up and down of a weight stream: bit for bit what the same kernels give of the same weights row_major."""

import json
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.compile import FACTS
from moeloom.lowering.triton.stream_weight import widened_chunk
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.lowering.workers import CompileError
from moeloom.runtime import reference
from moeloom.runtime.pack_mfma import pack_mfma
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.stream import CHUNK_COLUMNS

EXPERTS, TOPK, TOKENS = 3, 2, 11
ACTIVATION = {"activation": "swiglu", "alpha": 1.702, "limit": 7.0, "requantize": "none"}
WARPS = 4
GATE_UP_SIZES = [  # hidden, intermediate, block, block_n, block_k
    pytest.param(96, 64, 16, 32, 64, id="a chunk half full"),
    pytest.param(160, 96, 64, 64, 128, id="two tiles at once, the last absent"),
    pytest.param(1088, 64, 16, 64, 128, id="two records, steps across them"),
]
DOWN_SIZES = [  # hidden, intermediate, block, block_n, block_k, splits
    pytest.param(96, 64, 16, 64, 64, 1, id="a tile half full"),
    pytest.param(160, 96, 64, 128, 64, 2, id="two tiles at once, the last absent"),
    pytest.param(64, 1056, 16, 64, 128, 3, id="two records, splits across them"),
]
FORMS = [
    ("bf16", "none", "stream"),
    ("f4E2M1FN", "tiled_32x8", "stream"),
    ("f4E2M1FN", "row_major", "stream"),
    ("bf16", "none", "mfma_stream"),
]


def mx(*shape: int) -> tuple[Tensor, Tensor]:
    """Codes u8 [.., columns/2] and scales [.., columns/32] so near to one another that sums in f32 are exact."""
    *rows, columns = shape
    codes = torch.randint(256, (*rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(120, 123, (*rows, columns // 32), dtype=torch.uint8)


def streams(weight: tuple[Tensor, Tensor], rows: str, form: str) -> Tensor:
    """The stream of each expert, i32, or u8 [E, ..] of an MFMA stream, in memory that goes on with NaN scales."""
    pack = partial(pack_stream, warps=WARPS) if form == "stream" else pack_mfma
    packed = torch.stack([pack(codes, scales, rows) for codes, scales in zip(*weight, strict=True)])
    memory = torch.full((packed.numel() + packed[0].numel(),), 0xFF, dtype=torch.uint8)
    memory[: packed.numel()] = packed.flatten()
    stream = memory[: packed.numel()].view(packed.shape)
    return stream.view(torch.int32) if form == "stream" else stream


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


@pytest.mark.parametrize(("x", "layout", "form"), FORMS)
@pytest.mark.parametrize(("hidden", "intermediate", "block", "block_n", "block_k"), GATE_UP_SIZES)
def test_gate_up(interpret, hidden, intermediate, block, block_n, block_k, x, layout, form):
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
    params |= {"weights": form, "stream_warps": WARPS}
    stream = streams(weight, "gate_up_concatenated", form)
    interpret("gate_up", params, [*given, stream, bias], [found], TOKENS, tiles)
    assert_same_bits(found, wanted)


@pytest.mark.parametrize(("x", "layout", "form"), FORMS)
@pytest.mark.parametrize(("hidden", "intermediate", "block", "block_n", "block_k", "splits"), DOWN_SIZES)
def test_down(interpret, hidden, intermediate, block, block_n, block_k, splits, x, layout, form):
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
    params |= {"weights": form, "stream_warps": WARPS}
    interpret("down", params, [*given, streams(weight, "plain", form), bias], [found], TOKENS, tiles)
    assert_same_bits(found, wanted)


@triton.jit
def widen_kernel(stream, out, FRAGMENTS: tl.constexpr):
    fragments = tl.arange(0, FRAGMENTS)[:, None] * 128
    words = tl.load(stream + FRAGMENTS * 128 + fragments + tl.arange(0, 128)[None, :])
    scales = tl.load(stream + fragments + tl.arange(0, 8)[None, :] * 16)
    places = tl.arange(0, 16 * FRAGMENTS)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + places, widened_chunk(words, scales, ""))


def test_widens_exactly():
    """Every scale that a stream holds, every code of each."""
    codes, _ = mx(16 * WARPS, 64)
    scales = torch.arange(64, 191).repeat(2)[: 16 * WARPS * 2].to(torch.uint8).view(-1, 2)
    out = torch.full((16 * WARPS, 64), torch.nan, dtype=torch.bfloat16)
    widen_kernel[(1,)](pack_stream(codes, scales, "plain", WARPS).view(torch.int32), out, WARPS)
    assert torch.equal(out.double() * 2.0**62, reference.dequantise(codes, scales))


GPT_OSS = {
    "hidden": 2880,
    "intermediate": 2880,
    "topk": 4,
    "block": 64,
    "x": "bf16",
    "layout": "none",
    "has_bias": True,
    "has_weights": False,
    **ACTIVATION,
    "weights": "stream",
    "stream_warps": 8,
    "block_n": 64,
    "block_k": 64,
    "num_warps": 8,
    "num_stages": 3,
    "maxnreg": 128,
}
DOWN = GPT_OSS | {"has_weights": True, "splits": 1, "stream_warps": 4, "block_n": 128, "block_k": 128}
A4 = {"x": "f4E2M1FN", "layout": "tiled_32x8"}
CDNA = GPT_OSS | {"weights": "mfma_stream", "num_warps": 4, "num_stages": 2, "has_weights": True, "splits": 1}
KERNELS = {
    "gate_up": ("gate_up", GPT_OSS),
    "gate_up_a4": ("gate_up", GPT_OSS | A4),
    "down": ("down", DOWN),
    "down_a4": ("down", DOWN | A4),
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict[str, dict]:
    """Of every kernel's aligned variant."""
    kernels = {name: {"template": template, "params": params} for name, (template, params) in KERNELS.items()}
    cache = tmp_path_factory.mktemp("cache")
    compiled = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], cache, lambda *_: None, {})
    return {name: json.loads((folders[16] / FACTS).read_text()) for name, folders in compiled.items()}


@pytest.mark.parametrize("name", KERNELS)
def test_multiplies_out_of_registers(facts, name):
    found = facts[name]
    assert (found["spills"], found["stack"]) == (0, 0)
    chunks = KERNELS[name][1]["block_k"] // CHUNK_COLUMNS
    assert found["matrix"] == {"wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16": 4 * chunks}
    assert found["wide_loads"] >= 3 * chunks  # of three stages
    # A chunk of 8 KiB of x and, of weights, 4 KiB of words: no place for these in bf16, which would be 16 KiB.
    assert found["shared"] <= 3 * chunks * 12 * 1024


@pytest.mark.parametrize(("target", "instruction"), [("gfx950", "v_mfma_scale_f32"), ("gfx942", "v_mfma_f32")])
def test_mfma_streams_are_read_by_sixteen_bytes(target, instruction, tmp_path):
    params = {key: value for key, value in (CDNA | A4).items() if key not in ("maxnreg", "stream_warps")}
    kernels = {"gate_up": {"template": "gate_up", "params": params}}
    compiled = build.compile_kernels(kernels, ARCHITECTURES[target], tmp_path, lambda *_: None, {})
    found = json.loads((compiled["gate_up"][16] / FACTS).read_text())
    assert (found["spills"], found["scalar_spills"], found["stack"]) == (0, 0, 0)
    assert found["wide_loads"] and found["occupancy"] >= 2
    assert all(name.startswith(instruction) for name in found["matrix"])


def test_the_stream_is_one_operand():
    types = dict(TEMPLATES["gate_up"].arguments(GPT_OSS))
    assert types["weight"] == "*i32"
    assert list(types) == ["x", "x_stride", "sorted_ids", "expert_ids", "num_valid", "weight", "bias", "h"]


@pytest.mark.parametrize("changed", [{"x": "f16"}, {"block_k": 32}])
def test_refuses_what_a_stream_is_not_multiplied_by(changed):
    with pytest.raises(CompileError, match="takes bf16 or MXFP4 rows and a multiple of 64 as block_k, not"):
        TEMPLATES["down"].constants(DOWN | changed)
