"""gate_up and down of streamed weights -> launches of the decode kernels; and what all products share.

Decode kernels run as many programs as the GPU holds at once, and no more.
"""

from collections.abc import Mapping

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering
from moeloom.lowering.operands import Params, activation, element, layout, require_mx_codes, rows_of_stage, sorted_list
from moeloom.lowering.packing import STREAM_WARPS
from moeloom.lowering.triton.architecture import SIMDS, Architecture
from moeloom.passes.base import PassError
from moeloom.runtime.stream import MfmaStream, Stream

DECODE_BLOCKS = {"stream": (8, 16), "mfma_stream": (16,)}
"""Rows of a sort block of the decode kernels, by the layout of weights that they read: the N of their instructions, or
twice that."""
TEMPLATE = {"stream": "decode_{}", "mfma_stream": "decode_mfma_{}"}
SPLITS = (3, 2, 1)
"""Parts of K of down, the most that the stream allows: three keep the GPU busy for one token."""
QUANTISE = "moe.quantise"
"""An attribute of a product: the scale mode of the MXFP4 that its x is rounded to on the way."""
BYTES_A_VALUE = 2
"""Shared memory of a product for sm_90: x in bf16."""


def decodes(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp) -> bool:
    """Whether the decode kernels serve `op`: weights as streams, few rows a block, whose x a program can hold.

    PassError for f16 on streams.
    """
    if lower.layout in DECODE_BLOCKS and element(op.x) == "f16":
        raise PassError(op, f"weight streams of {lower.target.name} multiply bf16 or MXFP4: choose layout row_major")
    if op.block.value not in DECODE_BLOCKS.get(lower.layout, ()):
        return False
    return lower.layout != "stream" or _programs_by_shared(lower, op) > 0


def decode_gate_up(lower: FunctionLowering, op: moe.GateUpOp) -> list[ir.Value]:
    hidden, rows = moe.size(op.x, -1), moe.size(op.out, -1)
    params: Params = {
        "hidden": hidden,
        "intermediate": rows,
        **_decode(lower, op, "gate_up"),
        **activation(op),
        **_early(lower, op),
    }
    operands = [*activations(op), *sorted_list(op), *lower.expert_weight(op, f"gate_up_{op.gate_up_order.value}")]
    result = (op.out.type, (rows_of_stage(2, op.topk.value), rows))
    return lower.launch(_template(lower, "gate_up"), params, operands, [result], [params["programs"]], strided=[0])


def decode_down(lower: FunctionLowering, op: moe.DownOp) -> list[ir.Value]:
    hidden, columns = moe.size(op.out, -1), moe.size(op.x, -1)
    splits = _splits(lower, op)
    params: Params = {
        "hidden": hidden,
        "intermediate": columns,
        "splits": splits,
        **_decode(lower, op, "down"),
        **_early(lower, op),
    }
    operands = [*activations(op), *sorted_list(op), *lower.expert_weight(op, "plain")]
    return lower.launch(_template(lower, "down"), params, operands, [partial(op, splits)], [params["programs"]])


def _splits(lower: FunctionLowering, op: moe.DownOp) -> int:
    """The parts of K."""
    rows, columns = moe.size(op.out, -1), moe.size(op.x, -1)
    return next(parts for parts in SPLITS if _divides(lower, rows, columns, parts)) if only_combined(op) else 1


def _divides(lower: FunctionLowering, rows: int, columns: int, parts: int) -> bool:
    """Whether the kernel takes so many parts: whole records of sm_90's stream, a step or more of an MFMA stream."""
    if lower.layout == "stream":
        return Stream(rows, columns, STREAM_WARPS["down"]).records % parts == 0
    return MfmaStream(rows, columns).splits_into(parts)


def _template(lower: FunctionLowering, product: str) -> str:
    return TEMPLATE[lower.layout].format(product)


def _decode(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, product: str) -> Params:
    """What all decode kernels take."""
    require_mx_codes(op, lower.target.name)
    tile = lower.target.tile(_template(lower, product), block=op.block.value, quantised=op.x_scales is not None)
    return {
        "topk": op.topk.value,
        "block": op.block.value,
        "x": element(op.x),
        "layout": "none" if op.x_scales is None else layout(op, op.x_scales),
        **_quantise(lower, op),
        "has_bias": op.bias is not None,
        "has_weights": op.sorted_weights is not None,
        **tile,
        **_programs(lower, op, tile, product),
    }


def _quantise(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp) -> Params:
    """What sm_90's kernel rounds x to."""
    found = op.operation.attributes
    return {"quantise": found[QUANTISE].value if QUANTISE in found else "none"} if lower.layout == "stream" else {}


def _early(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp) -> Params:
    """Whether sm_90's kernel may read the sorted list while the launch before it still runs."""
    return {"early": is_old(lower, op.sorted_ids, activations(op))} if lower.layout == "stream" else {}


def is_old(lower: FunctionLowering, value: ir.Value, others: list[ir.Value]) -> bool:
    """Whether a launch that reads `others` may read `value` on sm_90 while the launch before it still runs.

    It may where that launch, or an older one on the way to `others`, has read the same maker's results: it has ended.
    """
    if lower.layout != "stream" or isinstance(value.owner, ir.Block):
        return False
    return any(_follows(other, value.owner) for other in others)


def _follows(value: ir.Value, sort: ir.Operation) -> bool:
    """Whether `value` is made by a launch that reads a result of `sort`, directly or through other launches."""
    if isinstance(value.owner, ir.Block):
        return False
    owner = value.owner.operation
    if owner == sort.operation:
        return False
    if owner.name == "kernel.alternatives":
        number = ir.OpResult(value).result_number
        yielded = [list(region.blocks[0].operations)[-1].operands[number] for region in owner.regions]
        return all(_follows(each, sort) for each in yielded)
    if owner.name != "kernel.launch":
        return False
    reads = [each for each in owner.operands if not isinstance(each.owner, ir.Block)]
    return any(each.owner.operation == sort.operation or _follows(each, sort) for each in reads)


def _programs_by_shared(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp) -> int:
    """How many programs of sm_90's decode kernel an SM holds by their shared memory: a block's x, or a part of it."""
    assert lower.target.architecture is not None
    splits, product = (_splits(lower, op), "down") if isinstance(op, moe.DownOp) else (1, "gate_up")
    columns = Stream(1, moe.size(op.x, -1), STREAM_WARPS[product]).padded_columns // splits
    return lower.target.architecture.resident(BYTES_A_VALUE * op.block.value * columns)


def _programs(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, tile: Mapping[str, int], product: str) -> Params:
    """The programs of the grid, and the warps of each."""
    architecture = lower.target.architecture
    assert architecture is not None
    if lower.layout == "mfma_stream":
        return {"programs": architecture.processors * SIMDS * tile["waves"], "num_warps": 1}
    warps = STREAM_WARPS[product]
    resident = min(programs_by_registers(architecture, tile["maxnreg"], warps), _programs_by_shared(lower, op))
    return {"programs": architecture.processors * resident, "num_warps": warps}


def programs_by_registers(architecture: Architecture, maxnreg: int, warps: int) -> int:
    """How many programs of so many warps an SM holds, a thread of which has `maxnreg` registers."""
    return architecture.registers // (maxnreg * warps * architecture.warp_size)


def activations(op) -> list[ir.Value]:
    """What a product reads: bf16 or f16 rows, or codes and their sorted scales."""
    return [op.x] if op.x_scales is None else [op.x, op.x_scales]


def only_combined(op: moe.DownOp | moe.ExpertsOneStageOp) -> bool:
    """Whether every reader of the result adds up partial sums."""
    return all(isinstance(use.owner.opview, moe.CombineOp) for use in op.out.uses)


def partial(op: moe.DownOp | moe.ExpertsOneStageOp, parts: int) -> tuple[ir.Type, tuple[sizes.Expr, ...]]:
    """f32 [parts, R, H]: partial sums that combine adds up in order; [R, H] where there is one part."""
    hidden, rows = moe.size(op.out, -1), rows_of_stage(2, op.topk.value)
    if parts == 1:
        return op.out.type, (rows, hidden)
    kind = ir.RankedTensorType.get([parts, ir.ShapedType.get_dynamic_size(), hidden], ir.F32Type.get())
    return kind, (parts, rows, hidden)
