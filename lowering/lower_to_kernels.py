"""moe ops -> kernel.define and kernel.launch of a target, with competing kernels as alternatives guarded by M.

The templates, their operands and tiles are those of docs/program.md. Weight arguments change to their packed types and
get the recipe (`moe.pack`) that `runtime/pack.py` follows.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch_mlir import ir
from torch_mlir.dialects import func

from moeloom.lowering.cpu import launches as cpu
from moeloom.lowering.function import Definitions, FunctionLowering
from moeloom.lowering.targets import TARGETS, Target, TargetName
from moeloom.lowering.triton import launches as triton
from moeloom.passes.base import Pass, PassError
from moeloom.passes.report import Report


@dataclass
class LowerToKernels(Pass, name="moe-lower-to-kernels"):
    """Turn moe ops into launches of the kernels of `target`.

    `fusion` = auto keeps the fused quant + scale sort up to the target's threshold and the split pair above it, and has
    products that can round x to MXFP4 themselves do so; fused or split forces one. `layout` is that of packed weights;
    auto is the one the target prefers. Quantisations other than per_1x32, and weights that are not MXFP4, are refused
    here.
    """

    target: TargetName = "cpu"
    fusion: Literal["auto", "fused", "split"] = "auto"
    layout: Literal["auto", "n16k32", "row_major", "stream", "mfma_stream"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.row = TARGETS[self.target]

    @classmethod
    def of(cls, row: Target, **options: Any) -> "LowerToKernels":
        """The pass for a row that need not be the built-in table's, such as a tuned one."""
        made = cls(target=row.name, **options)
        made.row = row
        return made

    def run(self, module: ir.Operation, report: Report) -> None:
        """Lower every function of `module`; PassError at the op that has no kernel."""
        row = self.row
        rules = cpu.RULES if row.architecture is None else triton.RULES
        layout = row.layout if self.layout == "auto" else self.layout
        if layout not in row.layouts:
            raise PassError(
                module, f"target {row.name} has no weight layout {layout}; choose one of {', '.join(row.layouts)}"
            )
        definitions = Definitions(module)
        for op in list(module.regions[0].blocks[0].operations):
            if isinstance(op, func.FuncOp) and not op.is_external:
                FunctionLowering(op, row, self.fusion, layout, definitions, rules).lower()
