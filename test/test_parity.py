"""Whole layers, compiled from real model classes, against transformers and against the float64 reference."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import moeloom
from moeloom.families import family_of, find_blocks
from moeloom.runtime import reference

FAMILIES = ("gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "glm4_moe")
HF_TOLERANCE = 1e-2
REFERENCE_TOLERANCE = 5e-3
TOKENS = 24


def round_experts_to_mxfp4(block: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Quantise the block's expert weights in place, leaving the dequantised values; (codes, scales) by name."""
    transposed, found = block.experts.is_transposed, {}
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(block.experts, name).data
        nk = weight.transpose(1, 2) if transposed else weight
        codes, scales = reference.quantise(nk.reshape(-1, nk.shape[-1]), "even")
        values = reference.dequantise(codes, scales).view(nk.shape)
        weight.copy_(values.transpose(1, 2) if transposed else values)
        found[name] = codes.view(*nk.shape[:2], -1), scales.view(*nk.shape[:2], -1)
    return found


def routed(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """ids i32 and weights f32 as the family's own router chooses them."""
    _, weights, ids = getattr(block, family_of(block).router)(x)
    return ids.int(), weights.float()


def without_ties(block: nn.Module, x: Tensor) -> Tensor:
    """Rows whose choice of experts has no tie inside or at the edge of the top k: there PyTorch orders otherwise."""
    router = getattr(block, family_of(block).router)
    best = router(x)[0].float().topk(router.top_k + 1).values
    return (best[:, 1:] < best[:, :-1]).all(-1)


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """The block's own eager forward on x [M, H]."""
    block.experts.config._experts_implementation = "eager"
    with torch.no_grad():
        out = block(x.unsqueeze(0))
    return (out[0] if isinstance(out, tuple) else out).view(x.shape)


def only_block(model: nn.Module) -> tuple[str, nn.Module]:
    ((name, block),) = find_blocks(model).items()
    return name, block


@pytest.fixture(params=FAMILIES)
def family_model(request, moe_model: Callable[..., nn.Module]) -> nn.Module:
    return moe_model(request.param)


def compiled(model: nn.Module, folder: Path, **options):
    report = moeloom.compile(model, folder / "layer.moel", quantize_weights="mxfp4", **options)
    return report, moeloom.load(folder / "layer.moel", poison=True)


def test_every_family_equals_transformers(family_model: nn.Module, tmp_path: Path, relative_l2) -> None:
    name, block = only_block(family_model)
    round_experts_to_mxfp4(block)
    _, exe = compiled(family_model, tmp_path, activations="bf16")
    x = torch.randn(TOKENS, block.experts.hidden_size if hasattr(block.experts, "hidden_size") else 96).bfloat16()
    wanted, same = run_block(block, x), without_ties(block, x)
    assert same.sum() >= TOKENS // 2
    assert relative_l2(exe[name](x)[same], wanted[same]) <= HF_TOLERANCE

    with torch.no_grad():
        ids, weights = routed(block, x)
        alone = block.experts(x, ids.long(), weights.to(x.dtype))
    assert relative_l2(exe[f"{name}.experts"](x, ids, weights), alone) <= HF_TOLERANCE


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("activations", ["bf16", "mxfp4"])
def test_every_family_equals_the_reference(
    family_model: nn.Module, activations: str, stages: int, tmp_path: Path, relative_l2
) -> None:
    name, block = only_block(family_model)
    packed = round_experts_to_mxfp4(block)
    report, exe = compiled(family_model, tmp_path, activations=activations, stages=stages)
    assert report.fused == (0 if activations == "bf16" else stages)
    x = torch.randn(TOKENS, 96).bfloat16()
    with torch.no_grad():
        ids, weights = routed(block, x)
    ids[3] = -1
    gpt_oss = block.experts.has_bias
    wanted = reference.experts(
        x,
        ids,
        weights,
        packed["gate_up_proj"],
        packed["down_proj"],
        gate_up_bias=block.experts.gate_up_proj_bias if gpt_oss else None,
        down_bias=block.experts.down_proj_bias if gpt_oss else None,
        activation="swiglu" if gpt_oss else "silu",
        order="interleaved" if gpt_oss else "concatenated",
        activations=activations,
    )
    found = exe[f"{name}.experts"](x, ids, weights)
    assert relative_l2(found, wanted) <= REFERENCE_TOLERANCE
    assert not found[3].any()


@pytest.mark.parametrize("activations", ["bf16", "mxfp4"])
def test_one_stage_equals_two(family_model: nn.Module, activations: str, tmp_path: Path, relative_l2) -> None:
    name, _ = only_block(family_model)
    x = torch.randn(TOKENS, 96).bfloat16()
    results = []
    for stages in (1, 2):
        (tmp_path / str(stages)).mkdir()
        _, exe = compiled(family_model, tmp_path / str(stages), activations=activations, stages=stages)
        results.append(exe[name](x))
    assert relative_l2(*results) <= REFERENCE_TOLERANCE


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("scale_mode", ["even", "rceil"])
def test_prequantised_entry_equals_fresh_entry_byte_for_byte(moe_model, stages, scale_mode, tmp_path: Path) -> None:
    model = moe_model("gpt_oss")
    name, block = only_block(model)
    _, exe = compiled(model, tmp_path, stages=stages, scale_mode=scale_mode)
    for tokens in (1, 2, 17, 64):
        x = torch.randn(tokens, 96).bfloat16()
        with torch.no_grad():
            ids, weights = routed(block, x)
        payload, scales = reference.quantise(x, scale_mode)
        fresh = exe[f"{name}.experts"](x, ids, weights)
        assert torch.equal(exe[f"{name}.experts_prequantised"](payload, scales, ids, weights), fresh)


def test_fused_equals_split_byte_for_byte(moe_model, tmp_path: Path) -> None:
    model = moe_model("gpt_oss")
    name, _ = only_block(model)
    exes = []
    for fusion in ("fused", "split", "auto"):
        (tmp_path / fusion).mkdir()
        exes.append(compiled(model, tmp_path / fusion, fusion=fusion)[1])
    for tokens in (1, 2, 3, 16, 64, 511, 512, 513, 4095, 4096, 4097):
        x = torch.randn(tokens, 96).bfloat16()
        fused, split, auto = (exe[name](x) for exe in exes)
        assert torch.equal(fused, split)
        assert torch.equal(fused, auto)


def test_rows_beyond_num_tokens_are_zero_and_do_not_matter(moe_model, tmp_path: Path) -> None:
    model = moe_model("mixtral")
    name, _ = only_block(model)
    _, exe = compiled(model, tmp_path)
    x = torch.randn(16, 96).bfloat16()
    live = torch.tensor([11], dtype=torch.int32)
    found = exe[name](x, num_tokens=live)
    assert torch.equal(found[:11], exe[name](x)[:11])
    assert not found[11:].any()


def test_float16_activations(moe_model, tmp_path: Path, relative_l2) -> None:
    model = moe_model("mixtral").to(torch.float16)
    name, block = only_block(model)
    packed = round_experts_to_mxfp4(block)
    x = torch.randn(TOKENS, 96).half()
    with torch.no_grad():
        ids, weights = routed(block, x)
    for activations in ("bf16", "mxfp4"):
        (tmp_path / activations).mkdir()
        _, exe = compiled(model, tmp_path / activations, activations=activations)
        wanted = reference.experts(
            x,
            ids,
            weights,
            packed["gate_up_proj"],
            packed["down_proj"],
            activations=activations,
            out_dtype=torch.float16,
        )
        assert relative_l2(exe[f"{name}.experts"](x, ids, weights), wanted) <= REFERENCE_TOLERANCE
