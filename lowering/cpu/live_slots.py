"""Which slots of a token have an expert here: the live token count and the expert map (docs/contract.md, section 2)."""

from __future__ import annotations

from .dsl import Buffer, Val, const, i8, i32, index, select
from .kernel_function import KernelFunction


def live_tokens(num_tokens: Buffer | None, tokens: Val) -> Val:
    """The live count as an index within 0..`tokens` (M); all tokens where there is no count."""
    if num_tokens is None:
        return tokens
    return num_tokens.load(0).max(0).min(tokens.to(i32())).to(index())


def map_operand(k: KernelFunction, kind: str) -> Buffer | None:
    """The operand expert_map for the param `map`: none, mask (one byte an expert) or index (i32, -1 remote)."""
    if kind == "none":
        return None
    return k.tensor(i8() if kind == "mask" else i32())


def local_expert(expert: Val, experts: int, table: Buffer | None) -> tuple[Val, Val]:
    """Whether the i32 `expert` is one of ours, and which: ids outside 0..experts-1 are none, as are those a table of
    local ids (i32 [experts]) gives no local id for."""
    named = expert.below(experts)
    if table is None:
        return named, expert
    local = select(named, table.load(select(named, expert, 0)), -1)
    return local.below(experts), local


def is_masked_in(expert: Val, experts: int, mask: Buffer) -> Val:
    """Whether the i32 `expert` is named and its byte of the mask is set."""
    named = expert.below(experts)
    return named & mask.load(select(named, expert, 0)).ne(const(0, i8()))
