"""The activation between Marlin's products: rows of gate, up, gate, up ... to half as many columns."""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024


def activate(halves: Tensor, hidden: Tensor, swiglu: bool, alpha: float, limit: float) -> None:
    """hidden [R, I] of halves [R, 2I], both bf16: gpt-oss's SwiGLU (docs/contract.md, section 5), else SiLU."""
    rows, columns = hidden.shape
    grid = (rows, triton.cdiv(columns, COLUMNS))
    _activate[grid](halves, hidden, columns, alpha, limit, SWIGLU=swiglu, COLUMNS=COLUMNS)


@triton.jit
def _activate(halves, hidden, columns, alpha, limit, SWIGLU: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    first = halves + row * 2 * columns + 2 * column
    gate = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(first + 1, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        made = (up + 1) * gate * tl.sigmoid(alpha * gate)
    else:
        made = gate * tl.sigmoid(gate) * up
    tl.store(hidden + row * columns + column, made.to(hidden.dtype.element_ty), mask=inside)
