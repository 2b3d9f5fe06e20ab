"""Template fake_quant: the values of torchao's codes and scales, by ml_dtypes, as bf16."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

from moeloom.runtime import reference

# Products of groups with a NaN or Inf under NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in multiply:RuntimeWarning")

ROWS, COLUMNS, GROUPS, GUARD = 12, 29 * 32, 16, 64


def any_bits(low: int, high: int) -> Tensor:
    """bf16 with exponent fields from low to below high, any sign and mantissa."""
    g = torch.Generator().manual_seed(low)
    signs, exponents, mantissas = (torch.randint(*r, (ROWS, COLUMNS), generator=g) for r in ((2,), (low, high), (128,)))
    return (signs << 15 | exponents << 7 | mantissas).to(torch.int32).to(torch.uint16).view(torch.bfloat16)


def by_others(x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """bf16 values, and the bytes of the scales."""
    scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode.upper()])
    byte = codes.view(torch.uint8).numpy()
    pairs = np.stack([byte & 15, byte >> 4], -1).reshape(len(x), -1).view(ml_dtypes.float4_e2m1fn)
    powers = scales.view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return torch.from_numpy(pairs.astype(np.float64) * powers.repeat(32, -1)).bfloat16(), scales.view(torch.uint8)


@pytest.mark.parametrize("mode", reference.SCALE_MODES)
@pytest.mark.parametrize("exponents", [(0, 256), (120, 135), (0, 4), (250, 255)])
def test_equals_torchao_and_ml_dtypes(interpret, exponents, mode):
    x = any_bits(*exponents)
    wide = torch.full((ROWS, COLUMNS + 8), torch.nan, dtype=torch.bfloat16)
    wide[:, :COLUMNS] = x
    memory = torch.full((2 * GUARD + x.numel(),), torch.nan, dtype=torch.bfloat16)
    found = memory[GUARD:-GUARD].view(x.shape)
    params = {"columns": COLUMNS, "x": "bf16", "scale_mode": mode, "groups": GROUPS}
    tiles = 2 * (ROWS - 1)  # the last row stays
    interpret("fake_quant", params, [(wide, wide.stride(0))], [found], ROWS - 1, tiles)
    assert bool(memory[:GUARD].isnan().all() and memory[-GUARD:].isnan().all() and found[-1].isnan().all())
    found, (want, scales) = found[:-1], by_others(x[:-1], mode)
    # Where the byte is 0 torchao divides by another number.
    lowest = (scales == 0).repeat_interleave(32, -1)
    want = torch.where(lowest, reference.dequantise(*reference.quantise(x[:-1], mode)).bfloat16(), want)
    assert torch.equal(found.isnan(), want.isnan()) and bool(want.isnan().any()) == (exponents[1] == 256)
    bits, wanted = (t.nan_to_num(0).view(torch.int16) for t in (found, want))
    assert torch.equal(bits, wanted) and not torch.equal(bits, x[:-1].nan_to_num(0).view(torch.int16))
