"""Template quant against torchao (scales and payload, four scale modes) and ml_dtypes (payload, scale byte 0)."""

import functools

import ml_dtypes
import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

MODES = ("even", "floor", "ceil", "rceil")
ROWS, COLUMNS = 96, 96


def generator(seed):
    return torch.Generator().manual_seed(seed)


def of_bits(bits):
    return bits.to(torch.int32).to(torch.uint16).view(torch.bfloat16)


def random_bits(low, high, seed):
    """bf16 with exponent fields from low to below high, any sign and mantissa."""
    g = generator(seed)
    signs, exponents, mantissas = (torch.randint(*r, (ROWS, COLUMNS), generator=g) for r in ((2,), (low, high), (128,)))
    return of_bits(signs << 15 | exponents << 7 | mantissas)


def tie_rich():
    g = generator(3)
    sizes = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 0.0, -0.0, -0.25, -1.25, -5.0])
    picks = sizes[torch.randint(len(sizes), (ROWS, COLUMNS), generator=g)]
    return (picks * 2.0 ** torch.randint(-20, 20, (ROWS, 1), generator=g)).bfloat16()


def tie_rich_at_the_bottom():
    """Ties of groups whose scale byte is 0, 1, 2 or 3, most elements subnormal."""
    g = generator(8)
    sizes = torch.tensor(
        [0.25, 0.5, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, 0.0, -0.0], dtype=torch.float64
    )
    picks = sizes[torch.randint(len(sizes), (ROWS, COLUMNS), generator=g)]
    return (picks * 2.0 ** torch.arange(-130, -130 + 6).repeat(ROWS // 6).unsqueeze(-1)).bfloat16()


def with_inf():
    x = torch.randn(ROWS, COLUMNS, generator=generator(4)).bfloat16()
    x[::2, 5], x[1::4, 40] = torch.inf, -torch.inf
    x[2, 6], x[3, 41] = 3e38, -2.5e38
    return x


def edges():
    x = torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16)
    x[1::4], x[2::4, ::3] = -0.0, -1e-30
    x[3::4, 7], x[3::4, 40] = torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).tiny
    return x


INPUTS = {
    "normal": torch.randn(ROWS, COLUMNS, generator=generator(1)).bfloat16(),
    "log_normal": torch.randn(ROWS, COLUMNS, generator=generator(9)).exp().bfloat16(),
    "any_exponent": random_bits(0, 255, 2),
    "largest": random_bits(250, 255, 7),
    "subnormal": random_bits(0, 5, 5),
    "only_subnormal": random_bits(0, 1, 6),
    "tie_rich": tie_rich(),
    "tie_rich_at_the_bottom": tie_rich_at_the_bottom(),
    "inf": with_inf(),
    "edges": edges(),
}


def by_torchao(x, mode):
    scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode.upper()])
    return codes.view(torch.uint8), scales.view(torch.uint8)


@functools.cache
def input_by_torchao(name, mode):
    return by_torchao(INPUTS[name], mode)


@functools.cache
def every_f16_by_torchao(mode):
    """All finite f16 and Inf, among neighbours of any size and in order, and what torchao makes of them."""
    every = torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(torch.float16)
    every = every[~every.isnan()]
    mixed = every[torch.randperm(len(every), generator=generator(2))]
    x = torch.cat([mixed, every.sort().values])[: len(every) * 2 // 96 * 96].view(-1, 96)
    return x, *by_torchao(x.float(), mode)


def by_ml_dtypes(x, scales):
    """The payload of x / 2^(b-127), in float64."""
    scaled = x.double().numpy() * 2.0 ** (127 - scales.numpy().astype(np.float64).repeat(32, -1))
    codes = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)


def torchao_departs(x, scales):
    """It divides by 2^-126 or by 1 where the scale byte is 0."""
    return (scales == 0) & (x.unflatten(-1, (-1, 32)).abs().amax(-1) > 0)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_torchao_and_ml_dtypes(kernels, mode, name):
    x = INPUTS[name]
    codes, scales = kernels.quant(x, mode)
    want_codes, want_scales = input_by_torchao(name, mode)
    assert torch.equal(scales, want_scales)
    agree = (codes == want_codes).unflatten(-1, (-1, 16)).all(-1)
    assert bool((agree | torchao_departs(x, scales)).all())
    assert torch.equal(codes, by_ml_dtypes(x, scales))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("mode", MODES)
def test_does_not_depend_on_flushed_denormals(kernels, mode, name):
    want = kernels.quant(INPUTS[name], mode)
    assert torch.set_flush_denormal(True)
    try:
        found = kernels.quant(INPUTS[name], mode)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


def test_encoder_equals_ml_dtypes_over_every_bf16_to_six(kernels):
    """A group's last element, 6, fixes its scale at 2^0."""
    every = of_bits(torch.arange(1 << 16))
    every = every[every.abs() <= 6]
    x = torch.full((-(-len(every) // 31), 32), 6.0, dtype=torch.bfloat16)
    x[:, :31] = torch.nn.functional.pad(every, (0, len(x) * 31 - len(every))).view(-1, 31)
    codes, scales = kernels.quant(x, "floor")
    assert bool((scales == 127).all())
    assert torch.equal(codes, by_ml_dtypes(x, scales))


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_spoils_its_own_group_only(kernels, mode):
    x = INPUTS["inf"].clone()
    x[3, 40], x[5, 0], x[7, 95] = torch.nan, of_bits(torch.tensor(0xFF81)), of_bits(torch.tensor(0x7F81))
    codes, scales = kernels.quant(x, mode)
    want_codes, want_scales = kernels.quant(INPUTS["inf"], mode)
    for row, group in ((3, 1), (5, 0), (7, 2)):
        assert scales[row, group] == 255
        assert not codes[row, 16 * group : 16 * group + 16].any()
        scales[row, group] = want_scales[row, group]
        codes[row, 16 * group : 16 * group + 16] = want_codes[row, 16 * group : 16 * group + 16]
    assert torch.equal(codes, want_codes) and torch.equal(scales, want_scales)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_f16_is_widened(kernels, mode, flush):
    x, want_codes, want_scales = every_f16_by_torchao(mode)
    torch.set_flush_denormal(flush)
    try:
        codes, scales = kernels.quant(x, mode)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(scales, want_scales)
    assert torch.equal(codes, want_codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [32, 96, 384, 640, 2880])
def test_rows_may_be_strided_and_unaligned(kernels, columns, dtype):
    wide = torch.randn(5, columns + 3, generator=generator(columns)).to(dtype)
    view = wide[:, 1 : columns + 1]
    codes, scales = kernels.quant(view)
    want_codes, want_scales = by_torchao(view.contiguous().float(), "even")
    assert torch.equal(codes, want_codes) and torch.equal(scales, want_scales)
