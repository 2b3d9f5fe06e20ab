"""The rules of verifiers: each holds, or raises `Broken` with the one line that the op's location reports."""

from collections.abc import Callable

from torch_mlir import ir


class Broken(Exception):
    """A rule that an op does not keep: what was found and what was wanted."""


def checked(rules: Callable[[ir.OpView], None]) -> Callable[[ir.OpView], bool]:
    """A `verify_region_invariants` from a method that states rules; the first broken one is reported at the op.

    MLIR calls it once operands, attributes and results fit their declarations.
    """

    def verify_region_invariants(op: ir.OpView) -> bool:
        try:
            rules(op)
        except Broken as broken:
            op.location.emit_error(f"'{op.OPERATION_NAME}' {broken}")
            return False
        return True

    return verify_region_invariants


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


def one_of(op: ir.OpView, name: str, *allowed: str | int) -> None:
    """Attribute `name` has one of the values `allowed`."""
    found = op.attributes[name].value
    require(found in allowed, f"{name} is {found!r}; it must be {' or '.join(map(str, allowed))}")


def element(name: str, value: ir.Value | None, *allowed: str) -> None:
    """The tensor, where it is given, has one of the element types `allowed`."""
    if value is not None:
        found = element_type(value)
        require(found in allowed, f"{name} has element type {found}; it must be {' or '.join(allowed)}")


def rank(name: str, value: ir.Value | None, wanted: int) -> None:
    """The tensor, where it is given, has `wanted` axes."""
    if value is not None:
        found = value.type.rank
        require(found == wanted, f"{name} has rank {found}; it must be {wanted}")


def shape(name: str, value: ir.Value | None, *wanted: int | None) -> None:
    """The tensor, where it is given, has these sizes; None accepts any, and a dynamic size fits every one."""
    if value is not None:
        rank(name, value, len(wanted))
        fits = all(w is None or f is None or f == w for f, w in zip(dims(value), wanted, strict=True))
        sizes = "x".join("?" if w is None else str(w) for w in wanted)
        require(fits, f"{name} is {value.type}; its shape must be {sizes}")


def static(name: str, value: ir.Value, axis: int) -> int:
    """The size of one axis, which the program must state."""
    found = dims(value)[axis]
    if found is None:
        raise Broken(f"{name} is {value.type}; axis {axis} must have a static size")
    return found


def size(value: ir.Value, axis: int) -> int:
    """The size of an axis that the rules of its op made static."""
    found = dims(value)[axis]
    assert found is not None
    return found


def dims(value: ir.Value) -> list[int | None]:
    """The shape of a ranked tensor, None where it is dynamic."""
    kind = value.type
    return [None if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)]


def width(value: ir.Value) -> int | None:
    """Size of the last axis."""
    return dims(value)[-1] if value.type.rank else None


def element_type(value: ir.Value) -> str:
    return str(value.type.element_type)
