"""Template expand against ml_dtypes' values of codes and scales."""

import ml_dtypes
import numpy as np
import pytest
import torch

from moeloom.runtime import reference


def expand(kernels, codes, sorted_scales, sorted_ids, num_valid, stage, topk, rows, layout="tiled_32x8"):
    columns = codes.shape[1] * 2
    out = kernels.output((rows, columns), torch.bfloat16)
    params = {"columns": columns, "stage": stage, "topk": topk, "layout": layout}
    args = [codes, codes.stride(0), sorted_scales, sorted_ids, num_valid, out, rows]
    kernels.run("expand", params, args, -(-len(sorted_ids) // 32))
    return out


def values(codes, scales):
    nibbles = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).numpy()
    factors = scales.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64).repeat(32, -1)
    product = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64) * factors
    # Beyond 2^128 float64 holds what bf16 rounds to Inf.
    return torch.from_numpy(product).bfloat16()


@pytest.mark.parametrize("layout", ["tiled_32x8", "row_major"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("flush", [False, True])
def test_every_scale_and_code_is_exact(kernels, flush, stage, layout):
    """Row r has scale r in group 0, where all 16 codes stand; the last rows have no expert."""
    tokens, topk = 256 // (1 if stage == 1 else 2), 2
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(256, (256, 48 + 7), generator=generator, dtype=torch.uint8)[:, 3:51]
    codes[:, :8], codes[:, 8:16] = torch.arange(8) * 34 + 16, torch.arange(16, 24)
    scales = torch.randint(256, (256, 3), generator=generator, dtype=torch.uint8)
    scales[:, 0] = torch.arange(256)
    ids = torch.randint(5, (tokens, topk), generator=generator, dtype=torch.int32)
    live = tokens - 3
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.zeros(ids.shape), 5, 16, live)
    sorted_scales = reference.sort_scales(scales, sorted_ids, num_valid, stage, topk, layout)
    torch.set_flush_denormal(flush)
    try:
        out = expand(kernels, codes, sorted_scales, sorted_ids, num_valid, stage, topk, 256, layout)
    finally:
        torch.set_flush_denormal(False)
    named = 256 - 3 * (1 if stage == 1 else 2)
    found, want = out[:named].view(torch.int16), values(codes, scales)[:named].view(torch.int16)
    is_nan = values(codes, scales)[:named].isnan()
    assert torch.equal(found[~is_nan], want[~is_nan])
    assert bool(out[:named][is_nan].isnan().all())
    assert bool((out[named:].view(torch.int16) == -1).all())
