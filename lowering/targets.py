"""What each target is: sizes, thresholds and switches. Numbers are measured (the command stands beside each)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from moeloom.lowering.packing import Layout
from moeloom.lowering.triton import tiles
from moeloom.lowering.triton.architecture import ARCHITECTURES, Architecture
from moeloom.lowering.triton.tiles import Tile

TargetName = Literal["cpu", "gfx950", "gfx942", "sm_90", "sm_80", "sm_100"]
Block = Literal[8, 16, 32, 64, 128, 144]


class UnknownTargetError(Exception):
    """A target name that is not in the table."""


@dataclass(frozen=True)
class Plan:
    """How experts are planned: rows of a sort block (contract: BM), and what `--stages auto` means.

    It holds while an expert has `rows` rows or fewer on average, with 0 for every M.
    """

    block: Block
    rows: int = 0
    stages: Literal[1, 2] = 2


@dataclass(frozen=True)
class Target:
    """One row of the target table.

    `layouts` holds the layouts of packed weights that the target has kernels for, the preferred one first, each with
    its plans, fewest tokens first; `prefill` is for what is beyond them. `fused_rows` holds, for stages 1 and 2, the
    most routed rows M*k at which the fused quant + scale sort is not slower than the split pair. `sort_tokens` is the
    largest M whose token sort is one launch, `route_sort_tokens` the largest M whose routing is in that launch too,
    `router_tokens` the largest M whose router's product is a launch of ours rather than ATen's.
    `tiles` lists the sizes of the Triton templates, the first that matches counts. `architecture` is None for the CPU.
    """

    name: TargetName
    layouts: Mapping[Layout, Sequence[Plan]]
    fused_rows: tuple[int, int]
    prefill: Plan | None = None
    sort_tokens: int = 0
    route_sort_tokens: int = 0
    router_tokens: int = 0
    architecture: Architecture | None = None
    tiles: Sequence[Tile] = ()

    def plans(self, layout: Layout) -> list[Plan]:
        """All plans for weights of a layout, fewest tokens first, the last one for every M beyond."""
        plans = [*self.layouts[layout]]
        return plans if self.prefill is None or plans[-1].rows == 0 else [*plans, self.prefill]

    @property
    def layout(self) -> Layout:
        """The preferred layout."""
        return next(iter(self.layouts))

    def fused_tokens(self, stage: int, topk: int) -> int:
        """The largest M that takes the fused kernel. With k = 1, stage 1 quantises nothing twice, as stage 2."""
        return self.fused_rows[1 if topk == 1 else stage - 1] // topk

    def tile(self, template: str, **facts: int | bool) -> Mapping[str, int]:
        """The tile sizes of `template` where `facts` hold of the kernel."""
        return next(tile.params for tile in self.tiles if tile.fits(template, facts))


STREAM = (
    Plan(block=8, rows=3),
    Plan(block=16, rows=12),
    Plan(block=32, rows=24),
    Plan(block=144),
)
"""An expert's weights are read, and widened, once a sort block: with n rows on average, spread at random, in blocks of
8 1.02 times where n = 4 and 1.41 times where n = 8. Rows that are padding cost less: half of a block of 16 in the
decode kernels, those behind 32, 48, 64, 80 or 112 rows of one of 144 in the prefill kernels; 128 rows are the average
of some M, where half of the experts have a few more. `python benchmarks/prefill_products.py` on an H200 gives the
products of gpt-oss-120b in blocks of 32 to 144 rows, `compare_layers.py` whole layers of two tables in turns
(docs/h200.md).
"""
REFERENCE_SWITCH = (2048, 8192)
"""The contract's switch (section 4), for GPUs that were not measured."""
MFMA_STREAM: Mapping[Layout, Sequence[Plan]] = MappingProxyType({"mfma_stream": [Plan(block=16, rows=16)]})


def _gpu(
    name: TargetName,
    table: Sequence[Tile],
    fused_rows: tuple[int, int] = REFERENCE_SWITCH,
    stream: Mapping[Layout, Sequence[Plan]] = MappingProxyType({}),
    untimed: Mapping[Layout, Sequence[Plan]] = MappingProxyType({}),
    route_sort_tokens: int = 0,
    router_tokens: int = 0,
) -> Target:
    """A GPU target; `stream` holds its plans for weights laid out for decoding, where it has kernels for them.

    `untimed` holds such plans that are taken only where they are asked for.
    """
    return Target(
        name,
        layouts={**stream, "row_major": [Plan(block=16, rows=16)], **untimed},
        fused_rows=fused_rows,
        prefill=Plan(block=64),
        sort_tokens=256,
        route_sort_tokens=route_sort_tokens,
        router_tokens=router_tokens,
        architecture=ARCHITECTURES[name],
        tiles=table,
    )


TARGETS: dict[str, Target] = {
    # `python benchmarks/quant_sort.py`, H = 2880, 2 threads of a Sapphire Rapids: stage 1 with k = 4 is even at M = 1,
    # 1.1 to 2.8 times the split pair above (a token is quantised k times); stage 2 takes 0.74 to 0.99 up to 16384.
    "cpu": Target("cpu", {"n16k32": [Plan(block=32)]}, fused_rows=(4, 16384)),
    "gfx950": _gpu("gfx950", tiles.GFX950, untimed=MFMA_STREAM),
    "gfx942": _gpu("gfx942", tiles.GFX942, untimed=MFMA_STREAM),
    # The same on an H200, blocks of 8 rows (docs/h200.md): in stage 1 fused takes up to 0.5 of the split pair to 512
    # rows, and in blocks of 16 and 32 up to 0.6 and 0.9; in stage 2, a launch of its own, 0.3 to 0.9 up to 2048.
    # With routing in the token sort's launch benchmarks/moe_layer.py gave 32.3 us at M = 1, before 33.3; where the pair
    # overtakes it was not timed.
    "sm_90": _gpu("sm_90", tiles.SM_90, (512, 2048), stream={"stream": STREAM}, route_sort_tokens=8, router_tokens=16),
    "sm_80": _gpu("sm_80", tiles.SM_90),
    "sm_100": _gpu("sm_100", tiles.SM_90),
}


def target(name: str) -> Target:
    """The table's row of `name`; UnknownTargetError lists what there is."""
    if name not in TARGETS:
        raise UnknownTargetError(f"unknown target {name!r}; this version compiles for: {', '.join(TARGETS)}")
    return TARGETS[name]
