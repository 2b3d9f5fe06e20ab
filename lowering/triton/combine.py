"""Template `combine`: out[token] = the sum of its experts' weighted rows in slot order, in f32."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependents import follow
from .live_slots import expert_of, live_tokens, optional_constants, optional_operands
from .template import POINTERS, Params, Template

_IN_FLIGHT = tl.constexpr(8)
"""Rows whose loads are issued together: more would hold an address each in registers."""


@triton.jit
def combine_kernel(
    rows,
    ids,
    num_tokens,
    expert_map,
    out,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    MAP: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile is ROWS tokens by BLOCK_N columns. Rows without an expert hold anything, NaN too: they are not read."""
    follow(TARGET)
    column_tiles: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    token = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < COLUMNS
    live = token < live_tokens(num_tokens, M)
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    # Not a constant: LLVM would unroll the whole sum over many splits and run out of registers.
    splits = tl.where(M > 0, SPLITS, 0)
    split_stride = tl.cast(M, tl.int64) * (TOPK * COLUMNS)
    for slot in tl.range(TOPK, loop_unroll_factor=max(1, min(TOPK, _IN_FLIGHT // SPLITS))):
        row = token.to(tl.int64) * TOPK + slot
        named = tl.load(ids + row, mask=live, other=-1)
        here = expert_of(named, expert_map, EXPERTS, MAP) >= 0
        value = tl.zeros([ROWS, BLOCK_N], tl.float32)
        for split in tl.range(splits, loop_unroll_factor=min(SPLITS, _IN_FLIGHT)):
            start = row * COLUMNS + split * split_stride
            value += tl.load(rows + start[:, None] + column[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        total += value
    start = token.to(tl.int64) * COLUMNS
    written = (token < M)[:, None] & inside[None, :]
    tl.store(out + start[:, None] + column[None, :], total.to(out.dtype.element_ty), mask=written)


def _arguments(params: Params) -> list[tuple[str, str]]:
    return [("rows", "*fp32"), ("ids", "*i32"), *optional_operands(params), ("out", POINTERS[params["out"]])]


def _constants(params: Params) -> dict[str, object]:
    sizes = {name.upper(): params[name] for name in ("columns", "splits", "rows", "block_n")}
    return optional_constants(params) | sizes


COMBINE = Template(combine_kernel, _arguments, _constants)
