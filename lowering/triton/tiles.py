"""Tile sizes of the Triton templates, a table a target; the first row that fits a kernel counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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


COMMON = (
    _tile("route", rows=1, num_warps=4),
    _tile("sort_tokens", rows=16, num_warps=8),
    _tile("sort_count", rows=64, num_warps=8),
    _tile("sort_scan", num_warps=4),
    _tile("quant", rows=1, groups=32, num_warps=4),
    _tile("sort_scales", num_warps=4),
    _tile("quant_sort", rows=4, groups=32, num_warps=4),
    _tile("combine", rows=1, block_n=1024, num_warps=4),
)

# A wave has 64 threads: two of them load a row of 32 groups, 16 bytes a thread.
CDNA = (_tile("quant", rows=1, groups=32, num_warps=2), *COMMON)

GFX950 = (
    *CDNA,
    # A16 dequantises weights in registers: with 128 columns a step, one wave a SIMD is all they leave room for.
    _tile("gate_up", block_n=64, block_k=64, num_stages=2, when={"quantised": False}),
    _tile("experts_one_stage", block_n=64, block_k=64, block_h=64, num_stages=2, when={"quantised": False}),
    _tile("gate_up", block_n=64, block_k=128, num_warps=4, num_stages=2),
    _tile("down", block_n=64, block_k=128, num_warps=4, num_stages=2, splits=1),
    _tile("experts_one_stage", block_n=64, block_k=128, block_h=64, num_warps=4, num_stages=2),
)
GFX942 = (
    *CDNA,
    _tile("gate_up", block_n=64, block_k=64, num_warps=4, num_stages=2),
    _tile("down", block_n=64, block_k=64, num_warps=4, num_stages=2, splits=1),
    _tile("experts_one_stage", block_n=64, block_k=64, block_h=64, num_warps=4, num_stages=2),
)
SM_90 = (
    *COMMON,
    _tile("gate_up", block_n=64, block_k=128, num_warps=4, num_stages=3),
    _tile("down", block_n=64, block_k=128, num_warps=4, num_stages=3, splits=1),
    _tile("experts_one_stage", block_n=64, block_k=128, block_h=64, num_warps=4, num_stages=2),
)
