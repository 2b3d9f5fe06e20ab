"""quant, sort_scales and quant_sort -> launches: the fused quantiser, the split pair, or one of them by M."""

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering
from moeloom.lowering.operands import (
    Params,
    element,
    placement,
    require_mx_scales,
    require_per_1x32,
    row_tiles,
    rows_of,
    rows_of_stage,
    sort_of,
    sorted_shape,
)
from moeloom.lowering.triton.tiles import facts, program_groups
from moeloom.passes.base import PassError


def lower_quant(lower: FunctionLowering, op: moe.QuantOp) -> list[ir.Value]:
    """A quantiser that no sort follows."""
    require_per_1x32(op, lower.target.name)
    return _quantise(lower, op, rows_of(op.x), early=False)


def lower_sort_scales(lower: FunctionLowering, op: moe.SortScalesOp) -> list[ir.Value]:
    """A sort of scales that came with their codes."""
    require_mx_scales(op)
    return _sorted(lower, op, op.scales, op.sorted_ids, op.num_valid)


def lower_quant_sort(lower: FunctionLowering, op: moe.QuantSortOp) -> list[ir.Value]:
    """Both in one, unless the token sort's launch has it."""
    made = lower.made_before(op)
    if made is not None:
        return made
    place = ir.OpResult(op.sorted_ids).result_number + LISTS
    behind = op.sorted_ids.owner.results[place : place + 1]
    slot_rows = behind[0] if len(behind) > 0 and element(behind[0]) == "i32" else None
    return quant_sort(lower, op, op.sorted_ids, op.num_valid, slot_rows)


LISTS = 4
"""Results of moe.sort_tokens: behind them a launch makes slot_rows, where it is asked for them."""


def quant_sort(
    lower: FunctionLowering,
    op: moe.QuantSortOp,
    sorted_ids: ir.Value,
    num_valid: ir.Value,
    slot_rows: ir.Value | None,
) -> list[ir.Value]:
    """The fused kernel, the split pair, or both with the target's threshold between them, behind the launch that made
    the list; `slot_rows` are there wherever the fused kernel may run."""
    rows = rows_of_stage(op.stage.value, op.topk.value)
    # Behind the token sort's launch, what the caller gives is old: that launch has waited for it.
    architecture = lower.target.architecture
    assert architecture is not None
    early = isinstance(op.x.owner, ir.Block) and architecture.overlaps
    thread_by_thread = architecture.name == "sm_90" and element(op.x) == "bf16"

    def fused() -> list[ir.Value]:
        assert slot_rows is not None
        sort = sort_of(op)
        params: Params = {**fused_params(op), **placement(op), "block": sort.block, "early": early}
        operands = [op.x, slot_rows, num_valid]
        if thread_by_thread:
            params |= lower.target.tile("quant_sort_sm_90")
            groups = rows * moe.scale_columns(params["columns"], op.layout.value)
            tiles = sizes.ceildiv(groups, program_groups(params))
            return lower.launch("quant_sort_sm_90", params, operands, fused_results(op), [tiles], strided=[0])
        params |= lower.target.tile("quant_sort", **facts("quant_sort", params))
        shares = -(-op.topk.value // params["slots"]) if op.stage.value == 1 else 1
        tiles = sizes.ceildiv(rows, params["rows"]) * (shares * column_tiles(op, params))
        return lower.launch("quant_sort", params, operands, fused_results(op), [tiles], strided=[0])

    def split() -> list[ir.Value]:
        codes, scales = _quantise(lower, op, rows, early)
        return [codes, *_sorted(lower, op, scales, sorted_ids, num_valid)]

    results = lower.switch(op, fused, split)
    mark_layout(results[1], op)
    return results


def fake_quant(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, scale_mode: str, stage: int) -> ir.Value:
    """x of `op`, rounded to MXFP4 and back."""
    rows, columns = rows_of_stage(stage, op.topk.value), moe.size(op.x, -1)
    params: Params = {"columns": columns, "x": element(op.x), "scale_mode": scale_mode}
    params |= lower.target.tile("fake_quant")
    tiles = rows * -(-columns // (moe.GROUP * params["groups"]))
    return lower.launch("fake_quant", params, [op.x], [(op.x.type, (rows, columns))], [tiles], strided=[0])[0]


def fused_params(op: moe.QuantSortOp) -> Params:
    """What every kernel takes that has a fused quantiser."""
    return {"columns": moe.size(op.x, -1), "x": element(op.x), "scale_mode": op.scale_mode.value}


def column_tiles(op: moe.QuantSortOp, params: Params) -> int:
    """Programs of a row, each with `groups` of its groups."""
    return -(-moe.scale_columns(moe.size(op.x, -1), op.layout.value) // params["groups"])


def fused_results(op: moe.QuantSortOp) -> list[tuple[ir.Type, tuple[sizes.Expr, ...]]]:
    """Type and shape of codes and sorted scales."""
    rows, columns = rows_of_stage(op.stage.value, op.topk.value), moe.size(op.x, -1)
    padded = moe.scale_columns(columns, op.layout.value)
    return [(op.codes.type, (rows, columns)), (op.sorted_scales.type, sorted_shape(sort_of(op), padded))]


def mark_layout(sorted_scales: ir.Value, op: moe.SortScalesOp | moe.QuantSortOp) -> None:
    """Note on what makes sorted scales what their readers need to know."""
    sorted_scales.owner.attributes["moe.layout"] = op.layout


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


def _sorted(
    lower: FunctionLowering,
    op: moe.SortScalesOp | moe.QuantSortOp,
    scales: ir.Value,
    sorted_ids: ir.Value,
    num_valid: ir.Value,
) -> list[ir.Value]:
    sort, columns = sort_of(op), moe.size(scales, -1)
    shape = sorted_shape(sort, moe.scale_columns(columns * moe.GROUP, op.layout.value))
    params: Params = {"columns": columns, **placement(op), **lower.target.tile("sort_scales")}
    operands = [scales, sorted_ids, num_valid]
    results = [(op.sorted_scales.type, shape)]
    sorted_scales = lower.launch("sort_scales", params, operands, results, row_tiles(sort), strided=[0])
    mark_layout(sorted_scales[0], op)
    return sorted_scales
