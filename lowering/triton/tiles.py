"""Tile sizes of the Triton templates, a table a target; the first row that fits a kernel counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TILE_OF = {"sort_scatter": "sort_count"}
"""Templates that take the tile of another one."""
FACTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gate_up", "down", "experts_one_stage"), ("block", "quantised")),
    **dict.fromkeys(("decode_gate_up", "decode_down"), ("block", "quantised")),
    **dict.fromkeys(("prefill_gate_up", "prefill_down"), ("block",)),
    **dict.fromkeys(("decode_mfma_gate_up", "decode_mfma_down"), ("quantised",)),
    **dict.fromkeys(("route", "route_sort", "sort_tokens", "sort_quant", "sort_count", "sort_scan"), ("experts",)),
    **dict.fromkeys(("router", "quant", "sort_scales", "expand", "fake_quant", "combine", "quant_sort_sm_90"), ()),
    "quant_sort": ("many_slots",),
}
"""What a tile may depend on, by template: rows of a sort block, whether x comes as MXFP4, how many experts
there are, whether a row of x is in more than FEW_SLOTS slots."""
FEW_SLOTS = 4
GROUP_LANES = 4
"""Lanes that share a group in quant_sort_sm_90."""


def facts(template: str, params: Mapping[str, Any]) -> dict[str, int | bool]:
    """The facts of a kernel of `template`, which has a tile, from its params (docs/program.md)."""
    known: dict[str, Any] = {
        "block": params.get("block"),
        "quantised": params.get("x") == "f4E2M1FN",
        "experts": params.get("experts"),
        "many_slots": params.get("stage") == 1 and params["topk"] > FEW_SLOTS,
    }
    return {name: known[name] for name in FACTS[template]}


def program_groups(params: Mapping[str, Any]) -> int:
    """How many of the groups of all rows a program of quant_sort_sm_90 takes."""
    return params["num_warps"] * (32 // GROUP_LANES)


@dataclass(frozen=True)
class Tile:
    """Params of `template` for kernels of which `when` holds: equal facts, and for "experts" at most that many."""

    template: str
    params: Mapping[str, int]
    when: Mapping[str, int | bool] = field(default_factory=dict)

    def fits(self, template: str, facts: Mapping[str, int | bool]) -> bool:
        """Whether this row is for a kernel of `template` with `facts`."""
        return template == self.template and all(
            facts[name] <= wanted if name == "experts" else facts[name] == wanted for name, wanted in self.when.items()
        )


def _tile(template: str, *, num_warps: int = 4, num_stages: int = 1, when: Mapping = {}, **params: int) -> Tile:
    return Tile(template, {**params, "num_warps": num_warps, "num_stages": num_stages}, when)


def _products(quantised: bool, block: int, block_n: int, block_k: int, num_warps: int, num_stages: int) -> list[Tile]:
    """Both products of a stage each."""
    sizes = {"block_n": block_n, "block_k": block_k, "num_warps": num_warps, "num_stages": num_stages}
    when = {"quantised": quantised, "block": block}
    return [_tile("gate_up", when=when, **sizes), _tile("down", when=when, splits=1, **sizes)]


def _prefill(when: Mapping = {}, **params: int) -> list[Tile]:
    """Both prefill products of weight streams."""
    return [_tile(f"prefill_{product}", when=when, steps=4, maxnreg=128, **params) for product in ("gate_up", "down")]


A16_64 = {"quantised": False, "block": 64}
COMMON = (
    _tile("route", rows=1, num_warps=1),
    _tile("sort_count", rows=128, num_warps=4),
    _tile("sort_scan", num_warps=1),
    _tile("sort_scales", num_warps=4),
)
# A wave has 64 threads: two of them load a row of 32 groups, or 512 columns of f32, 16 bytes a thread.
CDNA = (
    _tile("quant", rows=1, groups=32, num_warps=2),
    _tile("quant_sort", rows=1, slots=1, groups=32, num_warps=2),
    # A thread a slot where k is 4 (slot_of).
    _tile("sort_tokens", rows=64, num_warps=4),
    _tile("sort_quant", rows=64, groups=64, num_warps=4),
    _tile("combine", rows=1, block_n=512, num_warps=2),
    *COMMON,
)
HOPPER = (
    _tile("quant", rows=1, groups=32, num_warps=4),
    # A thread has up to 8 values, and 8 bytes of scales with the zeros behind them.
    _tile("quant_sort", rows=1, slots=4, groups=32, num_warps=4, when={"many_slots": False}),
    _tile("quant_sort", rows=1, slots=8, groups=32, num_warps=8),
    # A program an expert, on all SMs: of 8 warps those of many experts took longer, and so did the launch behind them.
    _tile("sort_tokens", rows=64, num_warps=4),
    # Eight programs an SM: room for those of 64 tokens.
    _tile("sort_quant", rows=64, groups=32, num_warps=4, maxnreg=64),
    _tile("combine", rows=1, block_n=512, num_warps=4),
    *COMMON,
)

# Two waves a SIMD, three steps of 4 KiB of weights each under way: 102 KiB a compute unit. Not timed.
MFMA = (
    _tile("decode_mfma_gate_up", ring=3, waves=2, num_warps=1),
    _tile("decode_mfma_down", ring=3, waves=2, num_warps=1),
)
# Products: no spills, an occupancy of 2 or more, the fewest instructions a weight byte (read off the assembly).
GFX950 = (
    *CDNA,
    *MFMA,
    *_products(True, 16, block_n=64, block_k=256, num_warps=4, num_stages=2),
    *_products(True, 32, block_n=128, block_k=128, num_warps=4, num_stages=2),
    *_products(True, 64, block_n=64, block_k=256, num_warps=4, num_stages=2),
    *_products(True, 128, block_n=128, block_k=128, num_warps=8, num_stages=2),
    *_products(False, 16, block_n=64, block_k=128, num_warps=4, num_stages=2),
    *_products(False, 32, block_n=128, block_k=64, num_warps=4, num_stages=2),
    *_products(False, 64, block_n=64, block_k=128, num_warps=4, num_stages=2),
    *_products(False, 128, block_n=64, block_k=64, num_warps=4, num_stages=2),
    # The scaled MFMA of 16 rows takes 128 columns, those of the second product's slice.
    _tile("experts_one_stage", block_n=128, block_k=128, block_h=64, num_stages=2, when={"quantised": True}),
    _tile("experts_one_stage", block_n=64, block_k=64, block_h=64, num_stages=2),
)
GFX942 = (
    *CDNA,
    *MFMA,
    *_products(True, 16, block_n=64, block_k=128, num_warps=4, num_stages=2),
    *_products(True, 32, block_n=128, block_k=64, num_warps=4, num_stages=2),
    *_products(True, 64, block_n=64, block_k=64, num_warps=4, num_stages=2),
    *_products(True, 128, block_n=64, block_k=64, num_warps=4, num_stages=2),
    *_products(False, 16, block_n=64, block_k=128, num_warps=4, num_stages=2),
    *_products(False, 32, block_n=128, block_k=64, num_warps=4, num_stages=2),
    *_products(False, 64, block_n=64, block_k=64, num_warps=4, num_stages=2),
    *_products(False, 128, block_n=64, block_k=64, num_warps=4, num_stages=2),
    _tile("experts_one_stage", block_n=64, block_k=64, block_h=64, num_stages=2),
)
SM_90 = (
    *HOPPER,
    # With 8 warps a register of it is spilled.
    _tile("route_sort", rows=8, num_warps=4),
    _tile("router", rows=2, num_warps=4),
    _tile("expand", groups=4, num_warps=4),
    _tile("fake_quant", groups=32, num_warps=4),
    _tile("quant_sort_sm_90", num_warps=4),
    # 16 warps an SM: with 64 and 144 rows all in one program, which then reads x half as often.
    *_prefill(ring=3, step=192, num_warps=16, ordered=1024, when={"block": 64}),
    *_prefill(ring=2, step=64, num_warps=8, ordered=2048, when={"block": 128}),
    *_prefill(ring=2, short_ring=4, step=192, num_warps=16, ordered=2048, when={"block": 144}),
    *_prefill(ring=5, step=192, num_warps=8, ordered=0),
    _tile("decode_gate_up", when={"block": 16}, ring=8, maxnreg=128),
    _tile("decode_gate_up", ring=6, maxnreg=128),
    _tile("decode_down", ring=8, maxnreg=128),
    *_products(True, 16, block_n=64, block_k=128, num_warps=4, num_stages=3),
    *_products(True, 32, block_n=64, block_k=128, num_warps=4, num_stages=3),
    *_products(True, 64, block_n=128, block_k=64, num_warps=8, num_stages=3),
    *_products(True, 128, block_n=64, block_k=64, num_warps=8, num_stages=3),
    *_products(False, 16, block_n=128, block_k=128, num_warps=8, num_stages=3),
    *_products(False, 32, block_n=128, block_k=128, num_warps=8, num_stages=4),
    *_products(False, 64, block_n=128, block_k=64, num_warps=8, num_stages=3),
    *_products(False, 128, block_n=64, block_k=64, num_warps=8, num_stages=3),
    _tile("experts_one_stage", when=A16_64, block_n=64, block_k=64, block_h=64, num_warps=8, num_stages=2),
    _tile("experts_one_stage", block_n=64, block_k=128, block_h=64, num_stages=2),
)
