"""The layout in which Marlin's W4A16 MoE kernels read MXFP4 weights.

Tiles of 16 columns (K) x 64 rows (N), K outer; the 1024 codes of a tile in the order in which the 32 lanes of a warp
hold them as fragments of `mma.m16n8k16`: lane l has column pairs 2(l%4), +1, +8, +9 of the rows l/4 and l/4 + 8 of each
of four 16-row tiles; eight codes an i32, even places in the low nibbles' bytes (0, 2, 4, 6, 1, 3, 5, 7).
"""

from functools import cache

import torch
from torch import Tensor

TILE_COLUMNS, TILE_ROWS = 16, 64
CODES_A_WORD = 8
WORD_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SCALE_ORDER = tuple(i + 8 * j for i in range(8) for j in range(8))
BIAS_ORDER = tuple(2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25))
PAIR_ORDER = (0, 2, 1, 3)  # of the scales of four rows: as two pairs of bytes are widened


def padded(size: int, multiple: int) -> int:
    """`size` rounded up."""
    return -(-size // multiple) * multiple


@cache
def _tile_order(device: torch.device) -> Tensor:
    """For each code of a packed tile, its place in a tile of four 16 x 16 blocks [4, 16 columns, 16 rows]."""
    order = []
    for lane in range(32):
        column, row = 2 * (lane % 4), lane // 4
        for block in range(4):
            held = [16 * (column + step) + row + half for half in (0, 8) for step in (0, 1, 8, 9)]
            order += [256 * block + held[place] for place in WORD_ORDER]
    return torch.tensor(order, device=device)


def payload_of(codes: Tensor, rows: int, columns: int) -> Tensor:
    """i32 [E, columns/16, 2*rows] of codes u8 [E, N, K/2], zeros beyond N and K."""
    return torch.stack([_payload(one, rows, columns) for one in codes])


def _payload(codes: Tensor, rows: int, columns: int) -> Tensor:
    count, half = codes.shape
    single = torch.zeros(rows, columns, dtype=torch.uint8, device=codes.device)
    single[:count, 0 : 2 * half : 2] = codes & 15
    single[:count, 1 : 2 * half : 2] = codes >> 4
    blocks = single.T.reshape(columns // TILE_COLUMNS, TILE_COLUMNS, rows // TILE_COLUMNS, TILE_COLUMNS)
    tiles = blocks.transpose(1, 2).reshape(columns // TILE_COLUMNS, rows // TILE_ROWS, -1)
    lanes = tiles[..., _tile_order(codes.device)].view(columns // TILE_COLUMNS, -1, CODES_A_WORD // 2, 2)
    packed = (lanes[..., 0] | lanes[..., 1] << 4).contiguous()
    return packed.view(torch.int32).view(columns // TILE_COLUMNS, 2 * rows)


def scales_of(scales: Tensor, rows: int, columns: int) -> Tensor:
    """u8 [E, columns/32, rows] of e8m0 scales u8 [E, N, K/32], zeros (2^-127) beyond N and K."""
    experts, count, groups = scales.shape
    wide = torch.zeros(experts, columns // 32, rows, dtype=torch.uint8, device=scales.device)
    wide[:, :groups, :count] = scales.transpose(1, 2)
    placed = wide.view(experts, -1, TILE_ROWS)[..., torch.tensor(SCALE_ORDER, device=scales.device)]
    pairs = placed.view(experts, -1, 4)[..., torch.tensor(PAIR_ORDER, device=scales.device)]
    return pairs.reshape(experts, columns // 32, rows)


def bias_of(bias: Tensor, rows: int) -> Tensor:
    """bf16 [E, rows] of a bias [E, N], zeros beyond N."""
    wide = torch.nn.functional.pad(bias.bfloat16(), (0, rows - bias.shape[1]))
    return wide.view(len(bias), -1, 32)[..., torch.tensor(BIAS_ORDER, device=bias.device)].reshape(len(bias), rows)
