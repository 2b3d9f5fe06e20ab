"""Words of shared memory at addresses of a kernel's own, for tables of the decode kernels."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

WORD = gl.constexpr(4)
"""Bytes of a word."""


@gluon.jit
def allocate_words(COUNT: gl.constexpr):
    """Shared memory for COUNT words."""
    return gl.allocate_shared_memory(gl.int32, [COUNT], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.constexpr_function
def _put_assembly(count):
    """Store $count to $(2 count - 1) at $0 to $(count - 1) where $(2 count) to $(3 count - 1) are not 0."""
    lines = [f"setp.ne.s32 p, ${2 * count + i}, 0; @p st.shared.b32 [${i}], ${count + i};" for i in range(count)]
    return "{ .reg .pred p; " + " ".join(lines) + " }"


@gluon.constexpr_function
def _registers(count):
    return ",".join(["r"] * count)


@gluon.jit
def put_words(address, value, where, COUNT: gl.constexpr):
    """Store i32 `value` at `address` where `where` is not 0. COUNT: elements a thread."""
    gl.inline_asm(_put_assembly(COUNT), _registers(3 * COUNT), [address, value, where])


@gluon.jit
def get_word(address):
    """i32 of the shape of `address`."""
    kind: gl.constexpr = address.type
    return gl.inline_asm("ld.shared.b32 $0, [$1];", "=r,r", [address], kind, is_pure=False)


@gluon.jit
def get_pair(address):
    """Two i32 of the shape of `address`, a multiple of 8: the word there and the next one."""
    kind: gl.constexpr = address.type
    return gl.inline_asm("ld.shared.v2.b32 {$0, $1}, [$2];", "=r,=r,r", [address], (kind, kind), is_pure=False)
