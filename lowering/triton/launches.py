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
    require_block,
    require_mx_codes,
    rows_of_stage,
    sort_of,
    sorted_list,
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
from moeloom.lowering.triton.quant_launches import lower_quant, lower_quant_sort, lower_sort_scales
from moeloom.lowering.triton.quantised_reads import quantise_in_products
from moeloom.lowering.triton.router_products import launch_router_products
from moeloom.passes.base import PassError


def _gate_up(lower: FunctionLowering, op: moe.GateUpOp) -> list[ir.Value]:
    made = lower.made_before(op)
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
        moe.QuantOp: lower_quant,
        moe.SortScalesOp: lower_sort_scales,
        moe.QuantSortOp: lower_quant_sort,
        moe.GateUpOp: _gate_up,
        moe.DownOp: _down,
        moe.ExpertsOneStageOp: _one_stage,
        moe.CombineOp: _combine,
    },
    (launch_router_products, sink_routes, quantise_in_products),
)
