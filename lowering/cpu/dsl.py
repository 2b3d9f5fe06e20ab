"""A thin layer over MLIR's Python builders, so that a kernel reads as arithmetic.

`Val` wraps an `ir.Value` (scalar, vector or index) and gives it operators; Python numbers become constants of the other
side's type, scalars meet vectors by broadcast. Integers are unsigned in `>>`, `//`, `%` and signed in comparisons.
Nothing here knows of mixture-of-experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch_mlir import ir
from torch_mlir.dialects import arith, func, llvm, memref, scf, vector

Number = int | float
Like: TypeAlias = "Val | int | float"

_FLOAT_COMPARE = {"eq": 1, "ne": 6, "lt": 4, "le": 5, "gt": 2, "ge": 3}
_INT_COMPARE = {"eq": 0, "ne": 1, "lt": 2, "le": 3, "gt": 4, "ge": 5, "ult": 6}


def bit() -> ir.Type:
    """What comparisons give."""
    return ir.IntegerType.get_signless(1)


def i8() -> ir.Type:
    return ir.IntegerType.get_signless(8)


def i16() -> ir.Type:
    return ir.IntegerType.get_signless(16)


def i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def i64() -> ir.Type:
    return ir.IntegerType.get_signless(64)


def f32() -> ir.Type:
    return ir.F32Type.get()


def bf16() -> ir.Type:
    return ir.BF16Type.get()


def f16() -> ir.Type:
    return ir.F16Type.get()


def index() -> ir.Type:
    return ir.IndexType.get()


def vec(lanes: int, element: ir.Type) -> ir.VectorType:
    return ir.VectorType.get([lanes], element)


def element_of(kind: ir.Type) -> ir.Type:
    return kind.element_type if isinstance(kind, ir.VectorType) else kind


def _is_float(kind: ir.Type) -> bool:
    return isinstance(element_of(kind), (ir.F32Type, ir.BF16Type, ir.F16Type, ir.F64Type))


def const(value: Number, kind: ir.Type) -> Val:
    """A constant of a scalar or vector type; integers may be given unsigned."""
    element = element_of(kind)
    if isinstance(element, ir.IntegerType):
        bits = element.width
        value = int(value) & ((1 << bits) - 1)
        value -= (1 << bits) if bits > 1 and value >> (bits - 1) else 0
    attr = ir.FloatAttr.get(element, float(value)) if _is_float(kind) else ir.IntegerAttr.get(element, int(value))
    if isinstance(kind, ir.VectorType):
        return Val(arith.constant(kind, ir.DenseElementsAttr.get_splat(kind, attr)))
    return Val(arith.constant(kind, attr))


def table(values: Sequence[Number], element: ir.Type) -> Val:
    """A constant vector of the given values."""
    kind = vec(len(values), element)
    text = ", ".join(repr(float(v)) if _is_float(element) else str(int(v)) for v in values)
    return Val(arith.constant(kind, ir.Attribute.parse(f"dense<[{text}]> : {kind}")))


class Val:
    """An SSA value with operators."""

    __slots__ = ("v",)

    def __init__(self, value: ir.Value):
        self.v = value

    @property
    def type(self) -> ir.Type:
        return self.v.type

    def _meet(self, other: Like) -> tuple[Val, Val]:
        if not isinstance(other, Val):
            return self, const(other, self.type)
        if isinstance(self.type, ir.VectorType) and not isinstance(other.type, ir.VectorType):
            return self, other.splat(self.type)
        if isinstance(other.type, ir.VectorType) and not isinstance(self.type, ir.VectorType):
            return self.splat(other.type), other
        return self, other

    def _binary(self, other: Like, on_int: Callable, on_float: Callable | None = None) -> Val:
        a, b = self._meet(other)
        op = on_float if on_float and _is_float(a.type) else on_int
        return Val(op(a.v, b.v))

    def __add__(self, other: Like) -> Val:
        return self._binary(other, arith.addi, arith.addf)

    __radd__ = __add__

    def __sub__(self, other: Like) -> Val:
        return self._binary(other, arith.subi, arith.subf)

    def __rsub__(self, other: Like) -> Val:
        a, b = self._meet(other)
        return b - a

    def __mul__(self, other: Like) -> Val:
        return self._binary(other, arith.muli, arith.mulf)

    __rmul__ = __mul__

    def __neg__(self) -> Val:
        return Val(arith.negf(self.v)) if _is_float(self.type) else 0 - self

    def __truediv__(self, other: Like) -> Val:
        return self._binary(other, arith.divui, arith.divf)

    def __rtruediv__(self, other: Like) -> Val:
        a, b = self._meet(other)
        return b / a

    def __floordiv__(self, other: Like) -> Val:
        return self._binary(other, arith.divui)

    def __mod__(self, other: Like) -> Val:
        return self._binary(other, arith.remui)

    def __and__(self, other: Like) -> Val:
        return self._binary(other, arith.andi)

    def __or__(self, other: Like) -> Val:
        return self._binary(other, arith.ori)

    def __xor__(self, other: Like) -> Val:
        return self._binary(other, arith.xori)

    def __lshift__(self, other: Like) -> Val:
        return self._binary(other, arith.shli)

    def __rshift__(self, other: Like) -> Val:
        return self._binary(other, arith.shrui)

    def shift_right_signed(self, other: Like) -> Val:
        return self._binary(other, arith.shrsi)

    def _compare(self, how: str, other: Like) -> Val:
        a, b = self._meet(other)
        if _is_float(a.type):
            return Val(arith.cmpf(_FLOAT_COMPARE[how], a.v, b.v))
        return Val(arith.cmpi(_INT_COMPARE[how], a.v, b.v))

    def __lt__(self, other: Like) -> Val:
        return self._compare("lt", other)

    def __le__(self, other: Like) -> Val:
        return self._compare("le", other)

    def __gt__(self, other: Like) -> Val:
        return self._compare("gt", other)

    def __ge__(self, other: Like) -> Val:
        return self._compare("ge", other)

    def eq(self, other: Like) -> Val:
        return self._compare("eq", other)

    def ne(self, other: Like) -> Val:
        return self._compare("ne", other)

    def below(self, other: Like) -> Val:
        """Unsigned less-than."""
        return self._compare("ult", other)

    def min(self, other: Like) -> Val:
        return self._binary(other, arith.minsi, arith.minnumf)

    def max(self, other: Like) -> Val:
        return self._binary(other, arith.maxsi, arith.maxnumf)

    def to(self, kind: ir.Type) -> Val:
        """Convert numerically; integers extend unsigned, floats round to nearest even. Scalars broadcast to vectors."""
        if self.type == kind:
            return self
        if isinstance(kind, ir.VectorType) and not isinstance(self.type, ir.VectorType):
            return self.to(kind.element_type).splat(kind)
        source, target = element_of(self.type), element_of(kind)
        if isinstance(source, ir.IndexType) or isinstance(target, ir.IndexType):
            return Val(arith.index_castui(kind, self.v))
        if _is_float(source) and _is_float(target):
            wider = target.width > source.width
            return Val((arith.extf if wider else arith.truncf)(kind, self.v))
        if _is_float(target):
            return Val(arith.sitofp(kind, self.v))
        if _is_float(source):
            return Val(arith.fptosi(kind, self.v))
        return Val((arith.extui if target.width > source.width else arith.trunci)(kind, self.v))

    def bits(self, kind: ir.Type) -> Val:
        """Reinterpret the bits as another type of the same total width."""
        if isinstance(kind, ir.VectorType):
            return Val(vector.bitcast(kind, self.v))
        return Val(arith.bitcast(kind, self.v))

    def splat(self, kind: ir.VectorType) -> Val:
        return Val(vector.broadcast(kind, self.v))

    def lane(self, number: int) -> Val:
        return Val(vector.extract(self.v, [], [number]))

    def shuffle(self, other: Val, mask: Sequence[int]) -> Val:
        return Val(vector.shuffle(self.v, other.v, list(mask)))

    def reduce(self, how: str) -> Val:
        """Combine the lanes: add, maxnumf, maxui, ori and so on, as vector.reduction names them."""
        return Val(vector.reduction(self.type.element_type, ir.Attribute.parse(f"#vector.kind<{how}>"), self.v))


def select(condition: Val, yes: Val, no: Val | Number) -> Val:
    no = no if isinstance(no, Val) else const(no, yes.type)
    return Val(arith.select(condition.v, yes.v, no.v))


def fma(a: Val, b: Val, c: Val) -> Val:
    a, b = a._meet(b)
    if isinstance(a.type, ir.VectorType):
        return Val(vector.fma(a.v, b.v, c.v))
    return a * b + c


def intrinsic(name: str, result: ir.Type, *args: Val) -> Val:
    """Call an LLVM intrinsic by name."""
    return Val(llvm.call_intrinsic(result, name, [a.v for a in args], [], []))


def effect(name: str, *args: Val) -> None:
    """Call an LLVM intrinsic that has no result."""
    llvm.call_intrinsic(None, name, [a.v for a in args], [], [])


def loop(
    start: Like, stop: Like, step: int, init: Sequence[Val], body: Callable[..., Sequence[Val] | None]
) -> list[Val]:
    """`body(i, *carried)` for i in range(start, stop, step), carrying values; returns the last carried values."""
    bounds = [b if isinstance(b, Val) else const(b, index()) for b in (start, stop, step)]
    op = scf.ForOp(*(b.v for b in bounds), [value.v for value in init])
    with ir.InsertionPoint(op.body):
        carried = body(Val(op.induction_variable), *(Val(a) for a in op.inner_iter_args))
        scf.yield_([value.v for value in carried or ()])
    return [Val(r) for r in op.results_]


def when(condition: Val, then: Callable[[], Sequence[Val] | None], otherwise: Callable | None = None) -> list[Val]:
    """An `if`; both branches return values of the same types, and a lone `then` returns none."""
    if otherwise is None:
        op = scf.IfOp(condition.v)
        with ir.InsertionPoint(op.then_block):
            then()
            scf.yield_([])
        return []
    # The result types are known only once the branches exist, so these are built in a scratch op and moved.
    scratch = scf.IfOp(condition.v, [], has_else=True)
    results = []
    for block, branch in ((scratch.then_block, then), (scratch.else_block, otherwise)):
        with ir.InsertionPoint(block):
            results.append([value.v for value in branch() or ()])
            scf.yield_(results[-1])
    op = scf.IfOp(condition.v, [value.type for value in results[0]], has_else=True)
    for source, target in ((scratch.then_block, op.then_block), (scratch.else_block, op.else_block)):
        for inner in list(source.operations):
            target.append(inner)
    scratch.operation.erase()
    return [Val(r) for r in op.results]


class Buffer:
    """A flat array behind a pointer: elements are addressed by one index, loads and stores may be vectors."""

    def __init__(self, value: ir.Value, element: ir.Type):
        self.memref, self.element = value, element

    @staticmethod
    def at(pointer: ir.Value, element: ir.Type) -> Buffer:
        """View raw memory as a flat array. Built by hand: no upstream op makes a memref of a pointer."""
        kind = ir.MemRefType.get([ir.ShapedType.get_dynamic_size()], element)
        struct = ir.Type.parse("!llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>")
        value = llvm.mlir_undef(struct)
        zero, one, huge = (arith.constant(i64(), n) for n in (0, 1, 1 << 62))
        for part, position in ((pointer, [0]), (pointer, [1]), (zero, [2]), (huge, [3, 0]), (one, [4, 0])):
            value = llvm.insertvalue(value, part, position)
        cast = ir.Operation.create("builtin.unrealized_conversion_cast", results=[kind], operands=[value])
        return Buffer(cast.results[0], element)

    @staticmethod
    def stack(count: int, element: ir.Type) -> Buffer:
        """`count` elements on the stack for the whole call, wherever it is built, aligned to 64 bytes."""
        kind = ir.MemRefType.get([count], element)
        with ir.InsertionPoint.at_block_begin(_function().entry_block):
            return Buffer(memref.AllocaOp(kind, [], [], alignment=64).result, element)

    def fill_once(self, value: Number) -> Buffer:
        """Of a stack buffer: every element is `value` when the function is called."""
        with ir.InsertionPoint.after(self.memref.owner):
            for position in range(self.memref.type.shape[0]):
                self.store(value, position)
        return self

    def load(self, position: Like, lanes: int | None = None) -> Val:
        where = _position(position)
        if lanes is None:
            return Val(memref.load(self.memref, [where]))
        return Val(vector.load(vec(lanes, self.element), self.memref, [where]))

    def pointer(self, position: Like) -> Val:
        """The address of an element as an LLVM pointer."""
        start = Val(memref.extract_aligned_pointer_as_index(self.memref)).to(i64())
        base = llvm.inttoptr(ir.Type.parse("!llvm.ptr"), start.v)
        offset = Val(_position(position)).to(i64())
        return Val(
            llvm.getelementptr(base.type, base, [offset.v], [-(1 << 31)], self.element, llvm.GEPNoWrapFlags.none)
        )

    def prefetch(self, position: Like, locality: int = 3) -> None:
        """Ask for the cache line of an element; any address will do. `locality` 3 is the first level, 2 the second."""
        memref.prefetch(self.memref, [_position(position)], False, locality, True)

    def store(self, value: Val | Number, position: Like) -> None:
        value = value if isinstance(value, Val) else const(value, self.element)
        if isinstance(value.type, ir.VectorType):
            vector.store(value.v, self.memref, [_position(position)])
        else:
            memref.store(value.v, self.memref, [_position(position)])


def _function() -> func.FuncOp:
    """The one being built."""
    op = ir.InsertionPoint.current.block.owner
    while op.name != "func.func":
        op = op.parent
    return op.opview


def _position(position: Like) -> ir.Value:
    if not isinstance(position, Val):
        return const(position, index()).v
    return position.to(index()).v
