"""moe ops -> kernel.define and kernel.launch, with the fused and the split quantiser as alternatives guarded by M.

The templates, their operands and tiles are those of docs/program.md. Weight arguments change to their packed types and
get the recipe (`moe.pack`) that `runtime/pack.py` follows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch_mlir import ir
from torch_mlir.dialects import arith, func, tensor

from moeloom.dialects import kernel, moe
from moeloom.lowering import packing, sizes
from moeloom.lowering.targets import TARGETS, Target, TargetName
from moeloom.passes.base import Pass, PassError
from moeloom.passes.report import Report

ROWS_A_TILE = 32
"""Sorted rows that one tile of a scale kernel handles: the height of a tile of the tiled layout."""
OUTPUTS_A_TILE = 16
"""Output rows of a weight tile (n16k32)."""

Params = dict[str, int | str | bool | float]


@dataclass
class LowerToKernels(Pass, name="moe-lower-to-kernels"):
    """Turn moe ops into launches of the kernels of `target`.

    `fusion` = auto keeps the fused quant + scale sort up to the target's threshold and the split pair above it; fused
    or split forces one. Quantisations other than per_1x32, and weights that are not MXFP4, are refused here.
    """

    target: TargetName = "cpu"
    fusion: Literal["auto", "fused", "split"] = "auto"

    def run(self, module: ir.Operation, report: Report) -> None:
        """Lower every function of `module`; PassError at the op that has no kernel."""
        definitions = Definitions(module)
        for op in list(module.regions[0].blocks[0].operations):
            if isinstance(op, func.FuncOp) and not op.is_external:
                _Function(op, TARGETS[self.target], self.fusion, definitions).lower()


class Definitions:
    """The kernel.define ops of a module: one for each distinct template and parameters."""

    def __init__(self, module: ir.Operation):
        self.module, self.names = module, dict[tuple, str]()

    def name(self, template: str, params: Params) -> str:
        """The symbol of the kernel, defined at the top of the module when it is new."""
        key = (template, tuple(sorted(params.items())))
        if key not in self.names:
            number = sum(known[0] == template for known in self.names)
            self.names[key] = f"{template}_{number}"
            with ir.InsertionPoint.at_block_begin(self.module.regions[0].blocks[0]), ir.Location.unknown():
                kernel.DefineOp(
                    ir.StringAttr.get(self.names[key]),
                    ir.StringAttr.get(template),
                    ir.DictAttr.get({name: _attribute(value) for name, value in params.items()}),
                )
        return self.names[key]


def _attribute(value: int | str | bool | float) -> ir.Attribute:
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F64Type.get(), value)
    return ir.StringAttr.get(value)


class _Function:
    """Lowers one function: its moe ops in order, then its weight arguments."""

    def __init__(self, function: func.FuncOp, target: Target, fusion: str, definitions: Definitions):
        self.function, self.target, self.fusion, self.definitions = function, target, fusion, definitions
        self.packs: dict[int, tuple[ir.Type, ir.DictAttr]] = {}

    def lower(self) -> None:
        block = self.function.entry_block
        work = [op for op in block.operations if op.operation.name.startswith("moe.")]
        if not work:
            return
        self.m = self._tokens(block)
        for op in work:
            lowering = _LOWERINGS.get(type(op))
            if lowering is None:
                raise PassError(op, f"'{op.operation.name}' has no kernel for target {self.target.name}; plan it first")
            self.op = op.operation.name
            with ir.InsertionPoint(op), op.location:
                results = lowering(self, op)
            for old, new in zip(op.results, results, strict=True):
                old.replace_all_uses_with(new)
            op.operation.erase()
        self._retype_weights(block)

    def _tokens(self, block: ir.Block) -> ir.Value:
        """M: the dynamic first dimension of the first input that has one."""
        for argument in block.arguments:
            if (
                isinstance(argument.type, ir.RankedTensorType)
                and argument.type.rank
                and argument.type.is_dynamic_dim(0)
            ):
                with ir.InsertionPoint.at_block_begin(block), self.function.location:
                    return tensor.dim(argument, arith.constant(ir.IndexType.get(), 0))
        for argument in block.arguments:
            uses = [use.owner for use in argument.uses if use.owner.name == "torch_c.to_builtin_tensor"]
            if uses and uses[0].results[0].type.is_dynamic_dim(0):
                with ir.InsertionPoint.at_block_begin(block), self.function.location:
                    cast = uses[0]
                    cast.move_before(block.operations[0])
                    zero = arith.constant(ir.IndexType.get(), 0)
                    return tensor.dim(cast.results[0], zero)
        raise PassError(
            self.function,
            f"@{self.function.name.value} has no input of type tensor<?x...>; its token dimension must be dynamic",
        )

    def _retype_weights(self, block: ir.Block) -> None:
        attrs = [dict(_named(a)) for a in self.function.arg_attrs] if "arg_attrs" in self.function.attributes else []
        attrs = attrs or [{} for _ in block.arguments]
        for number, (kind, recipe) in self.packs.items():
            block.arguments[number].set_type(kind)
            attrs[number]["moe.pack"] = recipe
        inputs = [argument.type for argument in block.arguments]
        self.function.attributes["function_type"] = ir.TypeAttr.get(
            ir.FunctionType.get(inputs, self.function.type.results)
        )
        self.function.arg_attrs = [ir.DictAttr.get(a) for a in attrs]

    def weight(self, value: ir.Value | None, kind: str, rows: str, op: ir.OpView) -> list[ir.Value]:
        """The weight argument `value`, to be packed as `kind`; nothing where there is none."""
        if value is None:
            return []
        if not isinstance(value, ir.BlockArgument) or "arg_attrs" not in self.function.attributes:
            raise PassError(
                op, f"the {kind} of '{op.OPERATION_NAME}' is computed; it must be a function argument with moe.weight"
            )
        attrs = dict(_named(self.function.arg_attrs[value.arg_number]))
        if "moe.weight" not in attrs:
            raise PassError(
                op, f'argument {value.arg_number} is used as {kind}; give it moe.weight = "name in the checkpoint"'
            )
        if kind == "payload" and str(value.type.element_type) != "f4E2M1FN":
            raise PassError(
                op,
                f"expert weights are {value.type.element_type}; this target multiplies MXFP4: "
                "compile with --quantize-weights mxfp4 (moe-quantize-weights)",
            )
        packed = packing.packed_type(kind, list(value.type.shape)), packing.recipe(kind, rows, attrs)
        if self.packs.setdefault(value.arg_number, packed) != packed:
            raise PassError(op, f"argument {value.arg_number} is needed in two packed layouts; pass the weight twice")
        return [value]

    def launch(
        self,
        template: str,
        params: Params,
        operands: Sequence[ir.Value],
        results: Sequence[tuple[ir.Type, Sequence[sizes.Expr]]],
        grid: Sequence[sizes.Expr],
        strided: Sequence[int] = (),
    ) -> list[ir.Value]:
        """A launch at the insertion point; `results` are (type, shape in M)."""
        op = kernel.create(
            "kernel.launch",
            [self.m, *operands],
            [kind for kind, _ in results],
            {
                "moe.op": ir.StringAttr.get(self.op),
                "kernel": ir.FlatSymbolRefAttr.get(self.definitions.name(template, params)),
                "grid": sizes.affine_map(*grid),
                "result_shapes": ir.ArrayAttr.get([sizes.affine_map(*shape) for _, shape in results]),
                "strided": ir.DenseI64ArrayAttr.get(list(strided)),
            },
        )
        return list(op.results)

    def quant(self, op, x: ir.Value, codes: ir.Type, rows: sizes.Expr) -> list[ir.Value]:
        """quant per_1x32 of `rows` rows: codes and row-major scales."""
        columns = moe.size(x, -1)
        scales = ir.RankedTensorType.get(
            [ir.ShapedType.get_dynamic_size(), columns // moe.GROUP], ir.Float8E8M0FNUType.get()
        )
        params: Params = {"columns": columns, "x": _float(x), "scale_mode": op.scale_mode.value}
        shapes = [(codes, (rows, columns)), (scales, (rows, columns // moe.GROUP))]
        return self.launch("quant", params, [x], shapes, [rows], strided=[0])

    def sort_scales(self, op, scales: ir.Value) -> list[ir.Value]:
        sort, result = _sort(op), op.sorted_scales.type
        columns = moe.size(scales, -1)
        shape = _sorted_shape(sort, moe.scale_columns(columns * moe.GROUP, op.layout.value))
        params: Params = {"columns": columns, **_placement(op)}
        return self.launch(
            "sort_scales", params, [scales, op.sorted_ids, op.num_valid], [(result, shape)], _row_tiles(sort)
        )

    def bf16_rows(self, op, x: ir.Value, scales: ir.Value | None, stage: int) -> ir.Value:
        """What an expert product reads: x itself (A16), or its codes times their sorted scales as bf16 (A4)."""
        if scales is None:
            return x
        if str(x.type.element_type) != "f4E2M1FN":
            raise PassError(
                op, f"'{op.OPERATION_NAME}' reads {x.type.element_type}; target {self.target.name} takes per_1x32 only"
            )
        sort, columns = _sort(op), moe.size(x, -1)
        rows = sizes.tokens() * (1 if stage == 1 else op.topk.value)
        kind = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), columns], ir.BF16Type.get())
        params: Params = {"columns": columns, "stage": stage, "topk": op.topk.value, "layout": _layout(op, scales)}
        operands = [x, scales, op.sorted_ids, op.num_valid]
        return self.launch("expand", params, operands, [(kind, (rows, columns))], _row_tiles(sort), strided=[0])[0]


def _named(attrs: ir.DictAttr) -> list[tuple[str, ir.Attribute]]:
    return [(attrs[i].name, attrs[i].attr) for i in range(len(attrs))]


def _float(value: ir.Value) -> str:
    return str(value.type.element_type)


def _placement(op) -> Params:
    return {"stage": op.stage.value, "topk": op.topk.value, "layout": op.layout.value}


def _layout(op, scales: ir.Value) -> str:
    owner = scales.owner
    if isinstance(owner, ir.Block) or "moe.layout" not in owner.attributes:
        raise PassError(op, f"the sorted scales of '{op.OPERATION_NAME}' must come from a sort in the same function")
    return owner.attributes["moe.layout"].value


def _sort(op) -> "SortSizes":
    """The sizes of the token sort whose list `op` reads."""
    owner = op.sorted_ids.owner
    if isinstance(owner, ir.Block) or "moe.sort" not in owner.attributes:
        raise PassError(op, f"sorted_ids of '{op.OPERATION_NAME}' must come from moe.sort_tokens in the same function")
    topk, experts, block = (a for a in owner.attributes["moe.sort"])
    return SortSizes(topk, experts, block)


@dataclass(frozen=True)
class SortSizes:
    """k, E and BM of a token sort, from which every size of the sorted list follows."""

    topk: int
    experts: int
    block: int


def _blocks(sort: SortSizes) -> list[ir.AffineExpr]:
    return sizes.live_blocks(sort.topk, sort.experts, sort.block)


def _row_tiles(sort: SortSizes) -> list[ir.AffineExpr]:
    return [sizes.ceildiv(blocks * sort.block, ROWS_A_TILE) for blocks in _blocks(sort)]


def _sorted_shape(sort: SortSizes, columns: int) -> tuple[sizes.Expr, sizes.Expr]:
    return sizes.round_up(sizes.capacity(sort.topk, sort.experts, sort.block), ROWS_A_TILE), columns


def _rows_of_stage(stage: int, topk: int) -> ir.AffineExpr:
    return sizes.tokens() * (1 if stage == 1 else topk)


def _optional(*values: ir.Value | None) -> list[ir.Value]:
    return [value for value in values if value is not None]


def _map_kind(expert_map: ir.Value | None) -> str:
    if expert_map is None:
        return "none"
    return "mask" if str(expert_map.type.element_type) == "i1" else "index"


def _route(lower: _Function, op: moe.RouteOp) -> list[ir.Value]:
    params: Params = {
        "experts": moe.size(op.logits, -1),
        "topk": op.topk.value,
        "score": op.score.value,
        "renormalise": bool(op.renormalise.value),
        "scale": op.scale.value,
        "groups": op.groups.value,
        "top_groups": op.top_groups.value,
        "logits": _float(op.logits),
        "has_bias": op.correction_bias is not None,
        "has_num_tokens": op.num_tokens is not None,
    }
    shape = (sizes.tokens(), op.topk.value)
    operands = [op.logits, *_optional(op.correction_bias, op.num_tokens)]
    shapes = [(op.weights.type, shape), (op.ids.type, shape)]
    return lower.launch("route", params, operands, shapes, [sizes.tokens()], strided=[0])


def _sort_tokens(lower: _Function, op: moe.SortTokensOp) -> list[ir.Value]:
    sort = SortSizes(moe.size(op.ids, -1), op.experts.value, op.block.value)
    params: Params = {
        "experts": sort.experts,
        "topk": sort.topk,
        "block": sort.block,
        "has_num_tokens": op.num_tokens is not None,
        "map": _map_kind(op.expert_map),
    }
    rows = sizes.capacity(sort.topk, sort.experts, sort.block)
    shapes = [
        (op.sorted_ids.type, (rows,)),
        (op.sorted_weights.type, (rows,)),
        (op.expert_ids.type, (sizes.ceildiv(rows, sort.block),)),
        (op.num_valid.type, (2,)),
    ]
    operands = [op.ids, op.weights, *_optional(op.num_tokens, op.expert_map)]
    results = lower.launch("sort_tokens", params, operands, shapes, [1])
    results[0].owner.attributes["moe.sort"] = ir.DenseI64ArrayAttr.get([sort.topk, sort.experts, sort.block])
    return results


def _quant(lower: _Function, op: moe.QuantOp) -> list[ir.Value]:
    if op.kind.value != "per_1x32":
        raise PassError(
            op,
            f"'moe.quant' of kind {op.kind.value} has no kernel for target {lower.target.name}; it takes per_1x32 only",
        )
    return lower.quant(op, op.x, op.codes.type, _rows_like(op.x, lower))


def _rows_like(x: ir.Value, lower: _Function) -> sizes.Expr:
    """Rows of a value as a function of M: those its launch states, else M."""
    if not x.type.is_dynamic_dim(0):
        return sizes.constant(x.type.get_dim_size(0))
    owner = x.owner
    if isinstance(owner, ir.Block) or owner.name != "kernel.launch":
        return sizes.tokens()
    number = ir.OpResult(x).result_number
    return owner.attributes["result_shapes"][number].value.results[0]


def _sort_scales(lower: _Function, op: moe.SortScalesOp) -> list[ir.Value]:
    if str(op.scales.type.element_type) != "f8E8M0FNU":
        raise PassError(
            op, f"'moe.sort_scales' of {op.scales.type.element_type} scales has no kernel; it takes f8E8M0FNU only"
        )
    results = lower.sort_scales(op, op.scales)
    results[0].owner.attributes["moe.layout"] = op.layout
    return results


def _quant_sort(lower: _Function, op: moe.QuantSortOp) -> list[ir.Value]:
    """The fused kernel, the split pair, or both with the target's threshold between them."""

    def fused() -> list[ir.Value]:
        sort, columns = _sort(op), moe.size(op.x, -1)
        shape = _sorted_shape(sort, moe.scale_columns(columns, op.layout.value))
        rows = _rows_of_stage(op.stage.value, op.topk.value)
        params: Params = {"columns": columns, "x": _float(op.x), "scale_mode": op.scale_mode.value, **_placement(op)}
        results = [(op.codes.type, (rows, columns)), (op.sorted_scales.type, shape)]
        operands = [op.x, op.sorted_ids, op.num_valid]
        return lower.launch("quant_sort", params, operands, results, _row_tiles(sort), strided=[0])

    def split() -> list[ir.Value]:
        codes, scales = lower.quant(op, op.x, op.codes.type, _rows_of_stage(op.stage.value, op.topk.value))
        return [codes, *lower.sort_scales(op, scales)]

    if lower.fusion != "auto":
        results = fused() if lower.fusion == "fused" else split()
    else:
        limit = lower.target.fused_tokens(op.stage.value, op.topk.value)
        results = _alternatives(lower, op, limit, fused, split)
    results[1].owner.attributes["moe.layout"] = op.layout
    return results


def _alternatives(lower: _Function, op, limit: int, first: Callable, second: Callable) -> list[ir.Value]:
    rows = lower.target.fused_rows[op.stage.value - 1]
    why = f"stage {op.stage.value}: fused quant + scale sort up to {rows} routed rows on {lower.target.name}"
    guard = kernel.create(
        "kernel.alternatives",
        [lower.m],
        [op.codes.type, op.sorted_scales.type],
        {
            "max_m": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), limit),
            "reason": ir.StringAttr.get(why),
        },
        regions=2,
    )
    for region, build in zip(guard.regions, (first, second), strict=True):
        with ir.InsertionPoint(region.blocks.append()):
            kernel.create("kernel.yield", build(), [], {})
    return list(guard.results)


def _gate_up(lower: _Function, op: moe.GateUpOp) -> list[ir.Value]:
    sort, hidden, rows = _sort(op), moe.size(op.x, -1), moe.size(op.out, -1)
    x = lower.bf16_rows(op, op.x, op.x_scales, 1)
    params: Params = {
        "hidden": hidden,
        "intermediate": rows,
        **_product(op, x),
        **_activation(op),
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
    }
    order = f"gate_up_{op.gate_up_order.value}"
    operands = [
        *(x, op.sorted_ids, op.expert_ids, op.num_valid, *_optional(op.sorted_weights)),
        *lower.weight(op.weight, "payload", order, op),
        *lower.weight(op.weight_scales, "scales", order, op),
        *lower.weight(op.bias, "bias", order, op),
    ]
    grid = [blocks * (rows // OUTPUTS_A_TILE) for blocks in _blocks(sort)]
    result = (op.out.type, (_rows_of_stage(2, sort.topk), rows))
    return lower.launch("gate_up", params, operands, [result], grid, strided=[0])


def _down(lower: _Function, op: moe.DownOp) -> list[ir.Value]:
    sort, columns, rows = _sort(op), moe.size(op.x, -1), moe.size(op.out, -1)
    x = lower.bf16_rows(op, op.x, op.x_scales, 2)
    params: Params = {
        "hidden": rows,
        "intermediate": columns,
        **_product(op, x),
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
    }
    operands = [
        *(x, op.sorted_ids, op.expert_ids, op.num_valid, *_optional(op.sorted_weights)),
        *lower.weight(op.weight, "payload", "plain", op),
        *lower.weight(op.weight_scales, "scales", "plain", op),
        *lower.weight(op.bias, "bias", "plain", op),
    ]
    grid = [blocks * (rows // OUTPUTS_A_TILE) for blocks in _blocks(sort)]
    result = (op.out.type, (_rows_of_stage(2, sort.topk), rows))
    return lower.launch("down", params, operands, [result], grid)


def _one_stage(lower: _Function, op: moe.ExpertsOneStageOp) -> list[ir.Value]:
    sort, hidden = _sort(op), moe.size(op.x, -1)
    intermediate = moe.size(op.gate_up, 1 if op.weight_order.value == "nk" else 2) // 2
    x = lower.bf16_rows(op, op.x, op.x_scales, 1)
    params: Params = {
        "hidden": hidden,
        "intermediate": intermediate,
        **_product(op, x),
        **_activation(op),
        "requantize": op.scale_mode.value,
        "routing_weight_stage": op.routing_weight_stage.value,
        "has_gate_up_bias": op.gate_up_bias is not None,
        "has_down_bias": op.down_bias is not None,
    }
    order = f"gate_up_{op.gate_up_order.value}"
    operands = [
        *(x, op.sorted_ids, op.expert_ids, op.num_valid, op.sorted_weights),
        *lower.weight(op.gate_up, "payload", order, op),
        *lower.weight(op.gate_up_scales, "scales", order, op),
        *lower.weight(op.gate_up_bias, "bias", order, op),
        *lower.weight(op.down, "payload", "plain", op),
        *lower.weight(op.down_scales, "scales", "plain", op),
        *lower.weight(op.down_bias, "bias", "plain", op),
    ]
    rows = _rows_of_stage(2, sort.topk)
    scratch = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), intermediate], ir.BF16Type.get())
    results = [(op.out.type, (rows, hidden)), (scratch, (rows, intermediate))]
    return lower.launch("experts_one_stage", params, operands, results, _blocks(sort), strided=[0])[:1]


def _product(op, x: ir.Value) -> Params:
    return {"topk": op.topk.value, "block": op.block.value, "x": _float(x)}


def _activation(op) -> Params:
    return {"activation": op.activation.value, "alpha": op.alpha.value, "limit": op.limit.value}


def _combine(lower: _Function, op: moe.CombineOp) -> list[ir.Value]:
    sort_map = op.expert_map
    experts = moe.dims(sort_map)[0] if sort_map is not None else 0
    params: Params = {
        "columns": moe.size(op.rows, -1),
        "topk": moe.size(op.ids, -1),
        "experts": experts or _experts_of(op),
        "out": _float(op.out),
        "has_num_tokens": op.num_tokens is not None,
        "map": _map_kind(sort_map),
    }
    operands = [op.rows, op.ids, *_optional(op.num_tokens, sort_map)]
    shape = (sizes.tokens(), moe.size(op.rows, -1))
    return lower.launch("combine", params, operands, [(op.out.type, shape)], [sizes.tokens()])


def _experts_of(op: moe.CombineOp) -> int:
    """E of the sort that read the same ids: combine leaves out the ids that the sort did."""
    for use in op.ids.uses:
        if "moe.sort" in use.owner.attributes:
            return list(use.owner.attributes["moe.sort"])[1]
    raise PassError(op, "the ids of 'moe.combine' must be those of a moe.sort_tokens in the same function")


_LOWERINGS: dict[type, Callable[[_Function, ir.OpView], list[ir.Value]]] = {
    moe.RouteOp: _route,
    moe.SortTokensOp: _sort_tokens,
    moe.QuantOp: _quant,
    moe.SortScalesOp: _sort_scales,
    moe.QuantSortOp: _quant_sort,
    moe.GateUpOp: _gate_up,
    moe.DownOp: _down,
    moe.ExpertsOneStageOp: _one_stage,
    moe.CombineOp: _combine,
}
