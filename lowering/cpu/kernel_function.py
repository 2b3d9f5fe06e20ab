"""One kernel function of the CPU ABI: `void name(void **args, int64_t first, int64_t end)` (docs/program.md)."""

from __future__ import annotations

from collections.abc import Callable

from torch_mlir import ir
from torch_mlir.dialects import func, llvm

from .dsl import Buffer, Val, i64, index, loop
from .tiers import Tier


class KernelFunction:
    """Hands out the arguments of a kernel in the order of its slots while the body of its loop over tiles is being
    built. What one tile leaves on the stack the next one finds."""

    def __init__(self, tier: Tier, args: ir.Value, tile: Val):
        self.tier, self.tile = tier, tile
        self._args, self._slot = args, 0

    def _next(self, kind: ir.Type) -> ir.Value:
        pointer = ir.Type.parse("!llvm.ptr")
        slot = llvm.getelementptr(pointer, self._args, [], [self._slot], i64(), llvm.GEPNoWrapFlags.none)
        self._slot += 1
        return llvm.load(kind, slot)

    def tensor(self, element: ir.Type) -> Buffer:
        """The next operand or result, as a flat array of `element`."""
        return Buffer.at(self._next(ir.Type.parse("!llvm.ptr")), element)

    def size(self) -> Val:
        """The next slot as an index: a row stride, or M at the end."""
        return Val(self._next(i64())).to(index())


def define(name: str, tier: Tier, body: Callable[[KernelFunction], None]) -> None:
    """Add a kernel to the module at the insertion point; `body` reads its arguments and builds the code of a tile."""
    pointer = ir.Type.parse("!llvm.ptr")
    function = func.FuncOp(name, ir.FunctionType.get([pointer, i64(), i64()], []))
    with ir.InsertionPoint(function.add_entry_block()):
        args, first, end = function.arguments
        first, end = (Val(bound).to(index()) for bound in (first, end))
        loop(first, end, 1, [], lambda tile: body(KernelFunction(tier, args, tile)))
        func.return_([])
