"""What each target is: sizes, thresholds and switches. Numbers are measured (the command stands beside each)."""

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["cpu"]


class UnknownTargetError(Exception):
    """A target name that is not in the table."""


@dataclass(frozen=True)
class Target:
    """One row of the target table.

    `sort_block` is the rows of a sort block (contract: BM). `fused_rows` holds, for stage 1 and 2, the most routed
    rows (M*k) at which the fused quant + scale sort is not slower than the split pair. `stages` is what `--stages auto`
    means.
    """

    name: TargetName
    sort_block: Literal[16, 32, 64, 128]
    fused_rows: tuple[int, int]
    stages: Literal[1, 2]

    def fused_tokens(self, stage: int, topk: int) -> int:
        """The largest M that takes the fused kernel. With k = 1, stage 1 quantises nothing twice, as stage 2."""
        return self.fused_rows[1 if topk == 1 else stage - 1] // topk


TARGETS: dict[str, Target] = {
    # `python benchmarks/quant_sort.py`, H = 2880, 2 threads of a Sapphire Rapids: stage 1 with k = 4 is even at M = 1,
    # 1.1 to 2.8 times the split pair above (a token is quantised k times); stage 2 takes 0.74 to 0.99 up to 16384.
    "cpu": Target("cpu", sort_block=32, fused_rows=(4, 16384), stages=2),
}


def target(name: str) -> Target:
    """The table's row of `name`; UnknownTargetError lists what there is."""
    if name not in TARGETS:
        raise UnknownTargetError(f"unknown target {name!r}; this version compiles for: {', '.join(TARGETS)}")
    return TARGETS[name]
