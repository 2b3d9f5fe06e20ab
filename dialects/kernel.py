"""The `kernel` dialect: a straight list of launches, with alternatives guarded by the number of tokens M.

Sizes are affine maps of one symbol-free dimension, M: `grid` has one or more results, whose minimum is the number of
tiles; `result_shapes` has one map a result. So sizes are known to the runtime from M alone, without reading the device.
"""

from collections.abc import Sequence
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import ext

from moeloom.dialects.rules import checked, one_of, require

# How many operands (M included) and results an op of this dialect may have. IRDL binds a variadic operand to one type
# for all its values, so values of different types need a slot each: optional operands, counted by the segment sizes.
OPERANDS, RESULTS = 14, 9
CHOICES = ("fusion", "linear", "sort", "prologue", "routing", "tokens")


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
    if name == "kernel.exchange":
        return ir.Operation.create(name, results=results, attributes=sized)
    if name != "kernel.alternatives":
        sized["operandSegmentSizes"] = segments(len(operands), OPERANDS if name == "kernel.launch" else RESULTS)
    if name != "kernel.yield":
        sized["resultSegmentSizes"] = segments(len(results), RESULTS)
    return ir.Operation.create(name, results=results, operands=operands, attributes=sized, regions=regions)


def alternatives(m: ir.Value, choice: str, limit: int, reason: str, results: Sequence[ir.Type]) -> ir.Operation:
    """A kernel.alternatives at the insertion point whose two regions are still empty."""
    attributes: dict[str, ir.Attribute] = {
        "choice": ir.StringAttr.get(choice),
        "max_m": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), limit),
        "reason": ir.StringAttr.get(reason),
    }
    return create("kernel.alternatives", [m], results, attributes, regions=2)


class Kernel(ext.Dialect, name="kernel"):
    """Programs of launches."""


class DefineOp(Kernel.Operation, name="define"):
    """A kernel to build: `template` of the target, specialised by the dictionary `params` (listed in docs/program.md).

        "kernel.define"() {sym_name = "quant_sort_0", template = "quant_sort",
                           params = {columns = 2880 : i64}} : () -> ()

    Launches name it by its symbol.
    """

    sym_name: ir.StringAttr
    template: ir.StringAttr
    params: ir.DictAttr


class LaunchOp(Kernel.Operation, name="launch", traits=[ext.Pure]):
    """Run `kernel` once for each tile of `grid`.

    The kernel receives a pointer for each operand (followed by its row stride in elements where `strided` names the
    operand, counted after M), a pointer for each result, and M.

        %q, %s = "kernel.launch"(%m, %x, %ids, %nv) {kernel = @quant_sort_0, grid = affine_map<(m) -> (m * 4)>,
                 result_shapes = [affine_map<(m) -> (m, 2880)>, affine_map<(m) -> (m * 4 + 1024, 96)>],
                 strided = array<i64: 0>, operandSegmentSizes = ..., resultSegmentSizes = ...}
                 : (index, tensor<?x2880xbf16>, ...) -> (...)

    There are 14 operand and 9 result segments, 1 for each that is used and 0 for the rest.
    """

    m: ext.Operand[ir.IndexType]
    __annotations__ |= {f"operand{i}": ext.Operand[Any] | None for i in range(1, OPERANDS)}
    __annotations__ |= {f"result{i}": ext.Result[Any] | None for i in range(RESULTS)}
    kernel: ir.FlatSymbolRefAttr
    grid: ir.AffineMapAttr
    result_shapes: ir.ArrayAttr
    strided: Any

    @checked
    def verify_region_invariants(self) -> None:
        require(sized(self.grid), f"grid is {self.grid}; it must be an affine map of M alone, with a result")
        found, wanted = len(self.result_shapes), len(self.results)
        require(found == wanted, f"has {wanted} results and {found} result_shapes; there must be one for each")
        for number, (out, sizes) in enumerate(zip(self.results, self.result_shapes, strict=True)):
            ranked = isinstance(out.type, ir.RankedTensorType)
            require(ranked, f"result {number} is {out.type}; it must be a ranked tensor")
            require(sized(sizes), f"result_shapes[{number}] is {sizes}; it must be an affine map of M alone")
            found, wanted = len(sizes.value.results), out.type.rank
            axes = f"result_shapes[{number}] has {found} results; it must have {wanted}, one for each axis"
            require(found == wanted, axes)
        numbers = isinstance(self.strided, ir.DenseI64ArrayAttr)
        require(numbers, f"strided is {self.strided}; it must be an array<i64>")
        tensors = len(self.operands) - 1
        for index in self.strided:
            require(0 <= index < tensors, f"strided names operand {index}; there are {tensors} after M")


class ExchangeOp(Kernel.Operation, name="exchange"):
    """Memory through which the programs of a launch pass sums to each other: the same for all launches of an artifact.

        %e = "kernel.exchange"() : () -> tensor<274432xi32>

    Its first words, 4096 of them, are flags: 0 before the first launch, and 0 again behind every launch that takes it.
    """

    words: ext.Result[Any]

    @checked
    def verify_region_invariants(self) -> None:
        kind = self.words.type
        fits = isinstance(kind, ir.RankedTensorType) and kind.rank == 1 and kind.has_static_shape
        fits = fits and str(kind.element_type) == "i32"
        require(fits, f"gives {kind}; it must be tensor<Nxi32> of a known number of words")


def sized(attribute: ir.Attribute) -> bool:
    """Whether an attribute is an affine map of one dimension and no symbol, with at least one result."""
    if not isinstance(attribute, ir.AffineMapAttr):
        return False
    sizes = attribute.value
    return sizes.n_dims == 1 and sizes.n_symbols == 0 and len(sizes.results) > 0


class AlternativesOp(Kernel.Operation, name="alternatives"):
    """`first` where M <= max_m, else `second`: two ways to the same values, chosen by M alone.

        %q, %s = "kernel.alternatives"(%m) ({ ...fused...; "kernel.yield"(%a, %b) : ... }, { ...split... })
                 {choice = "fusion", max_m = 512 : i64, reason = "..."} : (index) -> (...)

    `choice` says what is chosen: "fusion" (the fused quantiser or the split pair), "linear" (the router's product by a
    kernel or by ATen), "sort" (a token sort of one launch or of several), "prologue" (routing and token sort in one
    launch or in two), "routing" (gate_up finds its weights by the logits or by the sorted list) or "tokens" (a plan for
    few or for many tokens). Each region is one block that ends in a kernel.yield of the results' types.
    """

    m: ext.Operand[ir.IndexType]
    __annotations__ |= {f"result{i}": ext.Result[Any] | None for i in range(RESULTS)}
    first: ext.Region
    second: ext.Region
    choice: ir.StringAttr
    max_m: ir.IntegerAttr
    reason: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "choice", *CHOICES)
        require(self.max_m.value >= 0, f"max_m is {self.max_m.value}; it must be a number of tokens")
        wanted = listed(self.results)
        for name, region in (("first", self.first), ("second", self.second)):
            blocks = len(region.blocks)
            require(blocks == 1, f"{name} region has {blocks} blocks; it must have 1")
            last = list(region.blocks[0].operations)[-1:]
            ended = bool(last) and last[0].operation.name == "kernel.yield"
            require(ended, f"{name} region must end in kernel.yield")
            found = listed(last[0].operands)
            require(found == wanted, f"{name} region yields ({found}); it must yield ({wanted})")


def listed(values: Sequence[ir.Value]) -> str:
    """The types of `values`, as text."""
    return ", ".join(str(value.type) for value in values)


class YieldOp(Kernel.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends an alternative."""

    __annotations__ = {f"value{i}": ext.Operand[Any] | None for i in range(RESULTS)}
