"""torch.operator "torch.moe.*" and torch.constant.* -> moe.route and moe.experts on builtin tensors."""

import re
from dataclasses import dataclass
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import func

from moeloom.dialects import moe
from moeloom.passes.base import Pass, PassError
from moeloom.passes.report import Report

TENSOR = re.compile(r"!torch\.vtensor<\[([\d?,]*)\],(\w+)>")
TO_BUILTIN, FROM_BUILTIN = "torch_c.to_builtin_tensor", "torch_c.from_builtin_tensor"
TORCH_SHAPES = "torch.assume_strict_symbolic_shapes"
CODES_PER_BYTE = 2


@dataclass(frozen=True)
class Operator:
    """What one `torch.moe.*` operator is raised to; its operands are `tensors`, then `constants`, in this order."""

    op: type[ir.OpView]
    tensors: tuple[str, ...]
    constants: tuple[str, ...]
    results: tuple[str, ...]
    absent: tuple[str, ...] = ()


OPERATORS = {
    "torch.moe.route": Operator(
        moe.RouteOp,
        ("logits", "correction_bias", "num_tokens"),
        ("topk", "score", "renormalise", "scale", "groups", "top_groups"),
        ("weights", "ids"),
    ),
    "torch.moe.experts": Operator(
        moe.ExpertsOp,
        (
            "x",
            "x_scales",
            "ids",
            "weights",
            "gate_up",
            "gate_up_scales",
            "gate_up_bias",
            "down",
            "down_scales",
            "down_bias",
        ),
        ("dtype", "activation", "alpha", "limit", "gate_up_order", "weight_order"),
        ("out",),
        absent=("num_tokens", "expert_map"),
    ),
}


@dataclass
class RaiseTorch(Pass, name="moe-raise-torch"):
    """Turn imported torch functions with `torch.moe.*` operators into functions on builtin tensors with `moe` ops.

    Constants become attributes. u8 arguments that hold MXFP4 become f4E2M1FN and f8E8M0FNU tensors, a [.., K/32, 16]
    payload one axis of K. Other torch ops stay, between casts. Metadata assertions, symbolic shapes and what nobody
    reads are erased. Functions without torch types pass unchanged.
    """

    def run(self, module: ir.Operation, report: Report) -> None:
        """Raise every torch function of `module`; PassError where a `torch.moe.*` operator is not one of ours."""
        for function in module.regions[0].blocks[0].operations:
            if isinstance(function, func.FuncOp) and not function.is_external and "!torch." in str(function.type):
                raise_function(function)


def raise_function(function: func.FuncOp) -> None:
    """One function: its signature to builtin tensors, its operators to moe ops, then the dead ops out."""
    block = function.entry_block
    operators = [op.operation for op in block.operations if symbol(op.operation).startswith("torch.moe.")]
    packed: dict[int, ir.Type] = {}
    for op in operators:
        packed |= packed_arguments(op)
    for argument in reversed(block.arguments):
        raise_argument(argument, packed.get(argument.arg_number) or builtin_type(function, argument.type))
    for op in operators:
        raise_operator(op)
    terminator = block.operations[len(block.operations) - 1]
    with ir.InsertionPoint(terminator), terminator.location:
        results = [builtin(terminator.operation, value) for value in terminator.operands]
        func.ReturnOp(results)
    terminator.operation.erase()
    inputs, outputs = [argument.type for argument in block.arguments], [value.type for value in results]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, outputs))
    if TORCH_SHAPES in function.attributes:
        del function.attributes[TORCH_SHAPES]
    erase_dead(block)


def symbol(op: ir.Operation) -> str:
    """The torch name of a torch.operator, "" for other ops."""
    return op.attributes["name"].value if op.name == "torch.operator" else ""


def signature(op: ir.Operation) -> Operator:
    """What `op` is raised to; PassError for an operator that is not ours."""
    name = symbol(op)
    if name not in OPERATORS:
        raise PassError(op, f"there is no operator '{name}'; there are {' and '.join(OPERATORS)}")
    found = OPERATORS[name]
    wanted = len(found.tensors) + len(found.constants)
    if len(op.operands) != wanted or len(op.results) != len(found.results):
        has, takes = f"{len(op.operands)} -> {len(op.results)}", f"{wanted} -> {len(found.results)}"
        raise PassError(op, f"'{name}' has {has} operands -> results; it must have {takes}")
    return found


def packed_arguments(op: ir.Operation) -> dict[int, ir.Type]:
    """The function arguments that `op` reads as MXFP4, by number, with the types that say so."""
    operands = dict(zip(signature(op).tensors, op.operands, strict=False))
    found = {}
    for name in operands:
        codes, scales = operands[name], operands.get(f"{name}_scales")
        if scales is None or is_none(scales):
            continue
        for value, element in ((codes, ir.Float4E2M1FNType.get()), (scales, ir.Float8E8M0FNUType.get())):
            if not isinstance(value, ir.BlockArgument) or len(list(value.uses)) != 1:
                raise PassError(
                    op, f"MXFP4 {name} must be a function argument that nothing else reads, for its bytes are codes"
                )
            found[value.arg_number] = packed_type(builtin_type(op, value.type), element)
    return found


def packed_type(bytes_type: ir.Type, element: ir.Type) -> ir.Type:
    """The MXFP4 type of a tensor of bytes: the last axis of codes counts codes, [.., K/32, 16] becomes [.., K]."""
    *sizes, last = bytes_type.shape
    if isinstance(element, ir.Float4E2M1FNType):
        if len(sizes) == 3:
            last *= sizes.pop()
        last *= CODES_PER_BYTE
    return ir.RankedTensorType.get([*sizes, last], element)


def builtin_type(op: ir.Operation | ir.OpView, kind: ir.Type) -> ir.RankedTensorType:
    """tensor<?x4xi32> of !torch.vtensor<[?,4],si32>; PassError at `op` for a type that is no ranked value tensor."""
    match = TENSOR.fullmatch(str(kind))
    if match is None:
        raise PassError(
            op, f"{kind} is no value tensor of known rank and element type; export the model with torch.export"
        )
    shape, element = match.groups()
    sizes = [ir.ShapedType.get_dynamic_size() if size == "?" else int(size) for size in shape.split(",") if size]
    return ir.RankedTensorType.get(sizes, ir.Type.parse(re.sub(r"^[su]i", "i", element)))


def builtin(op: ir.Operation, value: ir.Value) -> ir.Value:
    """`value` as a builtin tensor, without a cast where it came from one; casts go to the insertion point."""
    if isinstance(value.type, ir.RankedTensorType):
        return value
    if isinstance(value.owner, ir.Operation | ir.OpView) and value.owner.name == FROM_BUILTIN:
        return value.owner.operands[0]
    return ir.Operation.create(TO_BUILTIN, results=[builtin_type(op, value.type)], operands=[value]).result


def raise_argument(argument: ir.BlockArgument, kind: ir.Type) -> None:
    """Give `argument` its builtin type; its readers get it through a cast."""
    torch_type = argument.type
    with ir.InsertionPoint.at_block_begin(argument.owner), ir.Location.unknown():
        cast = ir.Operation.create(FROM_BUILTIN, results=[torch_type], operands=[argument])
    argument.replace_all_uses_except(cast.result, cast)
    argument.set_type(kind)


def raise_operator(op: ir.Operation) -> None:
    """torch.operator "torch.moe.X"(tensors, constants) -> moe.X(tensors) {constants}, at the same place."""
    found = signature(op)
    count = len(found.tensors)
    fields: dict[str, Any] = dict.fromkeys(found.absent)
    with ir.InsertionPoint(op), op.location:
        for name, value in zip(found.tensors, op.operands[:count], strict=True):
            fields[name] = None if is_none(value) else builtin(op, value)
        for name, value in zip(found.constants, op.operands[count:], strict=True):
            fields[name] = constant(op, name, value)
        fields.pop("dtype", None)  # the result type has it
        for name, result in zip(found.results, op.results, strict=True):
            fields[name] = builtin_type(op, result.type)
        raised = found.op(**fields)
        for old, new in zip(op.results, raised.results, strict=True):
            old.replace_all_uses_with(ir.Operation.create(FROM_BUILTIN, results=[old.type], operands=[new]).result)
    op.erase()


def is_none(value: ir.Value) -> bool:
    return isinstance(value.owner, ir.Operation | ir.OpView) and value.owner.name == "torch.constant.none"


def constant(op: ir.Operation, name: str, value: ir.Value) -> ir.Attribute:
    """The attribute of a torch.constant: f32 for floats, i64, bool and strings as they are."""
    owner = value.owner
    if not isinstance(owner, ir.Operation | ir.OpView) or not owner.name.startswith("torch.constant."):
        raise PassError(op, f"{name} of '{symbol(op)}' is computed; it must be a constant")
    attribute = owner.attributes["value"]
    if isinstance(attribute, ir.FloatAttr):
        return ir.FloatAttr.get(ir.F32Type.get(), attribute.value)
    # A false BoolAttr is falsy in Python and op builders take that for missing; as an IntegerAttr it is itself.
    return ir.IntegerAttr(attribute) if isinstance(attribute, ir.BoolAttr) else attribute


def erase_dead(block: ir.Block) -> None:
    """Erase assertions about metadata, symbolic shapes, and then what no op reads."""
    for op in reversed(list(block.operations)):
        operation = op.operation
        stated = symbol(operation) or operation.name
        assertion = stated in ("torch.aten._assert_tensor_metadata", "torch.bind_symbolic_shape")
        pure = operation.name.startswith(("torch.", "torch_c.")) and len(operation.results)
        if assertion or (pure and not any(list(result.uses) for result in operation.results)):
            operation.erase()
