"""Weights of the layout `mfma_stream` (runtime/pack_mfma.py) for products of many tokens: where its bytes lie.

The stream moves runs of 16 bytes and nothing in them, so the portable products read it by other addresses.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moeloom.runtime.stream import STEP_BYTES, STEP_SCALE_BYTES, MfmaStream

STEP, SCALES = tl.constexpr(STEP_BYTES), tl.constexpr(STEP_SCALE_BYTES)


@triton.constexpr_function
def tile_bytes(columns: int) -> int:
    """Of 64 rows."""
    return MfmaStream(1, columns).steps * STEP_BYTES


@triton.constexpr_function
def expert_bytes(rows: int, columns: int) -> int:
    """Of an expert's stream."""
    return MfmaStream(rows, columns).tiles * MfmaStream(rows, columns).steps * STEP_BYTES


@triton.jit
def gate_rows(outputs):
    """The rows of the stream that hold the gates of `outputs`; their ups lie two rows on."""
    return outputs // 2 * 4 + outputs % 2


@triton.jit
def code_places(rows, bytes, K: tl.constexpr):
    """Offsets of payload `bytes` of `rows` of a weight [.., K]: 64 a step and row, 16 a lane."""
    row = rows // 64 * tile_bytes(K) + SCALES + rows % 64 // 16 * 1024 + rows % 16 * 16
    return row + bytes // 64 * STEP + bytes % 64 // 16 * 256 + bytes % 16


@triton.jit
def scale_places(rows, groups, K: tl.constexpr):
    """Offsets of the scales of `groups` of `rows`: four a step and row, the word of a lane each."""
    return rows // 64 * tile_bytes(K) + rows % 16 * 4 + rows % 64 // 16 + groups // 4 * STEP + groups % 4 * 64
