"""gate_up and down of streamed weights -> launches of the decode kernels; and what all products share.

Decode kernels run as many programs as the GPU holds at once, and no more.
"""

from collections.abc import Mapping

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering, Results
from moeloom.lowering.operands import (
    Params,
    activation,
    element,
    layout,
    require_mx_codes,
    route_operands,
    rows_of_stage,
    sorted_list,
)
from moeloom.lowering.packing import STREAM_WARPS
from moeloom.lowering.triton.architecture import KIB, SIMDS, Architecture
from moeloom.passes.base import PassError
from moeloom.runtime.stream import MfmaStream, Stream

OCTET = 8
"""Rows of sm_90's smallest sort block: `decode_chunk.OCTET`, without Triton."""
DECODE_BLOCKS = {"stream": (OCTET, 2 * OCTET), "mfma_stream": (16,)}
"""Rows of a sort block of the decode kernels, by the layout of weights that they read: the N of their instructions, or
twice that."""
TEMPLATE = {"stream": "decode_{}", "mfma_stream": "decode_mfma_{}"}
SPLITS = (3, 2, 1)
"""Parts of K of down, the most that the stream allows: three keep the GPU busy for one token."""
LAUNCHES = ("kernel.launch", "kernel.alternatives")
QUANTISE = "moe.quantise"
"""An attribute of a product: the scale mode of the MXFP4 that its x is rounded to on the way."""
ROUTED_TOKENS = 4
"""The most tokens that decode kernels route themselves. With a block's 8 rows the launch apart is as fast."""
ROUTED_SHARED = 16 * KIB
"""Bytes of shared memory that they may take for that: tables, and what warps exchange."""
SUMS_A_THREAD = 4
"""Of an octet: `decode_stream.zero_sums`."""
BYTES_A_VALUE = 2
"""Shared memory of a product for sm_90: x in bf16."""
BYTES_A_ROW = 16
"""The same: a row's part of decode_rows.py."""


def decodes(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp) -> bool:
    """Whether the decode kernels serve `op`: weights as streams, few rows a block, whose x a program can hold.

    PassError for f16 on streams.
    """
    if lower.layout in DECODE_BLOCKS and element(op.x) == "f16":
        raise PassError(op, f"weight streams of {lower.target.name} multiply bf16 or MXFP4: choose layout row_major")
    if op.block.value not in DECODE_BLOCKS.get(lower.layout, ()):
        return False
    return lower.layout != "stream" or _programs_by_shared(lower, op) > 0


def decode_gate_up(lower: FunctionLowering, op: moe.GateUpOp, listed: list[ir.Value] | None = None) -> list[ir.Value]:
    """`listed`: the sorted list in place of the op's operands, as `sorted_list` gives them."""
    params: Params = {**_gate_up(lower, op), **_early(lower, op)}
    if params.get("early"):
        params["paired"] = False  # the launch before may be such a one
    listed = sorted_list(op) if listed is None else listed
    operands = [*activations(op), *listed, *_gate_up_weights(lower, op), *_exchange(lower, params)]
    kernel, programs = _template(lower, "gate_up"), params["programs"]
    return lower.launch(kernel, params, operands, [gate_up_result(op)], [programs], strided=[0])


def _gate_up(lower: FunctionLowering, op: moe.GateUpOp) -> Params:
    sizes = {"hidden": moe.size(op.x, -1), "intermediate": moe.size(op.out, -1)}
    return {**sizes, **_decode(lower, op, "gate_up"), **activation(op)}


def _exchange(lower: FunctionLowering, params: Params) -> list[ir.Value]:
    """Where programs of sm_90's gate_up pass on the sums of a unit that two of them share."""
    if lower.layout != "stream":
        return []
    assert lower.target.architecture is not None
    threads = params["num_warps"] * lower.target.architecture.warp_size
    return [lower.exchange(params["programs"] * threads * SUMS_A_THREAD * (params["block"] // OCTET))]


def _gate_up_weights(lower: FunctionLowering, op: moe.GateUpOp) -> list[ir.Value]:
    return lower.expert_weight(op, f"gate_up_{op.gate_up_order.value}")


def gate_up_result(op: moe.GateUpOp) -> tuple[ir.Type, tuple[sizes.Expr, ...]]:
    """Type and shape of h."""
    return op.out.type, (rows_of_stage(2, op.topk.value), moe.size(op.out, -1))


def product_to_join(lower: FunctionLowering, op: moe.RouteOp, sort: moe.SortTokensOp) -> moe.GateUpOp | None:
    """The gate_up that `decode_routed_gate_up` computes with its routing and token sort, for few tokens on sm_90.

    It reads the caller's bf16, which is old behind the launch that makes the logits, and the whole list; the router
    chooses by logits alone; and an SM holds as many programs with the tables of the routing in shared memory too.
    """
    products = [use.owner.opview for use in sort.sorted_ids.uses if isinstance(use.owner.opview, moe.GateUpOp)]
    if lower.layout != "stream" or len(products) != 1 or op.correction_bias is not None or op.groups.value != 1:
        return None
    (product,) = products
    joins = (
        not isinstance(op.logits.owner, ir.Block)
        and op.logits.owner.name in LAUNCHES
        and product.operation.block == op.operation.block
        and product.block.value == OCTET
        and element(product.x) == "bf16"
        and isinstance(product.x.owner, ir.Block)
        and product.sorted_weights is None
        and decodes(lower, product)
    )
    if not joins:
        return None
    maxnreg = lower.target.tile("decode_gate_up", block=OCTET, quantised=False)["maxnreg"]
    alone, routed = (_resident(lower, product, maxnreg, STREAM_WARPS["gate_up"], more) for more in (0, ROUTED_SHARED))
    return product if alone == routed else None


def routed_gate_up(
    lower: FunctionLowering, op: moe.RouteOp, product: moe.GateUpOp, counted: bool, results: Results
) -> list[ir.Value]:
    """Weights, ids, the sorted list and h in one launch. `counted`: the list is of num_tokens tokens, else of M."""
    params, routing = route_operands(op)
    for unused in ("has_bias", "groups", "top_groups"):
        del params[unused]
    params |= {**_gate_up(lower, product), "counted": counted}
    operands = [product.x, *routing, *_gate_up_weights(lower, product), *_exchange(lower, params)]
    with lower.shown_as(product.operation.name):
        return lower.launch("decode_routed_gate_up", params, operands, results, [params["programs"]], strided=[0])


def decode_down(lower: FunctionLowering, op: moe.DownOp) -> list[ir.Value]:
    hidden, columns = moe.size(op.out, -1), moe.size(op.x, -1)
    splits, _ = _shape(lower, op)
    sizes: Params = {"hidden": hidden, "intermediate": columns, "splits": splits, **_decode(lower, op, "down")}
    if lower.layout == "stream":
        sizes["stream_warps"] = STREAM_WARPS["down"]
    x, listed, weights = activations(op), sorted_list(op), lower.expert_weight(op, "plain")
    if sizes.get("paired"):
        # It takes its place while the launch before still runs, which must be none that does so too.
        sizes["paired"] = is_last_launch(op.x)
    weights += [lower.exchange(0)] if sizes.get("paired") else []
    made = partial(op, splits)

    def launched(own: Params, routing: list[ir.Value]) -> list[ir.Value]:
        operands = [*x[:1], *routing, *x[1:], *listed, *weights]
        return lower.launch(_template(lower, "down"), {**sizes, **own}, operands, [made], [sizes["programs"]])

    if lower.layout != "stream":
        return launched({}, [])
    by_list: Params = {"routes": "none", "experts": 0, "has_num_tokens": False}
    routed = next((each for each in lower.routed if each.sorted_ids == op.sorted_ids), None)
    if routed is None:
        return launched({**by_list, **_early(lower, op)}, [])
    # The list is the launch before's, for few tokens, but the logits are older; for more tokens the list is, too.
    count = [] if routed.num_tokens is None else [routed.num_tokens]
    by_logits: Params = {
        "routes": element(routed.logits),
        "experts": moe.size(routed.logits, -1),
        "has_num_tokens": bool(count),
        "early": True,
    }
    why = f"down finds its weights by the logits up to {routed.limit} tokens on {lower.target.name}"
    builds = (
        lambda: launched(by_logits, [routed.logits, *count]),
        lambda: launched({**by_list, "early": True}, []),
    )
    return lower.alternatives("routing", routed.limit, why, [made[0]], builds)


def _shape(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp) -> tuple[int, int]:
    """The parts of K of a decode kernel, and on sm_90 the warps of a program.

    Parts keep the GPU busy for few tokens. From blocks of two octets on there are enough units without: programs twice
    as wide then hold a row whole, where an SM has room for as many warps, and one sum a row goes through memory.
    """
    if isinstance(op, moe.GateUpOp):
        return 1, STREAM_WARPS["gate_up"]
    rows, columns, warps = moe.size(op.out, -1), moe.size(op.x, -1), STREAM_WARPS["down"]
    if lower.layout == "stream" and op.block.value > OCTET:
        tile = lower.target.tile(_template(lower, "down"), block=op.block.value, quantised=op.x_scales is not None)
        assert lower.target.architecture is not None
        by_registers = programs_by_registers(lower.target.architecture, tile["maxnreg"], 2 * warps)
        if _by_shared(lower, op, 1, warps) >= by_registers:
            return 1, 2 * warps
    parts = next(parts for parts in SPLITS if _divides(lower, rows, columns, parts)) if only_combined(op) else 1
    return parts, warps


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
    So has what made an argument of the program, when any launch of ours has begun before.
    """
    if lower.layout != "stream":
        return False
    return any(_follows(other, value.owner) for other in others)


def is_last_launch(value: ir.Value) -> bool:
    """Whether the launch that makes `value` is the last one before the insertion point."""
    if isinstance(value.owner, ir.Block) or value.owner.name not in LAUNCHES:
        return False
    point = ir.InsertionPoint.current
    if point.block != value.owner.operation.block:
        return False
    made = False
    for op in point.block.operations:
        if op.operation == point.ref_operation:
            break
        if op.operation.name in LAUNCHES:
            made = op.operation == value.owner.operation
    return made


def _follows(value: ir.Value, maker: ir.Operation | ir.Block) -> bool:
    """Whether `value` is made by a launch that reads a result of `maker`, directly or through other launches; where
    that is the program, by any launch."""
    if isinstance(value.owner, ir.Block):
        return False
    owner = value.owner.operation
    if owner.name == "kernel.alternatives":
        number = ir.OpResult(value).result_number
        yielded = [list(region.blocks[0].operations)[-1].operands[number] for region in owner.regions]
        return all(_follows(each, maker) for each in yielded)
    if owner.name != "kernel.launch":
        return False
    if isinstance(maker, ir.Block):
        return True
    if owner == maker.operation:
        return False
    reads = [each for each in owner.operands if not isinstance(each.owner, ir.Block)]
    return any(each.owner.operation == maker.operation or _follows(each, maker) for each in reads)


def _programs_by_shared(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, more: int = 0) -> int:
    """How many programs of sm_90's decode kernel an SM holds by their shared memory, `more` bytes of it of each."""
    product = "gate_up" if isinstance(op, moe.GateUpOp) else "down"
    return _by_shared(lower, op, _shape(lower, op)[0], STREAM_WARPS[product], more)


def _by_shared(
    lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, splits: int, stream_warps: int, more: int = 0
) -> int:
    """The same of programs with a block's x, or a part of it, and its rows (decode_rows.py)."""
    assert lower.target.architecture is not None
    columns = Stream(1, moe.size(op.x, -1), stream_warps).padded_columns // splits
    return lower.target.architecture.resident(op.block.value * (BYTES_A_VALUE * columns + BYTES_A_ROW) + more)


def _programs(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, tile: Mapping[str, int], product: str) -> Params:
    """The programs of the grid, the warps of each, and whether two share an SM in blocks of two octets."""
    architecture = lower.target.architecture
    assert architecture is not None
    if lower.layout == "mfma_stream":
        return {"programs": architecture.processors * SIMDS * tile["waves"], "num_warps": 1}
    _, warps = _shape(lower, op)
    resident = _resident(lower, op, tile["maxnreg"], warps)
    paired = op.block.value > OCTET and resident == 2
    return {"programs": architecture.processors * resident, "num_warps": warps, "paired": paired}


def _resident(lower: FunctionLowering, op: moe.GateUpOp | moe.DownOp, maxnreg: int, warps: int, more: int = 0) -> int:
    """Programs of sm_90's decode kernel on an SM, each of which takes `more` bytes of shared memory beside its x."""
    assert lower.target.architecture is not None
    by_registers = programs_by_registers(lower.target.architecture, maxnreg, warps)
    return min(by_registers, _programs_by_shared(lower, op, more))


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
