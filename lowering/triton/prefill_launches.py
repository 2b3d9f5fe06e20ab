"""gate_up and down of weight streams -> launches of the prefill kernels for sm_90.

They take bf16 rows. MXFP4 rows are expanded first, in a launch of their own; so are rows rounded that shall be MXFP4's.
"""

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering
from moeloom.lowering.operands import (
    Params,
    activation,
    layout,
    require_mx_codes,
    row_tiles,
    rows_of_stage,
    sort_of,
    sorted_list,
)
from moeloom.lowering.packing import STREAM_WARPS
from moeloom.lowering.triton.decode_launches import BYTES_A_VALUE, QUANTISE, partial, programs_by_registers
from moeloom.lowering.triton.quant_launches import fake_quant
from moeloom.runtime.stream import SWIZZLE_BYTES

BYTES_A_BLOCK, BYTES_A_ROW = 4, 4
"""Of the order of the sort blocks, and of the table of a block's rows."""
MOST_EXPERTS_IN_ORDER = 1023
"""`prefill_order._MOST`, without Triton."""


def prefill_gate_up(lower: FunctionLowering, op: moe.GateUpOp) -> list[ir.Value]:
    hidden, rows = moe.size(op.x, -1), moe.size(op.out, -1)
    x, params = _prefill(lower, op, "gate_up", 1)
    params |= {"hidden": hidden, "intermediate": rows, **activation(op)}
    operands = [x, *sorted_list(op), *lower.expert_weight(op, f"gate_up_{op.gate_up_order.value}")]
    result = (op.out.type, (rows_of_stage(2, op.topk.value), rows))
    return lower.launch("prefill_gate_up", params, operands, [result], [params["programs"]], strided=[0])


def prefill_down(lower: FunctionLowering, op: moe.DownOp) -> list[ir.Value]:
    hidden, columns = moe.size(op.out, -1), moe.size(op.x, -1)
    x, params = _prefill(lower, op, "down", 2)
    params |= {"hidden": hidden, "intermediate": columns}
    operands = [x, *sorted_list(op), *lower.expert_weight(op, "plain")]
    return lower.launch("prefill_down", params, operands, [partial(op, 1)], [params["programs"]])


def _prefill(
    lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, product: str, stage: int
) -> tuple[ir.Value, Params]:
    """The bf16 rows that the kernel reads, and what both kernels take."""
    architecture = lower.target.architecture
    assert architecture is not None
    tile = lower.target.tile(f"prefill_{product}", block=op.block.value)
    by_registers = programs_by_registers(architecture, tile["maxnreg"], tile["num_warps"])
    shared = BYTES_A_VALUE * tile["steps"] * tile["step"] * op.block.value + SWIZZLE_BYTES
    shared += BYTES_A_BLOCK * tile["ordered"] + BYTES_A_ROW * op.block.value
    programs = architecture.processors * min(by_registers, architecture.resident(shared))
    params: Params = {
        "topk": op.topk.value,
        "block": op.block.value,
        "x": "bf16",
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
        "stream_warps": STREAM_WARPS[product],
        "programs": programs,
        **tile,
    }
    if sort_of(op).experts > MOST_EXPERTS_IN_ORDER:
        params["ordered"] = 0
    if QUANTISE in op.attributes:
        return fake_quant(lower, op, op.attributes[QUANTISE].value, stage), params
    if op.x_scales is None:
        return op.x, params
    return _expanded(lower, op, stage), params


def _expanded(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, stage: int) -> ir.Value:
    """x of an op of MXFP4 rows, as bf16."""
    require_mx_codes(op, lower.target.name)
    columns, sort = moe.size(op.x, -1), sort_of(op)
    params: Params = {
        "columns": columns,
        "stage": stage,
        "topk": op.topk.value,
        "layout": layout(op, op.x_scales),
        **lower.target.tile("expand"),
    }
    tiles = -(-columns // (moe.GROUP * params["groups"]))
    shape = (rows_of_stage(stage, op.topk.value), columns)
    kind = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), columns], ir.BF16Type.get())
    operands = [op.x, op.x_scales, op.sorted_ids, op.num_valid]
    grid: list[sizes.Expr] = [rows * tiles for rows in row_tiles(sort)]
    return lower.launch("expand", params, operands, [(kind, shape)], grid, strided=[0])[0]
