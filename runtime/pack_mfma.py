"""Packed weights of the decode kernels of AMD's CDNA GPUs: a stream in the order of its use.

Plain torch, on any device. The layout `mfma_stream`, weights being the M side of 16x16 MFMA instructions:

    u8 [tiles, steps, 4352]

A tile has 64 rows, four fragments of 16; a step has 128 columns. First come 64 words of scales, one a lane, byte f of
fragment f, then the four fragments of 1024 bytes, 16 bytes a lane. Lane 16g + r (g < 4, r < 16) holds, of row r of a
fragment, the 32 columns from 32g of the step, one group of one scale, in the checkpoint's order (the even column in the
low nibble). That is:

- the A operand of `v_mfma_scale_f32_16x16x128_f8f6f4` for e2m1, and its scale operand, whose byte OPSEL picks;
- of `v_mfma_f32_16x16x32_bf16` (16x16x16) the four (eight) A operands that a lane widens its 32 codes to, K being in
  an order of its own, the same for both sides of the product.

Nothing but the places of bytes is changed. Rows and columns are padded with zeros up to whole tiles and steps. Of
gate_up, rows 4q, 4q + 1 and 4q + 2, 4q + 3 of a fragment are two gates and the ups of the same two outputs: a lane of
the accumulator holds four rows from 4q. Scale bytes 2 to 252 make every weight zero or a normal bf16, which no unit
flushes or rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeloom.runtime.pack_stream import fragments_of, padded, refuse_scales
from moeloom.runtime.reference import GROUP
from moeloom.runtime.stream import FRAGMENT_ROWS, FRAGMENTS, STEP_SCALE_BYTES, MfmaStream

LEAST_SCALE, GREATEST_SCALE = 2, 252  # 0.5 * 2^(2 - 127) is normal, 6 * 2^(252 - 127) finite, as bf16
ROWS_TOGETHER = 2  # gates, and ups, of a lane of the accumulator
LANE_GROUPS, LANE_BYTES = 4, 16


def pack_mfma(codes: Tensor, scales: Tensor, rows: str) -> Tensor:
    """The stream of one expert: payload u8 [N, K/2] and scales u8 [N, K/32], `rows` as in a recipe (docs/program.md).

    ArtifactError for a scale that the stream does not hold.
    """
    refuse_scales(scales, LEAST_SCALE, GREATEST_SCALE)
    stream = MfmaStream(codes.shape[0], 2 * codes.shape[1])
    out = torch.empty(stream.shape, dtype=torch.uint8, device=codes.device)
    for target, matrix in zip(_places(out), (codes, scales), strict=True):
        whole = padded(fragments_of(matrix, rows, ROWS_TOGETHER), stream.tiles * FRAGMENTS, target.shape[3:].numel())
        target.copy_(whole.reshape(target.shape))
    return out


def unpack_mfma(packed: Tensor, rows: str, count: int, columns: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_mfma`: payload u8 [count, columns/2], scales u8 [count, columns/32]."""
    codes = torch.empty(count, columns // 2, dtype=torch.uint8, device=packed.device)
    scales = torch.empty(count, columns // GROUP, dtype=torch.uint8, device=packed.device)
    for source, matrix in zip(_places(packed), (codes, scales), strict=True):
        target = fragments_of(matrix, rows, ROWS_TOGETHER)
        whole = source.reshape(-1, *target.shape[1:-1], source.shape[3:].numel())
        target.copy_(whole[: target.shape[0], ..., : target.shape[-1]])
    return codes, scales


def _places(stream: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a stream: payload [tiles, fragment, row, steps, g, byte] and scales [tiles, fragment, row, steps, g]."""
    payload = stream[..., STEP_SCALE_BYTES:].unflatten(-1, (FRAGMENTS, LANE_GROUPS, FRAGMENT_ROWS, LANE_BYTES))
    scales = stream[..., :STEP_SCALE_BYTES].unflatten(-1, (LANE_GROUPS, FRAGMENT_ROWS, FRAGMENTS))
    return payload.permute(0, 2, 4, 1, 3, 5), scales.permute(0, 4, 3, 1, 2)
