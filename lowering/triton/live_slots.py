"""Which slots of a token have an expert here: the live token count and the expert map (docs/contract.md, section 2)."""

from __future__ import annotations

import triton
import triton.language as tl

from .template import Params

MAPS = {"mask": "*u8", "index": "*i32"}
"""Triton's type of the operand expert_map by the param `map`; "none" has no operand."""


def optional_operands(params: Params) -> list[tuple[str, str]]:
    """num_tokens and expert_map as arguments of a template, where the params say so."""
    counted = [("num_tokens", "*i32")] if params["has_num_tokens"] else []
    mapped = [("expert_map", MAPS[params["map"]])] if params["map"] != "none" else []
    return counted + mapped


def optional_constants(params: Params) -> dict[str, object]:
    """EXPERTS, TOPK, MAP, and None for those of `optional_operands` that are absent."""
    given = dict(optional_operands(params))
    absent = {name: None for name in ("num_tokens", "expert_map") if name not in given}
    return {"EXPERTS": params["experts"], "TOPK": params["topk"], "MAP": params["map"], **absent}


@triton.jit
def live_tokens(num_tokens, M, CACHE: tl.constexpr = ""):
    """The live count within 0..M; M where there is no count. CACHE: how memory is read."""
    live = M if num_tokens is None else tl.minimum(tl.maximum(tl.load(num_tokens, cache_modifier=CACHE), 0), M)
    return live


@triton.jit
def expert_of(ids, expert_map, EXPERTS: tl.constexpr, MAP: tl.constexpr, CACHE: tl.constexpr = ""):
    """The expert of each i32 id, -1 where it has none here: a global number with a mask, a local one with an index.
    CACHE: how memory is read."""
    named = (ids >= 0) & (ids < EXPERTS)
    if MAP == "none":
        found = named
    elif MAP == "mask":
        found = tl.load(expert_map + ids, mask=named, other=0, cache_modifier=CACHE) != 0
    else:
        ids = tl.load(expert_map + ids, mask=named, other=-1, cache_modifier=CACHE)
        found = (ids >= 0) & (ids < EXPERTS)
    return tl.where(found, ids, -1)
