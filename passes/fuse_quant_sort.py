"""moe.quant + moe.sort_scales -> moe.quant_sort (contract, section 4)."""

from dataclasses import dataclass

from torch_mlir import ir
from torch_mlir.rewrite import RewritePatternSet, walk_and_apply_patterns

from moeloom.dialects import moe
from moeloom.passes.base import Pass
from moeloom.passes.report import Report


@dataclass
class FuseQuantSort(Pass, name="moe-fuse-quant-sort"):
    """Fuse each per_1x32 quantiser with the sort of its scales, so that scales go straight to their sorted place.

    `sort_scales(quant(x).scales, ids)` becomes `quant_sort(x, ids)`, placed at the sort, or before the first reader of
    the payload where that comes earlier and the ids exist there. It is refused, with the reason in the report, where
    scales come from elsewhere (pre-quantised input), are of another quantisation, have another reader, or where the
    payload is read before the ids exist. Sites without a quantiser (bf16 activations) are reported as well.
    """

    def run(self, module: ir.Operation, report: Report) -> None:
        """Fuse in `module`; one record a candidate."""
        dead: list[moe.QuantOp] = []

        def fuse(sort: moe.SortScalesOp, rewriter) -> bool:
            """sort_scales(quant(x).scales, ids)  ->  quant_sort(x, ids), before whatever reads either result."""
            site = f"stage {sort.stage.value}"
            reason = refusal(sort)
            if reason:
                report.add(sort, site, "refused", reason)
                return True
            quant = sort.scales.owner
            with ir.InsertionPoint(first_reader(sort)):
                both = moe.QuantSortOp(
                    x=quant.x,
                    sorted_ids=sort.sorted_ids,
                    num_valid=sort.num_valid,
                    codes=quant.codes.type,
                    sorted_scales=sort.sorted_scales.type,
                    kind=quant.kind,
                    scale_mode=quant.scale_mode,
                    stage=sort.stage,
                    topk=sort.topk,
                    layout=sort.layout,
                    loc=ir.Location.fused([quant.location, sort.location]),
                )
            report.add(sort, site, "fused", "quant writes each scale to its sorted place")
            quant.codes.replace_all_uses_with(both.codes)
            rewriter.replace_op(sort, [both.sorted_scales])
            dead.append(quant)
            return False

        def unsorted(quant: moe.QuantOp, rewriter) -> bool:
            """A quantiser whose scales nothing sorts stays as it is."""
            if not any(isinstance(use.owner.opview, moe.SortScalesOp) for use in quant.scales.uses):
                kind = quant.kind.value
                reason = f"kind is {kind}; only per_1x32 fuses" if kind != "per_1x32" else "nothing sorts its scales"
                report.add(quant, "quant", "refused", reason)
            return True

        def unquantised(product: moe.GateUpOp | moe.DownOp | moe.ExpertsOneStageOp, rewriter) -> bool:
            """A product of bf16 or f16 activations has no quantiser to fuse."""
            if product.x_scales is None:
                stage = 2 if isinstance(product, moe.DownOp) else 1
                kind = product.x.type.element_type
                report.add(product, f"stage {stage}", "refused", f"{kind} activations have no quantiser")
            return True

        patterns = RewritePatternSet()
        patterns.add(moe.SortScalesOp, fuse)
        patterns.add(moe.QuantOp, unsorted)
        for product in (moe.GateUpOp, moe.DownOp, moe.ExpertsOneStageOp):
            patterns.add(product, unquantised)
        walk_and_apply_patterns(module, patterns.freeze())
        # The walk may erase only the op it stands on, so the quantisers wait for its end.
        for quant in dead:
            quant.operation.erase()


def refusal(sort: moe.SortScalesOp) -> str:
    """Why `sort` cannot fuse with the quantiser of its scales; "" where it can."""
    source = sort.scales.owner
    element = str(sort.scales.type.element_type)
    if isinstance(source, moe.QuantOp) and source.kind.value != "per_1x32":
        return f"kind is {source.kind.value}; only per_1x32 fuses"
    if element != "f8E8M0FNU":
        return f"scales are {element}; only the f8E8M0FNU scales of per_1x32 fuse"
    if isinstance(source, ir.Block):
        return "scales come from elsewhere (pre-quantised input)"
    if not isinstance(source, moe.QuantOp):
        return f"scales come from elsewhere ({source.operation.name})"
    others = [use.owner for use in source.scales.uses if use.owner.operation != sort.operation]
    if others:
        return f"scales have another reader ({others[0].operation.name})"
    if source.operation.block != sort.operation.block:
        return "quant and sort_scales are in different blocks"
    place = first_reader(sort)
    if place != sort.operation and not all(defined_before(v, place) for v in (sort.sorted_ids, sort.num_valid)):
        return f"payload is read before the sorted ids exist (by {place.name})"
    return ""


def first_reader(sort: moe.SortScalesOp) -> ir.Operation:
    """The first op of the sort's block that needs the fused op: the sort, or an earlier reader of the payload."""
    place = sort.operation
    for use in sort.scales.owner.codes.uses:
        reader = ancestor_in(sort.operation.block, use.owner.operation)
        if reader is not None and reader != place and reader.is_before_in_block(place):
            place = reader
    return place


def ancestor_in(block: ir.Block, op: ir.Operation) -> ir.Operation | None:
    """`op`, or the op around it, that stands in `block`; None where there is none."""
    while op is not None and op.block != block:
        op = op.parent.operation if op.parent is not None and op.parent.parent is not None else None
    return op


def defined_before(value: ir.Value, place: ir.Operation) -> bool:
    """Whether `value`, known to dominate a later op of the same block, exists at `place`."""
    source = value.owner
    if isinstance(source, ir.Block) or source.operation.block != place.block:
        return True
    return source.operation.is_before_in_block(place)
