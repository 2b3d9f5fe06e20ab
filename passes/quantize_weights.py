"""bf16, f16 or f32 expert weights -> MXFP4 payload and scales, as function arguments that packing will make."""

from dataclasses import dataclass
from typing import Literal

from torch_mlir import ir
from torch_mlir.dialects import func
from torch_mlir.rewrite import RewritePatternSet, walk_and_apply_patterns

from moeloom.dialects import moe
from moeloom.passes.base import Pass, PassError
from moeloom.passes.builders import tensor, word
from moeloom.passes.report import Report


@dataclass
class QuantizeWeights(Pass, name="moe-quantize-weights"):
    """Ask for expert weights in MXFP4: their arguments become f4E2M1FN [E, N, K], each with a new f8E8M0FNU argument.

    Nothing is computed here. A weight argument keeps its `moe.weight` name and gains `moe.part` = "payload",
    `moe.quantize` = `scale_mode` and `moe.order` = "nk" or "kn", the order of the tensor in the checkpoint; the scales
    [E, N, K/32] are appended to the arguments with `moe.part` = "scales" and the same name. Weights that already are
    f4E2M1FN stay as they are. A weight that is no argument, or that something else reads, is an error.
    """

    format: Literal["mxfp4"] = "mxfp4"
    scale_mode: Literal["even", "floor", "ceil", "rceil"] = "even"

    def run(self, module: ir.Operation, report: Report) -> None:
        """Quantise the weights of every moe.experts of `module`; PassError where one cannot be."""
        done: dict[ir.Value, Quantised] = {}

        def quantise(experts: moe.ExpertsOp, rewriter) -> bool:
            """experts(gate_up, down)  ->  experts(gate_up, gate_up_scales, down, down_scales), weight_order nk"""
            new = {}
            for name in ("gate_up", "down"):
                weight, scales = getattr(experts, name), getattr(experts, f"{name}_scales")
                if scales is None:
                    if weight not in done:
                        done[weight] = self.argument(experts, name)
                    made, order = done[weight], experts.weight_order.value
                    if made.order != order:
                        raise PassError(experts, f"{name} is read in order {order} here and {made.order} elsewhere")
                    new[f"{name}_scales"] = made.scales
            if not new:
                return True
            fields = {field.name: getattr(experts, field.name) for field in experts._fields}
            fields |= new | {"out": experts.out.type, "weight_order": word("nk")}
            with rewriter.ip:
                rewriter.replace_op(experts, moe.ExpertsOp(**fields, loc=experts.location))
            return False

        patterns = RewritePatternSet()
        patterns.add(moe.ExpertsOp, quantise)
        walk_and_apply_patterns(module, patterns.freeze())

    def argument(self, experts: moe.ExpertsOp, name: str) -> "Quantised":
        """Turn the argument that is the weight `name` into a payload, and append its scales."""
        weight, order = getattr(experts, name), experts.weight_order.value
        function, attributes = weight_argument(experts, name)
        for use in weight.uses:
            if not isinstance(use.owner.opview, moe.ExpertsOp):
                raise PassError(
                    experts, f"{name} is also read by {use.owner.name}, which its quantised form would not serve"
                )
        row_axis, column_axis = (1, 2) if order == "nk" else (2, 1)
        count, rows, columns = (moe.size(weight, axis) for axis in (0, row_axis, column_axis))
        note = {"moe.quantize": word(self.scale_mode), "moe.order": word(order)}
        payload = attributes | note | {"moe.part": word("payload")}
        scales = {"moe.weight": attributes["moe.weight"]} | note | {"moe.part": word("scales")}

        weight.set_type(tensor(ir.Float4E2M1FNType.get(), count, rows, columns))
        kind = tensor(ir.Float8E8M0FNUType.get(), count, rows, columns // moe.GROUP)
        made = function.entry_block.add_argument(kind, weight.location)
        every = list(function.arg_attrs)
        every[weight.arg_number] = ir.DictAttr.get(payload)
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([*every, ir.DictAttr.get(scales)])
        inputs = [argument.type for argument in function.entry_block.arguments]
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, function.type.results))
        return Quantised(made, order)


@dataclass(frozen=True)
class Quantised:
    """The scales of a weight, and the order in which the checkpoint holds it."""

    scales: ir.Value
    order: str


def weight_argument(experts: moe.ExpertsOp, name: str) -> tuple[func.FuncOp, dict[str, ir.Attribute]]:
    """The function whose argument is the weight `name`, and that argument's attributes."""
    weight = getattr(experts, name)
    if not isinstance(weight.owner, ir.Block):
        raise PassError(
            experts, f"{name} comes from {weight.owner.name}; only weights that are function arguments can be quantised"
        )
    function = weight.owner.owner
    attributes = {}
    if isinstance(function.opview, func.FuncOp) and "arg_attrs" in function.attributes:
        attributes = {a.name: a.attr for a in function.arg_attrs[ir.BlockArgument(weight).arg_number]}
    if "moe.weight" not in attributes:
        raise PassError(experts, f"{name} is an argument without moe.weight; only weights can be quantised")
    return function, attributes
