"""Types and attributes that passes write often."""

from torch_mlir import ir


def tensor(element: ir.Type, *sizes: int | None) -> ir.RankedTensorType:
    """A tensor type; None is a dynamic size."""
    dynamic = ir.ShapedType.get_dynamic_size()
    return ir.RankedTensorType.get([dynamic if size is None else size for size in sizes], element)


def integer(value: int) -> ir.IntegerAttr:
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)


def word(value: str) -> ir.StringAttr:
    return ir.StringAttr.get(value)
