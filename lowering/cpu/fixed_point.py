"""Activations as integers of 21 bits in balanced digits of 7, for multiplication by bytes (the AVX2 tier).

The integers of a group share a power of two that puts the greatest of them between 2^19 and 2^20: a bf16 is exact down
to 2^-12 of it, an f16 down to 2^-9. Below 2^-105 the point stays where it is, so that every factor is a normal number
and what is subnormal becomes 0 whether or not the thread flushes it.
"""

from __future__ import annotations

from torch_mlir import ir

from .dsl import Buffer, Val, const, f32, fma, i8, i16, i32, intrinsic, select, table, vec
from .numbers import widen
from .tiers import Tier

DIGITS = 3
DIGIT_BITS = 7
_POINT = 19
"""The exponent that the greatest value of a group gets."""
_LEAST_EXPONENT = 22
"""Biased."""
_LANES = 8
_INF = 0x7F800000
_ROUNDING = 1.5 * 2.0**23
"""Added to an f32 below 2^22, it leaves the integer in the low bits, rounded to nearest even."""
_ROUNDING_BITS = 0x4B400000
_BY_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns 0 2 4 6 1 3 5 7, as packed, to 0 4 1 5, the low nibbles of a row's 32 bits, then 2 6 3 7, the high ones."""


def digits(x: Buffer, start: Val, kind: str, tier: Tier) -> tuple[list[Val], Val, Val]:
    """The 32 values from x[start], of `kind` "bf16" or "f16".

    Returns the digits from the lowest, 32 bytes each (quarters 0 2 1 3 of 8 columns, the low nibbles' before the high
    ones'), the sum of the integers (i32), and the factor of an integer's value (f32). A NaN makes the factor NaN and
    an Inf makes it Inf, where the other values become nearly nothing.
    """
    words, floats = vec(_LANES, i32()), vec(_LANES, f32())
    values: list[Val] = []
    for pair in range(0, 16, _LANES):
        bits = x.load(start + 2 * pair, 2 * _LANES).bits(words)
        values += [widen((bits >> shift).to(vec(_LANES, i16())), kind, tier) for shift in (0, 16)]
    most = const(0, words)
    for value in values:
        most = most.max(value.bits(words) & 0x7FFFFFFF)
    greatest = most.reduce("maxsi")
    finite, exponent = greatest < _INF, (greatest >> 23).max(_LEAST_EXPONENT)
    to_integer = (select(finite, (_POINT + 2 * 127) - exponent, const(1, i32())) << 23).bits(f32()).splat(floats)
    from_integer = select(finite, (exponent - _POINT) << 23, greatest).bits(f32())

    integers = [_rounded(value, to_integer) for value in values]
    total = (integers[0] + integers[1]) + (integers[2] + integers[3])
    two = 2 * DIGIT_BITS
    highest = [(value + (1 << two - 1)).shift_right_signed(two) for value in integers]
    rest = [value - (high << two) for value, high in zip(integers, highest, strict=True)]
    high = [_pack("ssdw", i16(), *pair) for pair in (highest[:2], highest[2:])]
    rest = [_pack("ssdw", i16(), *pair) for pair in (rest[:2], rest[2:])]
    middle = [(value + (1 << DIGIT_BITS - 1)).shift_right_signed(DIGIT_BITS) for value in rest]
    low = [value - (mid << DIGIT_BITS) for value, mid in zip(rest, middle, strict=True)]
    order = table([start + n for start in (0, 8) for n in _BY_NIBBLE] * 2, i8())
    packed = [_pack("sswb", i8(), *digit) for digit in (low, middle, high)]
    in_order = [intrinsic("llvm.x86.avx2.pshuf.b", digit.type, digit, order) for digit in packed]
    return in_order, total.reduce("add"), from_integer


def _rounded(value: Val, factor: Val) -> Val:
    """value * factor as an i32 of at most 2^20; Inf and NaN become that."""
    limit = const(_ROUNDING + 2.0**20, value.type)
    low_limit = const(_ROUNDING - 2.0**20, value.type)
    shifted = fma(value, factor, const(_ROUNDING, value.type))
    shifted = select(shifted < limit, shifted, limit)
    shifted = select(shifted > low_limit, shifted, low_limit)
    return shifted.bits(vec(_LANES, i32())) - _ROUNDING_BITS


def _pack(how: str, element: ir.Type, a: Val, b: Val) -> Val:
    """Both halves of 128 bits on their own: those of a, then those of b, at half the width."""
    kind = vec(2 * a.type.shape[0], element)
    return intrinsic(f"llvm.x86.avx2.pack{how}", kind, a, b)
