"""Routers into the plans that read them, where they are beside their token sort."""

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering.function import FunctionLowering


def sink_routes(lower: FunctionLowering, block: ir.Block) -> None:
    """Put each moe.route of `block` whose readers are all in regions of one op into every one of these regions, where a
    target may join it with the token sort there."""
    if not lower.target.route_sort_tokens:
        return
    for op in [op for op in block.operations if isinstance(op, moe.RouteOp)]:
        _sink(op, block)


def _sink(op: moe.RouteOp, block: ir.Block) -> None:
    # Its results have as many rows as the logits, their other size is static.
    for use in [use for result in op.results for use in result.uses if use.owner.operation.name == "tensor.dim"]:
        use.owner.operation.operands[0] = op.logits
    uses = [(result.result_number, use) for result in op.results for use in result.uses]
    readers = [_ancestor(use.owner, block) for _, use in uses]
    if not readers or readers[0] is None or any(reader is None or reader != readers[0] for reader in readers):
        return
    for region in readers[0].regions:
        own = region.blocks[0]
        here = [(number, use) for number, use in uses if _ancestor(use.owner, own, itself=True) is not None]
        if not here:
            continue
        copy = op.operation.clone(ip=ir.InsertionPoint.at_block_begin(own))
        for number, use in here:
            use.owner.operation.operands[use.operand_number] = copy.results[number]
        _sink(copy.opview, own)
    op.operation.erase()


def _ancestor(op: ir.OpView | ir.Operation, block: ir.Block, itself: bool = False) -> ir.Operation | None:
    """The op of `block` that `op` is inside of; `op` itself counts where `itself`. None where there is none."""
    inside, found = itself, op.operation
    while found.block != block:
        inside, found = True, found.block.owner.operation
        if found.name == "func.func":
            return None
    return found if inside else None
