"""runtime/reference.py, section 1 of the contract, against torchao and ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

from moeloom.runtime.reference import SCALE_MODES, dequantise, encode_e2m1, quantise

ROWS = 64


def bf16_from_bits(bits: torch.Tensor) -> torch.Tensor:
    return bits.to(torch.int32).to(torch.uint16).view(torch.bfloat16)


def random_bits(exponents: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = exponents
    bits = torch.randint(0, 2, (ROWS, 96), generator=generator) << 15
    bits |= torch.randint(low, high, (ROWS, 96), generator=generator) << 7
    return bf16_from_bits(bits | torch.randint(0, 128, (ROWS, 96), generator=generator))


def tie_rich() -> torch.Tensor:
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 0.0, -0.0, -1.25, -5.0])
    generator = torch.Generator().manual_seed(3)
    picks = halves[torch.randint(0, len(halves), (ROWS, 96), generator=generator)]
    return (picks * 2.0 ** torch.randint(-20, 20, (ROWS, 1), generator=generator)).bfloat16()


def with_inf() -> torch.Tensor:
    x = torch.randn(ROWS, 96, generator=torch.Generator().manual_seed(4)).bfloat16()
    x[::2, 5], x[1::4, 40] = torch.inf, -torch.inf
    return x


def edges() -> torch.Tensor:
    x = torch.zeros(ROWS, 96, dtype=torch.bfloat16)
    x[1::4], x[2::4, ::3] = -0.0, -1e-30
    x[3::4, 7] = torch.finfo(torch.bfloat16).max
    return x


INPUTS = {
    "normal": torch.randn(ROWS, 96, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "any_exponent": random_bits((0, 255), 2),
    "subnormal": random_bits((0, 4), 5),
    "tie_rich": tie_rich(),
    "inf": with_inf(),
    "edges": edges(),
}


def groups_where_torchao_departs(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """torchao divides by 2^-126 or by 1 where the scale byte is 0: only the scale is compared there."""
    return (scales == 0) & (x.unflatten(-1, (-1, 32)).abs().amax(-1) > 0)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("mode", SCALE_MODES)
def test_bytes_equal_torchao(mode: str, name: str) -> None:
    x = INPUTS[name]
    codes, scales = quantise(x, mode)
    want_scales, want_codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode.upper()])
    torch.testing.assert_close(scales, want_scales.view(torch.uint8), rtol=0, atol=0)
    agree = (codes == want_codes.view(torch.uint8)).unflatten(-1, (-1, 16)).all(-1)
    assert bool((agree | groups_where_torchao_departs(x, scales)).all())


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("mode", SCALE_MODES)
def test_payload_equals_ml_dtypes_of_the_scaled_value(mode: str, name: str) -> None:
    """Every group, those with scale byte 0 (x * 2^127) among them."""
    x = INPUTS[name]
    codes, scales = quantise(x, mode)
    scaled = x.double().numpy() * 2.0 ** (127 - scales.numpy().astype(np.float64).repeat(32, -1))
    want = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert np.array_equal(codes.numpy(), want[:, 0::2] | want[:, 1::2] << 4)


@pytest.mark.parametrize("mode", SCALE_MODES)
def test_nan_block_has_scale_255_and_leaves_its_neighbours(mode: str) -> None:
    x = INPUTS["normal"].clone()
    x[3, 40] = torch.nan
    codes, scales = quantise(x, mode)
    want, _ = quantise(INPUTS["normal"], mode)
    assert scales[3].tolist()[1] == 255 and int((scales == 255).sum()) == 1
    assert not codes[3, 16:32].any()
    codes[3, 16:32] = want[3, 16:32]
    assert torch.equal(codes, want)


@pytest.mark.parametrize("mode", SCALE_MODES)
def test_f16_and_f32_widen_exactly(mode: str) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(6)).half()
    want = to_mx(x.float(), torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode.upper()])
    for found in (quantise(x, mode), quantise(x.float(), mode)):
        assert torch.equal(found[0], want[1].view(torch.uint8)) and torch.equal(found[1], want[0].view(torch.uint8))


def test_encoder_equals_ml_dtypes_over_every_bf16_to_six() -> None:
    every = bf16_from_bits(torch.arange(1 << 16))
    every = every[every.abs() <= 6]
    want = every.float().numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert np.array_equal(encode_e2m1(every).numpy(), want)
    assert np.array_equal(encode_e2m1(every.double()).numpy(), want)


def test_encoder_saturates() -> None:
    assert encode_e2m1(torch.tensor([7.0, 1e30, torch.inf, -9.0, -torch.inf])).tolist() == [7, 7, 7, 15, 15]


def test_strided_input() -> None:
    wide = torch.randn(8, 131).bfloat16()
    view = wide[:, 1:97]
    for found, want in zip(quantise(view, "even"), quantise(view.contiguous(), "even"), strict=True):
        assert torch.equal(found, want)


def test_width_must_be_a_multiple_of_32() -> None:
    with pytest.raises(ValueError, match="48 columns; they must be a multiple of 32"):
        quantise(torch.zeros(1, 48), "even")
    with pytest.raises(ValueError, match="scale_mode is 'nearest'"):
        quantise(torch.zeros(1, 32), "nearest")


def test_dequantise_equals_ml_dtypes_for_every_byte() -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat_interleave(16).view(256, 16)
    scales = torch.arange(256, dtype=torch.uint8).view(256, 1)
    nibbles = np.stack([codes.numpy() & 15, codes.numpy() >> 4], -1).reshape(256, 32)
    values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    factors = scales.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    np.testing.assert_array_equal(dequantise(codes, scales).numpy(), values * factors)
