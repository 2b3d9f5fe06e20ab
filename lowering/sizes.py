"""Sizes as affine functions of M, the number of tokens; of several results of a map the minimum is meant."""

from collections.abc import Sequence
from typing import TypeAlias

from torch_mlir import ir

Expr: TypeAlias = ir.AffineExpr | int

NAMES = {
    ir.AffineAddExpr: "add",
    ir.AffineMulExpr: "mul",
    ir.AffineFloorDivExpr: "floordiv",
    ir.AffineCeilDivExpr: "ceildiv",
    ir.AffineModExpr: "mod",
}


def tokens() -> ir.AffineExpr:
    """M itself."""
    return ir.AffineDimExpr.get(0)


def constant(value: int) -> ir.AffineExpr:
    return ir.AffineConstantExpr.get(value)


def affine_map(*results: Expr) -> ir.AffineMapAttr:
    """(M) -> results."""
    exprs = [constant(r) if isinstance(r, int) else r for r in results]
    return ir.AffineMapAttr.get(ir.AffineMap.get(1, 0, exprs))


def floordiv(value: ir.AffineExpr, by: int) -> ir.AffineExpr:
    return ir.AffineExpr.get_floor_div(value, by)


def ceildiv(value: ir.AffineExpr, by: int) -> ir.AffineExpr:
    return ir.AffineExpr.get_ceil_div(value, by)


def round_up(value: ir.AffineExpr, to: int) -> ir.AffineExpr:
    return ceildiv(value, to) * to


def capacity(topk: int, experts: int, block: int) -> ir.AffineExpr:
    """S, rows of the sorted list (contract, section 2)."""
    return tokens() * topk + (experts * block - min(topk, experts))


def live_blocks(topk: int, experts: int, block: int) -> list[ir.AffineExpr]:
    """Bound of the sort blocks in use, without reading the device: the minimum of the two (contract, section 2).

    The contract's BM*(A + floor((R-A)/BM)) with A = min(E, R) grows with A: it is the smaller of its values at R and E.
    """
    rows = tokens() * topk
    return [rows, floordiv(rows + (-experts), block) + experts]


def multiple_of_tokens(expr: Expr) -> int | None:
    """F where the expression is F*M, else None."""
    # Read back from a map, where a folded expression has the class of what it is, not of how it was written.
    match to_json(affine_map(expr).value.results[0]):
        case "M":
            return 1
        case ["mul", "M", int(factor)]:
            return factor
    return None


def to_json(expr: ir.AffineExpr) -> int | str | list:
    """An affine expression as docs/program.md writes it."""
    if isinstance(expr, ir.AffineConstantExpr):
        return expr.value
    if isinstance(expr, ir.AffineDimExpr):
        return "M"
    for kind, name in NAMES.items():
        if isinstance(expr, kind):
            return [name, to_json(expr.lhs), to_json(expr.rhs)]
    raise AssertionError(f"an affine expression of M has no other form: {expr}")


def minimum(exprs: Sequence[ir.AffineExpr]) -> int | str | list:
    """The JSON form of the least of several expressions."""
    forms = [to_json(e) for e in exprs]
    return forms[0] if len(forms) == 1 else ["min", *forms]
