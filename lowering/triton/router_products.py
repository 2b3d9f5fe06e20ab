"""Products of a router with few tokens, which ATen spreads over two launches, as one launch of a kernel of ours."""

from __future__ import annotations

from torch_mlir import ir

from moeloom.dialects import kernel, moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering
from moeloom.lowering.operands import Params, element

LINEAR = "torch.aten.linear"
TO_BUILTIN, FROM_BUILTIN = "torch_c.to_builtin_tensor", "torch_c.from_builtin_tensor"
MOST_COLUMNS = 4096
"""A program has an expert's weights in registers while it waits."""


def launch_router_products(lower: FunctionLowering, block: ir.Block) -> None:
    """Give each torch.aten.linear of `block` that only routers read a kernel for few tokens, where the target has one.

    x is [M, H] bf16 or f16, the weight an argument of the function; with other types, or more columns than
    MOST_COLUMNS, ATen computes it.
    """
    if not lower.target.router_tokens:
        return
    for op in [op for op in block.operations if isinstance(op, moe.RouteOp)]:
        cast = op.logits.owner
        if isinstance(cast, ir.Block) or cast.name != TO_BUILTIN:
            continue
        linear = cast.operands[0].owner
        if isinstance(linear, ir.Block) or linear.name != LINEAR or not _only_routed(linear, cast):
            continue
        operands = [_builtin(value) for value in linear.operands if not _absent(value)]
        known = [value for value in operands if value is not None]
        if len(known) == len(operands) and _has_a_kernel(known, op.logits):
            _replace(lower, linear, cast, known)


def _only_routed(linear: ir.Operation, cast: ir.Operation) -> bool:
    """Whether routers alone read the product, as a builtin tensor."""
    readers = [use.owner for use in cast.results[0].uses]
    others = [op for op in readers if not isinstance(op.opview, moe.RouteOp) and op.operation.name != "tensor.dim"]
    return len(list(linear.results[0].uses)) == 1 and not others


def _builtin(value: ir.Value) -> ir.Value | None:
    """A torch tensor as the builtin one that it is made of; None where an op computes it."""
    made = isinstance(value.owner, ir.Block) or value.owner.name != FROM_BUILTIN
    return None if made else value.owner.operands[0]


def _absent(value: ir.Value) -> bool:
    return not isinstance(value.owner, ir.Block) and value.owner.name == "torch.constant.none"


def _has_a_kernel(operands: list[ir.Value], logits: ir.Value) -> bool:
    """Whether x, the weight and perhaps the bias are what the kernel takes."""
    kinds = {element(value) for value in (*operands, logits)}
    x, *weights = operands
    arguments = all(isinstance(value.owner, ir.Block) for value in weights)
    fits = x.type.rank == 2 and not x.type.is_dynamic_dim(1) and moe.size(x, -1) <= MOST_COLUMNS
    return arguments and fits and len(kinds) == 1 and kinds <= {"bf16", "f16"}


def _replace(lower: FunctionLowering, linear: ir.Operation, cast: ir.Operation, operands: list[ir.Value]) -> None:
    """`operands`: x, the weight and perhaps the bias."""
    logits, limit = cast.results[0], lower.target.router_tokens
    params: Params = {
        "columns": moe.size(operands[0], -1),
        "experts": moe.size(logits, -1),
        "x": element(logits),
        "has_bias": len(operands) == 3,
        **lower.target.tile("router"),
    }
    lower.op = LINEAR

    def launched() -> list[ir.Value]:
        shape = (sizes.tokens(), params["experts"])
        tiles = sizes.ceildiv(sizes.tokens(), params["rows"]) * params["experts"]
        return lower.launch("router", params, operands, [(logits.type, shape)], [tiles], strided=[0])

    def computed() -> list[ir.Value]:
        product = linear.clone(ip=ir.InsertionPoint.current)
        return [kernel.create(TO_BUILTIN, [product.results[0]], [logits.type], {}).results[0]]

    why = f"the router's product in a launch of its own up to {limit} tokens on {lower.target.name}"
    with ir.InsertionPoint(cast), linear.location:
        (made,) = lower.alternatives("linear", limit, why, [logits.type], (launched, computed))
    logits.replace_all_uses_with(made)
    cast.erase()
    linear.erase()
