"""The `kernel` dialect: a straight list of launches, with alternatives guarded by the number of tokens M.

Sizes are affine maps of one symbol-free dimension, M: `grid` has one or more results, whose minimum is the number of
tiles; `result_shapes` has one map a result. So sizes are known to the runtime from M alone, without reading the device.
"""

from collections.abc import Sequence
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import ext

OPERANDS, RESULTS = 14, 4
"""How many operands (M included) and results an op of this dialect may have. IRDL binds a variadic operand to one type for
all its values, so values of different types need a slot each: optional operands, counted by the segment sizes."""


def segments(used: int, slots: int) -> ir.DenseI32ArrayAttr:
    """The segment sizes of an op that fills the first `used` of its slots."""
    return ir.DenseI32ArrayAttr.get([1] * used + [0] * (slots - used))


def create(
    name: str,
    operands: Sequence[ir.Value],
    results: Sequence[ir.Type],
    attributes: dict[str, ir.Attribute],
    regions: int = 0,
) -> ir.Operation:
    """An op of this dialect at the insertion point, its segment sizes filled in."""
    sized = dict(attributes)
    if name != "kernel.alternatives":
        sized["operandSegmentSizes"] = segments(len(operands), OPERANDS if name == "kernel.launch" else RESULTS)
    if name != "kernel.yield":
        sized["resultSegmentSizes"] = segments(len(results), RESULTS)
    return ir.Operation.create(name, results=results, operands=operands, attributes=sized, regions=regions)


class Kernel(ext.Dialect, name="kernel"):
    """Programs of launches."""


class DefineOp(Kernel.Operation, name="define"):
    """A kernel to build: `template` of the target, specialised by the dictionary `params`.

    "kernel.define"() {sym_name = "quant_sort_0", template = "quant_sort", params = {columns = 2880 : i64, ...}} : () -> ()
    """

    sym_name: ir.StringAttr
    template: ir.StringAttr
    params: ir.DictAttr


class LaunchOp(Kernel.Operation, name="launch", traits=[ext.Pure]):
    """Run `kernel` once for each tile of `grid`.

    The kernel receives a pointer for each operand (followed by its row stride in elements where `strided` names the
    operand), a pointer for each result, and M.

        %q, %s = "kernel.launch"(%m, %x, %ids, %nv) {kernel = @quant_sort_0, grid = affine_map<(m) -> (m * 4)>,
                 result_shapes = [affine_map<(m) -> (m, 2880)>, affine_map<(m) -> (m * 4 + 1024, 96)>],
                 strided = array<i64: 0>} : (index, tensor<?x2880xbf16>, ...) -> (...)
    """

    m: ext.Operand[ir.IndexType]
    __annotations__ |= {f"operand{i}": ext.Operand[Any] | None for i in range(1, OPERANDS)}
    __annotations__ |= {f"result{i}": ext.Result[Any] | None for i in range(RESULTS)}
    kernel: ir.FlatSymbolRefAttr
    grid: ir.AffineMapAttr
    result_shapes: ir.ArrayAttr
    strided: Any

    def verify_region_invariants(self) -> bool:
        if len(self.result_shapes) != len(self.results):
            self.location.emit_error(
                f"'kernel.launch' has {len(self.results)} results and {len(self.result_shapes)} result_shapes"
            )
            return False
        for number, (out, shape) in enumerate(zip(self.results, self.result_shapes, strict=True)):
            results = len(shape.value.results) if isinstance(shape, ir.AffineMapAttr) else 0
            if results != out.type.rank:
                self.location.emit_error(
                    f"'kernel.launch' result {number} has rank {out.type.rank}; its shape map has {results} results"
                )
                return False
        return True


class AlternativesOp(Kernel.Operation, name="alternatives"):
    """`first` where M <= max_m, else `second`: two ways to the same values, chosen by M alone.

    %q, %s = "kernel.alternatives"(%m) ({ ...fused...; "kernel.yield"(%a, %b) }, { ...split... })
             {max_m = 512 : i64, reason = "..."} : (index) -> (...)
    """

    m: ext.Operand[ir.IndexType]
    __annotations__ |= {f"result{i}": ext.Result[Any] | None for i in range(RESULTS)}
    first: ext.Region
    second: ext.Region
    max_m: ir.IntegerAttr
    reason: ir.StringAttr

    def verify_region_invariants(self) -> bool:
        wanted = [out.type for out in self.results]
        for name, region in (("first", self.first), ("second", self.second)):
            if len(region.blocks) != 1:
                self.location.emit_error(
                    f"'kernel.alternatives' {name} region has {len(region.blocks)} blocks; it must have 1"
                )
                return False
            body = list(region.blocks[0].operations)
            found = [v.type for v in body[-1].operands] if body and body[-1].name == "kernel.yield" else None
            if found != wanted:
                self.location.emit_error(
                    f"'kernel.alternatives' {name} region must end in kernel.yield of the op's result types"
                )
                return False
        return True


class YieldOp(Kernel.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends an alternative."""

    __annotations__ = {f"value{i}": ext.Operand[Any] | None for i in range(RESULTS)}
