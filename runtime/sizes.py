"""Sizes as a manifest writes them (docs/program.md): forms in the number of tokens M. Needs no torch."""

from collections.abc import Callable

Expr = int | str | list
"""A size: a number, "M", or [operator, a, b, ...]."""

OPERATORS: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "ceildiv": lambda a, b: -(-a // b),
    "mod": lambda a, b: a % b,
    "min": min,
}


def evaluate(size: Expr, m: int) -> int:
    """The value of a size at M = `m`."""
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return m
    operator, *operands = size
    return OPERATORS[operator](*(evaluate(operand, m) for operand in operands))
