"""What the lowerings read off moe ops: sizes of the sorted list they share, element types, optional operands."""

from dataclasses import dataclass
from typing import Any

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.passes.base import PassError

Params = dict[str, Any]
"""The params of a kernel.define: numbers, words and switches (docs/program.md)."""
COMMON_BLOCKS = (16, 32, 64, 128)
"""Rows of the sort blocks that every target's products take: the contract's."""
TILE_ROWS = 32
"""Rows of a tile of the tiled_32x8 layout: scale buffers are rounded up to it."""


def element(value: ir.Value) -> str:
    """MLIR's name of the element type."""
    return str(value.type.element_type)


def placement(op) -> Params:
    """The params that say where a scale goes."""
    return {"stage": op.stage.value, "topk": op.topk.value, "layout": op.layout.value}


def layout(op, scales: ir.Value) -> str:
    """The layout in which a sort in the same function left `scales`."""
    owner = scales.owner
    if isinstance(owner, ir.Block) or "moe.layout" not in owner.attributes:
        raise PassError(op, f"the sorted scales of '{op.OPERATION_NAME}' must come from a sort in the same function")
    return owner.attributes["moe.layout"].value


def sort_of(op) -> "SortSizes":
    """The sizes of the token sort whose list `op` reads, lowered or not."""
    owner = op.sorted_ids.owner
    if not isinstance(owner, ir.Block) and isinstance(owner.opview, moe.SortTokensOp):
        return sort_params(owner.opview)[1]
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


def blocks_of(sort: SortSizes) -> list[ir.AffineExpr]:
    """The bound of the sort blocks in use; the minimum of the list is meant."""
    return sizes.live_blocks(sort.topk, sort.experts, sort.block)


def row_tiles(sort: SortSizes) -> list[ir.AffineExpr]:
    """Tiles of 32 rows that cover the live sorted rows."""
    return [sizes.ceildiv(blocks * sort.block, TILE_ROWS) for blocks in blocks_of(sort)]


def sorted_shape(sort: SortSizes, columns: int) -> tuple[sizes.Expr, sizes.Expr]:
    return sizes.round_up(sizes.capacity(sort.topk, sort.experts, sort.block), TILE_ROWS), columns


def rows_of_stage(stage: int, topk: int) -> ir.AffineExpr:
    return sizes.tokens() * (1 if stage == 1 else topk)


def optional(*values: ir.Value | None) -> list[ir.Value]:
    return [value for value in values if value is not None]


def map_kind(expert_map: ir.Value | None) -> str:
    if expert_map is None:
        return "none"
    return "mask" if str(expert_map.type.element_type) == "i1" else "index"


def rows_of(x: ir.Value) -> sizes.Expr:
    """Rows of a value as a function of M: those its launch states, else M."""
    if not x.type.is_dynamic_dim(0):
        return sizes.constant(x.type.get_dim_size(0))
    owner = x.owner
    if isinstance(owner, ir.Block) or owner.name != "kernel.launch":
        return sizes.tokens()
    number = ir.OpResult(x).result_number
    return owner.attributes["result_shapes"][number].value.results[0]


def experts_of(op: moe.CombineOp) -> int:
    """E of the sort that read the same ids: combine leaves out the ids that the sort did."""
    if op.expert_map is not None:
        return moe.size(op.expert_map, 0)
    # A launch of both makes the ids with the sorted list, else the sort is one of their readers.
    makers = [] if isinstance(op.ids.owner, ir.Block) else [op.ids.owner]
    for owner in (*makers, *(use.owner for use in op.ids.uses)):
        if "moe.sort" in owner.attributes:
            return list(owner.attributes["moe.sort"])[1]
    raise PassError(op, "the ids of 'moe.combine' must be those of a moe.sort_tokens in the same function")


def route_operands(op: moe.RouteOp) -> tuple[Params, list[ir.Value]]:
    """Params and operands of the router's top-k."""
    params: Params = {
        "experts": moe.size(op.logits, -1),
        "topk": op.topk.value,
        "score": op.score.value,
        "renormalise": bool(op.renormalise.value),
        "scale": op.scale.value,
        "groups": op.groups.value,
        "top_groups": op.top_groups.value,
        "logits": element(op.logits),
        "has_bias": op.correction_bias is not None,
        "has_num_tokens": op.num_tokens is not None,
    }
    return params, [op.logits, *optional(op.correction_bias, op.num_tokens)]


def sort_params(op: moe.SortTokensOp) -> tuple[Params, SortSizes]:
    """Params of a token sort, and its sizes."""
    sort = SortSizes(moe.size(op.ids, -1), op.experts.value, op.block.value)
    params: Params = {
        "experts": sort.experts,
        "topk": sort.topk,
        "block": sort.block,
        "has_num_tokens": op.num_tokens is not None,
        "map": map_kind(op.expert_map),
    }
    return params, sort


def sort_results(op: moe.SortTokensOp, sort: SortSizes) -> list[tuple[ir.Type, tuple[sizes.Expr, ...]]]:
    """Type and shape of the sorted list: sorted_ids, sorted_weights, expert_ids, num_valid."""
    rows = sizes.capacity(sort.topk, sort.experts, sort.block)
    return [
        (op.sorted_ids.type, (rows,)),
        (op.sorted_weights.type, (rows,)),
        (op.expert_ids.type, (sizes.ceildiv(rows, sort.block),)),
        (op.num_valid.type, (2,)),
    ]


def mark_sort(op: ir.Operation, sort: SortSizes) -> None:
    """Note on a lowered sort what its readers need to know of it."""
    op.attributes["moe.sort"] = ir.DenseI64ArrayAttr.get([sort.topk, sort.experts, sort.block])


def require_per_1x32(op: moe.QuantOp, target: str) -> None:
    """PassError for a quantiser that no target has a kernel for."""
    if op.kind.value != "per_1x32":
        raise PassError(
            op, f"'moe.quant' of kind {op.kind.value} has no kernel for target {target}; it takes per_1x32 only"
        )


def require_mx_scales(op: moe.SortScalesOp) -> None:
    """PassError for scales of another quantisation."""
    if element(op.scales) != "f8E8M0FNU":
        raise PassError(op, f"'moe.sort_scales' of {element(op.scales)} scales has no kernel; it takes f8E8M0FNU only")


def require_mx_codes(op, target: str) -> None:
    """PassError for a product of quantised activations that are not MXFP4."""
    if op.x_scales is not None and element(op.x) != "f4E2M1FN":
        raise PassError(op, f"'{op.OPERATION_NAME}' reads {element(op.x)}; target {target} takes per_1x32 only")


def require_block(op, target: str, layout: str) -> None:
    """PassError for sort blocks that only the kernels of one layout take."""
    if op.block.value not in COMMON_BLOCKS:
        raise PassError(
            op,
            f"sort blocks of {op.block.value} rows have no kernel for target {target} and weights {layout}; "
            f"plan with block={', '.join(map(str, COMMON_BLOCKS[:-1]))} or {COMMON_BLOCKS[-1]}",
        )


def activation(op) -> Params:
    """The params of what follows the first product."""
    return {"activation": op.activation.value, "alpha": op.alpha.value, "limit": op.limit.value}


def sorted_list(op) -> list[ir.Value]:
    """The sorted list as every product reads it."""
    return [op.sorted_ids, op.expert_ids, op.num_valid, *optional(op.sorted_weights)]


def combine_operands(op: moe.CombineOp) -> tuple[Params, list[ir.Value]]:
    """Params and operands of the sum over a token's slots."""
    params: Params = {
        "columns": moe.size(op.rows, -1),
        "topk": moe.size(op.ids, -1),
        "experts": experts_of(op),
        "out": element(op.out),
        "has_num_tokens": op.num_tokens is not None,
        "map": map_kind(op.expert_map),
    }
    return params, [op.rows, op.ids, *optional(op.num_tokens, op.expert_map)]
