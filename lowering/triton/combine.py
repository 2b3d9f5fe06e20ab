"""Template `combine`: out[token] = the sum of its experts' weighted rows in slot order, in f32."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependents import follow
from .live_slots import expert_of, live_tokens, optional_constants, optional_operands
from .template import POINTERS, Params, Template

_IN_FLIGHT = tl.constexpr(16)
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
    EARLY: tl.constexpr,
):
    """A tile is ROWS tokens by BLOCK_N columns. Rows without an expert hold anything, NaN too: they are not read."""
    # Which rows to read is known before they are: the ids are old then, though not to this SM's L1.
    cache: tl.constexpr = ".cg" if EARLY else ""
    if not EARLY:
        follow(TARGET)
    column_tiles: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    token = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < COLUMNS
    live = token < live_tokens(num_tokens, M, cache)
    slots = tl.arange(0, triton.next_power_of_2(TOPK))[None, :]
    places = ids + token.to(tl.int64)[:, None] * TOPK + slots
    named = tl.load(places, mask=live[:, None] & (slots < TOPK), other=-1, cache_modifier=cache)
    has_expert = (expert_of(named, expert_map, EXPERTS, MAP, cache) >= 0).to(tl.int32)
    if EARLY:
        follow(TARGET)
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    # With many splits not a constant: LLVM would unroll the whole sum and run out of registers.
    few: tl.constexpr = SPLITS <= _IN_FLIGHT
    splits = SPLITS if few else tl.where(M > 0, SPLITS, 0)
    split_stride = tl.cast(M, tl.int64) * (TOPK * COLUMNS)
    for slot in tl.range(TOPK, loop_unroll_factor=max(1, min(TOPK, _IN_FLIGHT // SPLITS))):
        row = token.to(tl.int64) * TOPK + slot
        here = tl.max(tl.where(slots == slot, has_expert, 0), 1) > 0
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
    return optional_constants(params) | sizes | {"EARLY": params["early"]}


COMBINE = Template(combine_kernel, _arguments, _constants)
