"""Quantisers into the products that read them, where those take x rounded to MXFP4 in place of codes and scales."""

from __future__ import annotations

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering.function import FunctionLowering
from moeloom.lowering.operands import element

from .decode_launches import QUANTISE


def quantise_in_products(lower: FunctionLowering, block: ir.Block) -> None:
    """Give each product of `block` the bf16 x of the moe.quant_sort that it alone reads, with the scale mode in an
    attribute: no codes and scales are then written. `fusion` = fused or split keeps them.

    The decode kernels round x on its way to shared memory, for the prefill kernels a launch does it.
    """
    if lower.fusion != "auto" or lower.layout != "stream":
        return
    for op in [op for op in block.operations if isinstance(op, moe.QuantSortOp)]:
        _into_its_product(lower, op)
    for op in block.operations:
        for region in op.operation.regions:
            quantise_in_products(lower, region.blocks[0])


def _into_its_product(lower: FunctionLowering, op: moe.QuantSortOp) -> None:
    readers = [use.owner for result in op.results for use in result.uses]
    if not readers or any(reader != readers[0] for reader in readers):
        return
    product = readers[0].opview
    if not isinstance(product, moe.GateUpOp | moe.DownOp) or product.operation.block != op.operation.block:
        return
    same = product.x == op.codes and product.x_scales == op.sorted_scales and product.sorted_ids == op.sorted_ids
    if not same or element(op.x) != "bf16":
        return
    operands = [op.x, *(value for value in list(product.operation.operands)[1:] if value != op.sorted_scales)]
    found = product.operation.attributes
    attributes = {found[i].name: found[i].attr for i in range(len(found))}
    segments = list(attributes["operandSegmentSizes"])
    segments[1] = 0
    attributes |= {"operandSegmentSizes": ir.DenseI32ArrayAttr.get(segments), QUANTISE: op.scale_mode}
    with ir.InsertionPoint(product), product.location:
        made = ir.Operation.create(
            product.operation.name, [result.type for result in product.results], operands, attributes
        )
    for old, new in zip(product.results, made.results, strict=True):
        old.replace_all_uses_with(new)
    product.operation.erase()
    op.operation.erase()
