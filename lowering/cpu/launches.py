"""moe ops -> launches of the CPU's kernels: templates, operands and tiles of docs/program.md."""

from collections.abc import Sequence

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering, Rules
from moeloom.lowering.operands import (
    Params,
    SortSizes,
    activation,
    blocks_of,
    combine_operands,
    element,
    layout,
    mark_sort,
    placement,
    require_block,
    require_mx_codes,
    require_mx_scales,
    require_per_1x32,
    route_operands,
    row_tiles,
    rows_of,
    rows_of_stage,
    sort_of,
    sort_params,
    sort_results,
    sorted_list,
    sorted_shape,
)

OUTPUTS_A_TILE = 16
"""Output rows of a weight tile (n16k32)."""


def _route(lower: FunctionLowering, op: moe.RouteOp) -> list[ir.Value]:
    params, operands = route_operands(op)
    shape = (sizes.tokens(), op.topk.value)
    results = [(op.weights.type, shape), (op.ids.type, shape)]
    return lower.launch("route", params, operands, results, [sizes.tokens()], strided=[0])


def _sort_tokens(lower: FunctionLowering, op: moe.SortTokensOp) -> list[ir.Value]:
    params, sort = sort_params(op)
    results = lower.launch("sort_tokens", params, list(op.operands), sort_results(op, sort), [1])
    mark_sort(results[0].owner, sort)
    return results


def _quant(lower: FunctionLowering, op: moe.QuantOp) -> list[ir.Value]:
    require_per_1x32(op, lower.target.name)
    return _quantise(lower, op, rows_of(op.x))


def _quantise(lower: FunctionLowering, op: moe.QuantOp | moe.QuantSortOp, rows: sizes.Expr) -> list[ir.Value]:
    """Codes and row-major scales of `rows` rows."""
    columns = moe.size(op.x, -1)
    groups = columns // moe.GROUP
    scales = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), groups], ir.Float8E8M0FNUType.get())
    params: Params = {"columns": columns, "x": element(op.x), "scale_mode": op.scale_mode.value}
    results = [(op.codes.type, (rows, columns)), (scales, (rows, groups))]
    return lower.launch("quant", params, [op.x], results, [rows], strided=[0])


def _sort_scales(lower: FunctionLowering, op: moe.SortScalesOp) -> list[ir.Value]:
    require_mx_scales(op)
    return _sorted(lower, op, op.scales)


def _sorted(lower: FunctionLowering, op: moe.SortScalesOp | moe.QuantSortOp, scales: ir.Value) -> list[ir.Value]:
    sort, columns = sort_of(op), moe.size(scales, -1)
    shape = sorted_shape(sort, moe.scale_columns(columns * moe.GROUP, op.layout.value))
    params: Params = {"columns": columns, **placement(op)}
    operands = [scales, op.sorted_ids, op.num_valid]
    results = lower.launch("sort_scales", params, operands, [(op.sorted_scales.type, shape)], row_tiles(sort))
    results[0].owner.attributes["moe.layout"] = op.layout
    return results


def _quant_sort(lower: FunctionLowering, op: moe.QuantSortOp) -> list[ir.Value]:
    """The fused kernel, the split pair, or both with the target's threshold between them."""
    rows, columns = rows_of_stage(op.stage.value, op.topk.value), moe.size(op.x, -1)

    def fused() -> list[ir.Value]:
        sort = sort_of(op)
        shape = sorted_shape(sort, moe.scale_columns(columns, op.layout.value))
        params: Params = {"columns": columns, "x": element(op.x), "scale_mode": op.scale_mode.value, **placement(op)}
        results = [(op.codes.type, (rows, columns)), (op.sorted_scales.type, shape)]
        operands = [op.x, op.sorted_ids, op.num_valid]
        return lower.launch("quant_sort", params, operands, results, row_tiles(sort), strided=[0])

    def split() -> list[ir.Value]:
        codes, scales = _quantise(lower, op, rows)
        return [codes, *_sorted(lower, op, scales)]

    results = lower.switch(op, fused, split)
    results[1].owner.attributes["moe.layout"] = op.layout
    return results


def _bf16_rows(lower: FunctionLowering, op, stage: int) -> ir.Value:
    """What an expert product reads: x itself (A16), or its codes times their sorted scales as bf16 (A4)."""
    if op.x_scales is None:
        return op.x
    require_mx_codes(op, lower.target.name)
    sort, columns = sort_of(op), moe.size(op.x, -1)
    kind = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), columns], ir.BF16Type.get())
    params: Params = {
        "columns": columns,
        "stage": stage,
        "topk": op.topk.value,
        "layout": layout(op, op.x_scales),
    }
    operands = [op.x, op.x_scales, op.sorted_ids, op.num_valid]
    shape = (rows_of_stage(stage, op.topk.value), columns)
    return lower.launch("expand", params, operands, [(kind, shape)], row_tiles(sort), strided=[0])[0]


def _gate_up(lower: FunctionLowering, op: moe.GateUpOp) -> list[ir.Value]:
    sort, hidden, rows = sort_of(op), moe.size(op.x, -1), moe.size(op.out, -1)
    x = _bf16_rows(lower, op, 1)
    params: Params = {
        "hidden": hidden,
        "intermediate": rows,
        **_product(lower, op, x),
        **activation(op),
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
    }
    operands = [x, *sorted_list(op), *lower.expert_weight(op, f"gate_up_{op.gate_up_order.value}")]
    result = (op.out.type, (rows_of_stage(2, sort.topk), rows))
    return lower.launch("gate_up", params, operands, [result], _product_tiles(sort, rows), strided=[0])


def _down(lower: FunctionLowering, op: moe.DownOp) -> list[ir.Value]:
    sort, columns, rows = sort_of(op), moe.size(op.x, -1), moe.size(op.out, -1)
    x = _bf16_rows(lower, op, 2)
    params: Params = {
        "hidden": rows,
        "intermediate": columns,
        **_product(lower, op, x),
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
    }
    operands = [x, *sorted_list(op), *lower.expert_weight(op, "plain")]
    result = (op.out.type, (rows_of_stage(2, sort.topk), rows))
    return lower.launch("down", params, operands, [result], _product_tiles(sort, rows))


def _one_stage(lower: FunctionLowering, op: moe.ExpertsOneStageOp) -> list[ir.Value]:
    sort, hidden = sort_of(op), moe.size(op.x, -1)
    intermediate = moe.size(op.gate_up, 1 if op.weight_order.value == "nk" else 2) // 2
    x = _bf16_rows(lower, op, 1)
    params: Params = {
        "hidden": hidden,
        "intermediate": intermediate,
        **_product(lower, op, x),
        **activation(op),
        "requantize": op.scale_mode.value,
        "routing_weight_stage": op.routing_weight_stage.value,
        "has_gate_up_bias": op.gate_up_bias is not None,
        "has_down_bias": op.down_bias is not None,
    }
    operands = [x, *sorted_list(op), *lower.one_stage_weights(op)]
    rows = rows_of_stage(2, sort.topk)
    scratch = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), intermediate], ir.BF16Type.get())
    results = [(op.out.type, (rows, hidden)), (scratch, (rows, intermediate))]
    return lower.launch("experts_one_stage", params, operands, results, blocks_of(sort), strided=[0])[:1]


def _product(lower: FunctionLowering, op, x: ir.Value) -> Params:
    require_block(op, lower.target.name, lower.layout)
    return {"topk": op.topk.value, "block": op.block.value, "x": element(x)}


def _product_tiles(sort: SortSizes, rows: int) -> Sequence[sizes.Expr]:
    return [blocks * (rows // OUTPUTS_A_TILE) for blocks in blocks_of(sort)]


def _combine(lower: FunctionLowering, op: moe.CombineOp) -> list[ir.Value]:
    params, operands = combine_operands(op)
    shape = (sizes.tokens(), moe.size(op.rows, -1))
    return lower.launch("combine", params, operands, [(op.out.type, shape)], [sizes.tokens()])


RULES = Rules(
    {
        moe.RouteOp: _route,
        moe.SortTokensOp: _sort_tokens,
        moe.QuantOp: _quant,
        moe.SortScalesOp: _sort_scales,
        moe.QuantSortOp: _quant_sort,
        moe.GateUpOp: _gate_up,
        moe.DownOp: _down,
        moe.ExpertsOneStageOp: _one_stage,
        moe.CombineOp: _combine,
    },
)
