"""Template expand against runtime/reference: every scale with every code, exactly."""

import pytest
import torch
from torch import Tensor

from moeloom.runtime import reference

# Products of groups with a NaN or Inf under NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in multiply:RuntimeWarning")

TOKENS, TOPK, EXPERTS, BLOCK, GUARD = 45, 3, 5, 16, 64


def codes_and_scales(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Random codes, and scales that count up from row to row."""
    torch.manual_seed(0)
    codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8)
    return codes, torch.arange(rows * (columns // 32)).view(rows, -1).to(torch.uint8)


def expanded(
    interpret, ids: Tensor, codes: Tensor, scales: Tensor, stage: int, layout: str, groups: int
) -> tuple[Tensor, Tensor]:
    """bf16 rows that were NaN (0xFF) before, and which of them the sorted list names; no byte around them changes."""
    rows, columns = len(codes), 32 * scales.shape[1]
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.zeros(ids.shape), EXPERTS, BLOCK)
    named = reference.defined_payload(sorted_ids, num_valid, stage, ids.shape[1], rows)
    sorted_scales = reference.sort_scales(scales, sorted_ids, num_valid, stage, ids.shape[1], layout)
    sorted_ids[int(num_valid[0]) :] = 0
    wide = torch.full((rows, columns // 2 + 5), 0xFF, dtype=torch.uint8)
    wide[named, : columns // 2] = codes[named]
    memory = torch.full((2 * (2 * GUARD + rows * columns),), 0xFF, dtype=torch.uint8)
    out = memory.view(torch.bfloat16)[GUARD:-GUARD].view(rows, columns)
    params = {"columns": columns, "stage": stage, "topk": ids.shape[1], "layout": layout, "groups": groups}
    given = [(wide, wide.stride(0)), sorted_scales, sorted_ids, num_valid]
    tiles = len(sorted_scales) // 32 * -(-scales.shape[1] // groups)
    interpret("expand", params, given, [out], len(ids), tiles)
    assert bool((memory[: 2 * GUARD] == 0xFF).all() and (memory[-2 * GUARD :] == 0xFF).all())
    return out, named


@pytest.mark.parametrize("layout", ["tiled_32x8", "row_major"])
@pytest.mark.parametrize(("stage", "groups"), [(1, 8), (2, 4)])
def test_equals_the_reference(interpret, stage, groups, layout):
    ids = torch.randint(EXPERTS, (TOKENS, TOPK), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    ids[2], ids[4, 1] = -1, -1
    codes, scales = codes_and_scales(TOKENS if stage == 1 else TOKENS * TOPK, 11 * 32)
    found, named = expanded(interpret, ids, codes, scales, stage, layout, groups)
    assert len(scales[named].unique()) == 256 and not named.all()
    # Beyond bf16 Inf, with a scale of 255 NaN.
    want = reference.dequantise(codes, scales).bfloat16()
    assert torch.equal(found[named].isnan(), want[named].isnan())
    assert torch.equal(found[named].nan_to_num(0).view(torch.int16), want[named].nan_to_num(0).view(torch.int16))
    assert bool((found[~named].view(torch.uint8) == 0xFF).all())


def test_every_code_of_every_scale(interpret):
    ids = torch.zeros(256, 1, dtype=torch.int32)
    codes = torch.arange(16, dtype=torch.uint8).repeat(256, 1) * 17
    scales = torch.arange(256).to(torch.uint8).view(-1, 1)
    found, named = expanded(interpret, ids, codes, scales, 1, "row_major", 1)
    want = reference.dequantise(codes, scales).bfloat16()
    assert bool(named.all()) and bool(want[255].isnan().all()) and bool(want[254].isinf().any())
    assert torch.equal(found[:255].view(torch.int16), want[:255].view(torch.int16))
    assert bool(found[255].isnan().all())
