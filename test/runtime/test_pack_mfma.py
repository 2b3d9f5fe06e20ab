"""runtime/pack_mfma.py: back again to the byte, and what a wave makes of it by the definition of the instructions.

The operands of 16x16 MFMA instructions as AMD's CDNA3 and CDNA4 ISA documents define them, lane l of 64:
- f8f6f4 (K = 128) of e2m1: A has row l % 16, columns 32 (l / 16) .. + 31, the even one in the low nibble; B likewise
  for its column of N; a scale operand has one byte a lane, for the lane's row and its 32 columns;
- bf16, K = 32 (16): A has row l % 16, columns 8 (l / 16) .. + 7 (4 (l / 16) .. + 3); B likewise;
- C and D, f32: register i has row 4 (l / 16) + i, column l % 16.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.pack_mfma import pack_mfma, unpack_mfma
from moeloom.runtime.reference import dequantise
from moeloom.runtime.stream import MfmaStream

ORDERS = ("plain", "gate_up_interleaved", "gate_up_concatenated")
LANE = np.arange(64)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def matrix(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(118, 134, (rows, columns // 32), dtype=torch.uint8)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 96), (160, 2880), (96, 1056), (128, 256)])
def test_unpacks_to_the_byte(order, rows, columns):
    codes, scales = matrix(rows, columns)
    packed = pack_mfma(codes, scales, order)
    assert packed.shape == MfmaStream(rows, columns).shape
    found_codes, found_scales = unpack_mfma(packed, order, rows, columns)
    assert torch.equal(found_codes, codes)
    assert torch.equal(found_scales, scales)


def test_costs_little_more_than_its_parts():
    """No byte but the padding of gpt-oss's 2880 columns to 23 steps, and of its rows to nothing."""
    tiles, steps, step_bytes = MfmaStream(5760, 2880).shape
    assert tiles * steps * step_bytes * 45 == 5760 * (2880 // 2 + 2880 // 32) * 46


def test_pads_with_zeros():
    packed = pack_mfma(*matrix(16, 32), "plain")[0, 0]
    payload, scales = packed[256:].view(4, 4, 16, 16), packed[:256].view(4, 16, 4)
    assert payload[1:].count_nonzero() == payload[:, 1:].count_nonzero() == 0  # fragments and lanes without a weight
    assert scales[1:].count_nonzero() == scales[..., 1:].count_nonzero() == 0
    assert payload[0, 0].count_nonzero() > 0


@pytest.mark.parametrize("byte", [1, 253])
def test_refuses_scales_that_do_not_fit(byte):
    codes, scales = matrix(32, 64)
    scales[3, 1] = byte
    with pytest.raises(ArtifactError, match=rf"{byte}.* the stream layout holds 2 to 252: .*row_major"):
        pack_mfma(codes, scales, "plain")


def test_every_weight_is_zero_or_a_normal_bf16():
    codes = (torch.arange(16) * 17).to(torch.uint8).repeat(251, 1)
    scales = torch.arange(2, 253).to(torch.uint8)[:, None]
    values = dequantise(codes, scales)
    least = torch.finfo(torch.bfloat16).smallest_normal
    assert torch.equal(values.bfloat16().double(), values)
    assert bool(((values == 0) | (values.abs() >= least)).all())


def test_refuses_half_a_fragment():
    with pytest.raises(ArtifactError, match="24 rows; the stream layout takes multiples of 16"):
        pack_mfma(*matrix(24, 64), "plain")


def nibbles(words: np.ndarray) -> np.ndarray:
    """e2m1 values [64, 32] of the registers u32 [64, 4] of an operand."""
    bits = words[:, :, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15
    return E2M1[bits.reshape(64, 32)]


def operand(values: np.ndarray) -> np.ndarray:
    """[16, 4 n] of a lane's n values each: A as [row, k], B as [column, k]."""
    per_lane = values.shape[1]
    out = np.full((16, 4 * per_lane), np.nan)
    for i in range(per_lane):
        out[LANE % 16, LANE // 16 * per_lane + i] = values[:, i]
    return out


def mfma(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product [16, 16] of what a lane holds of A and B, read back from the lanes' four registers."""
    product = operand(a) @ operand(b).T
    registers = np.stack([product[4 * (LANE // 16) + i, LANE % 16] for i in range(4)], axis=1)
    out = np.full((16, 16), np.nan)
    for i in range(4):
        out[4 * (LANE // 16) + i, LANE % 16] = registers[:, i]
    return out


def step_product(packed: np.ndarray, fragment: int, x: np.ndarray, k: int) -> np.ndarray:
    """[16, 16] of one step u8 [4352] and x [16, 128], by instructions of `k` columns each."""
    scales = packed[:256].view(np.uint32) >> np.uint32(8 * fragment) & 255
    words = packed[256:].view(np.uint32).reshape(4, 64, 4)[fragment]
    weights = nibbles(words) * np.exp2(scales.astype(np.float64) - 127)[:, None]
    tokens = x[LANE % 16][np.arange(64)[:, None], 32 * (LANE // 16)[:, None] + np.arange(32)]
    size = k // 4
    parts = range(0, 32, size)
    return sum(mfma(weights[:, i : i + size], tokens[:, i : i + size]) for i in parts)


def expected_rows(order: str, rows: int, fragment: int) -> Tensor:
    """The rows of the checkpoint that a fragment holds."""
    row = torch.arange(16)
    if order == "plain":
        return 16 * fragment + row
    output, part = 8 * fragment + row // 4 * 2 + row % 2, row % 4 // 2
    return 2 * output + part if order == "gate_up_interleaved" else part * (rows // 2) + output


@pytest.mark.parametrize("k", [128, 32, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_a_wave_multiplies_what_was_packed(order, k):
    rows, columns = 96, 352  # two tiles, the last half empty; three steps, the last three quarters empty
    codes, scales = matrix(rows, columns)
    packed, stream = pack_mfma(codes, scales, order).numpy(), MfmaStream(rows, columns)
    x = np.zeros((16, 128 * stream.steps))
    x[:, :columns] = np.random.default_rng(0).integers(-8, 9, (16, columns))
    wanted = dequantise(codes, scales).numpy() @ x[:, :columns].T
    for fragment in range(rows // 16):
        tile = packed[fragment // 4]
        steps = (step_product(tile[s], fragment % 4, x[:, 128 * s : 128 * s + 128], k) for s in range(stream.steps))
        assert np.array_equal(sum(steps), wanted[expected_rows(order, rows, fragment)])


@pytest.mark.parametrize("k", [128, 32, 16])
def test_the_model_sees_one_swapped_nibble(k):
    codes, scales = matrix(16, 128)
    codes[5, 7] = 0x21
    x = np.random.default_rng(1).integers(-8, 9, (16, 128)).astype(np.float64)  # so that sums are exact
    swapped = codes.clone()
    swapped[5, 7] = 0x12
    packed = pack_mfma(codes, scales, "plain").numpy()
    found = step_product(packed[0, 0], 0, x, k)
    assert np.array_equal(found, dequantise(codes, scales).numpy() @ x.T)
    wrong = found != dequantise(swapped, scales).numpy() @ x.T
    assert wrong.any(axis=1).tolist() == [row == 5 for row in range(16)]
