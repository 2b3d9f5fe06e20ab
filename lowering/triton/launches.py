"""moe ops -> launches of the Triton kernels: templates, operands and tiles of docs/program.md."""

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
    placement,
    require_block,
    require_mx_codes,
    require_mx_scales,
    require_per_1x32,
    row_tiles,
    rows_of,
    rows_of_stage,
    sort_of,
    sorted_list,
    sorted_shape,
)
from moeloom.lowering.sink_routes import sink_routes
from moeloom.lowering.triton.decode_launches import (
    activations,
    decode_down,
    decode_gate_up,
    decodes,
    is_old,
    only_combined,
    partial,
)
from moeloom.lowering.triton.prefill_launches import prefill_down, prefill_gate_up
from moeloom.lowering.triton.prologue_launches import lower_route, lower_sort
from moeloom.lowering.triton.quantised_reads import quantise_in_products
from moeloom.lowering.triton.router_products import launch_router_products
from moeloom.lowering.triton.tiles import facts
from moeloom.passes.base import PassError


def _quant(lower: FunctionLowering, op: moe.QuantOp) -> list[ir.Value]:
    require_per_1x32(op, lower.target.name)
    return _quantise(lower, op, rows_of(op.x), early=False)


def _quantise(
    lower: FunctionLowering, op: moe.QuantOp | moe.QuantSortOp, rows: sizes.Expr, early: bool
) -> list[ir.Value]:
    """Codes and row-major scales of `rows` rows, a multiple of M. `early`: x is read before the wait."""
    columns = moe.size(op.x, -1)
    groups = columns // moe.GROUP
    scales = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), groups], ir.Float8E8M0FNUType.get())
    params: Params = {
        "columns": columns,
        "x": element(op.x),
        "scale_mode": op.scale_mode.value,
        "factor": _factor(op, rows),
        "early": early,
        **lower.target.tile("quant"),
    }
    tiles = sizes.ceildiv(rows, params["rows"]) * -(-groups // params["groups"])
    results = [(op.codes.type, (rows, columns)), (scales, (rows, groups))]
    return lower.launch("quant", params, [op.x], results, [tiles], strided=[0])


def _factor(op: moe.QuantOp | moe.QuantSortOp, rows: sizes.Expr) -> int:
    """F where x has F*M rows."""
    factor = sizes.multiple_of_tokens(rows)
    if factor is None:
        raise PassError(op, f"x has {rows} rows; a GPU kernel takes M or a multiple of it: make the rows '?'")
    return factor


def _sort_scales(lower: FunctionLowering, op: moe.SortScalesOp) -> list[ir.Value]:
    require_mx_scales(op)
    return _sorted(lower, op, op.scales)


def _sorted(lower: FunctionLowering, op: moe.SortScalesOp | moe.QuantSortOp, scales: ir.Value) -> list[ir.Value]:
    sort, columns = sort_of(op), moe.size(scales, -1)
    shape = sorted_shape(sort, moe.scale_columns(columns * moe.GROUP, op.layout.value))
    params: Params = {"columns": columns, **placement(op), **lower.target.tile("sort_scales")}
    operands = [scales, op.sorted_ids, op.num_valid]
    results = [(op.sorted_scales.type, shape)]
    sorted_scales = lower.launch("sort_scales", params, operands, results, row_tiles(sort), strided=[0])
    sorted_scales[0].owner.attributes["moe.layout"] = op.layout
    return sorted_scales


def _quant_sort(lower: FunctionLowering, op: moe.QuantSortOp) -> list[ir.Value]:
    """The fused kernel, the split pair, or both with the target's threshold between them."""
    rows, columns = rows_of_stage(op.stage.value, op.topk.value), moe.size(op.x, -1)
    # Behind the token sort's launch, what the caller gives is old: that launch has waited for it.
    assert lower.target.architecture is not None
    early = isinstance(op.x.owner, ir.Block) and lower.target.architecture.overlaps

    def fused() -> list[ir.Value]:
        sort, padded = sort_of(op), moe.scale_columns(columns, op.layout.value)
        params: Params = {
            "columns": columns,
            "x": element(op.x),
            "scale_mode": op.scale_mode.value,
            **placement(op),
            "block": sort.block,
            "early": early,
        }
        params |= lower.target.tile("quant_sort", **facts("quant_sort", params))
        shares = -(-op.topk.value // params["slots"]) if op.stage.value == 1 else 1
        tiles = sizes.ceildiv(rows, params["rows"]) * (shares * -(-padded // params["groups"]))
        results = [(op.codes.type, (rows, columns)), (op.sorted_scales.type, sorted_shape(sort, padded))]
        operands = [op.x, op.sorted_ids.owner.results[-1], op.num_valid]
        return lower.launch("quant_sort", params, operands, results, [tiles], strided=[0])

    def split() -> list[ir.Value]:
        codes, scales = _quantise(lower, op, rows, early)
        return [codes, *_sorted(lower, op, scales)]

    results = lower.switch(op, fused, split)
    results[1].owner.attributes["moe.layout"] = op.layout
    return results


def _gate_up(lower: FunctionLowering, op: moe.GateUpOp) -> list[ir.Value]:
    made = next((results for joined, results in lower.made if joined == op.operation), None)
    if made is not None:
        return made
    if decodes(lower, op):
        return decode_gate_up(lower, op)
    if lower.layout == "stream":
        return prefill_gate_up(lower, op)
    sort, rows = sort_of(op), moe.size(op.out, -1)
    params: Params = {
        "hidden": moe.size(op.x, -1),
        "intermediate": rows,
        **_product(lower, op, "gate_up"),
        "weights": lower.layout,
        **activation(op),
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
        "requantize": "none",
    }
    operands = [*activations(op), *sorted_list(op), *lower.expert_weight(op, f"gate_up_{op.gate_up_order.value}")]
    result = (op.out.type, (rows_of_stage(2, sort.topk), rows))
    return lower.launch("gate_up", params, operands, [result], _tiles(sort, rows, params), strided=[0])


def _down(lower: FunctionLowering, op: moe.DownOp) -> list[ir.Value]:
    if decodes(lower, op):
        return decode_down(lower, op)
    if lower.layout == "stream":
        return prefill_down(lower, op)
    sort, columns, rows = sort_of(op), moe.size(op.x, -1), moe.size(op.out, -1)
    params: Params = {
        "hidden": rows,
        "intermediate": columns,
        **_product(lower, op, "down"),
        "weights": lower.layout,
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
    }
    if not only_combined(op):
        params["splits"] = 1
    operands = [*activations(op), *sorted_list(op), *lower.expert_weight(op, "plain")]
    tiles = [tile * params["splits"] for tile in _tiles(sort, rows, params)]
    return lower.launch("down", params, operands, [partial(op, params["splits"])], tiles)


def _one_stage(lower: FunctionLowering, op: moe.ExpertsOneStageOp) -> list[ir.Value]:
    sort = sort_of(op)
    intermediate = moe.size(op.gate_up, 1 if op.weight_order.value == "nk" else 2) // 2
    params: Params = {
        "hidden": moe.size(op.x, -1),
        "intermediate": intermediate,
        **_product(lower, op, "experts_one_stage"),
        **activation(op),
        "requantize": op.scale_mode.value,
        "routing_weight_stage": op.routing_weight_stage.value,
        "has_gate_up_bias": op.gate_up_bias is not None,
        "has_down_bias": op.down_bias is not None,
    }
    slices = -(-intermediate // params["block_n"])
    if slices > 1 and not only_combined(op):
        raise PassError(
            op, f"the one-stage kernel of {lower.target.name} makes partial sums; only moe.combine reads them"
        )
    operands = [*activations(op), *sorted_list(op), *lower.one_stage_weights(op)]
    tiles = _tiles(sort, intermediate, params)
    return lower.launch("experts_one_stage", params, operands, [partial(op, slices)], tiles, strided=[0])


def _product(lower: FunctionLowering, op, template: str) -> Params:
    require_mx_codes(op, lower.target.name)
    require_block(op, lower.target.name, lower.layout)
    quantised = op.x_scales is not None
    return {
        "topk": op.topk.value,
        "block": op.block.value,
        "x": element(op.x),
        "layout": layout(op, op.x_scales) if quantised else "none",
        **lower.target.tile(template, block=op.block.value, quantised=quantised),
    }


def _tiles(sort: SortSizes, outputs: int, params: Params) -> list[sizes.Expr]:
    return [blocks * -(-outputs // params["block_n"]) for blocks in blocks_of(sort)]


def _combine(lower: FunctionLowering, op: moe.CombineOp) -> list[ir.Value]:
    params, operands = combine_operands(op)
    columns = moe.size(op.rows, -1)
    splits = moe.size(op.rows, 0) if op.rows.type.rank == 3 else 1
    params |= {"splits": splits, "early": is_old(lower, op.ids, [op.rows]), **lower.target.tile("combine")}
    tiles = sizes.ceildiv(sizes.tokens(), params["rows"]) * -(-columns // params["block_n"])
    return lower.launch("combine", params, operands, [(op.out.type, (sizes.tokens(), columns))], [tiles])


RULES = Rules(
    {
        moe.RouteOp: lower_route,
        moe.SortTokensOp: lower_sort,
        moe.QuantOp: _quant,
        moe.SortScalesOp: _sort_scales,
        moe.QuantSortOp: _quant_sort,
        moe.GateUpOp: _gate_up,
        moe.DownOp: _down,
        moe.ExpertsOneStageOp: _one_stage,
        moe.CombineOp: _combine,
    },
    (launch_router_products, sink_routes, quantise_in_products),
)
