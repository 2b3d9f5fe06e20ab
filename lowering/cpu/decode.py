"""How a tier turns packed e2m1 weights into operands of a multiplication (layout `n16k32`, docs/program.md).

A lane is an output row. A decoder reads `words`, the 8 codes of a quarter group for `lanes` rows, and yields
the weights of one `step` after the other; a step covers `columns` columns of x at `column(step)`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torch_mlir import ir

from .dsl import Buffer, Val, bf16, const, f32, fma, i8, i16, i32, intrinsic, table, vec
from .fixed_point import DIGIT_BITS, DIGITS, digits
from .numbers import widen
from .tiers import Tier

ROWS = 16
"""Output rows of a weight tile."""
GROUP = 32
"""Columns that share a scale."""
QUARTER = 8
"""Columns of one contiguous run of the packed payload."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SIGNED_E2M1 = (*E2M1, *(-v for v in E2M1))
_SHIFT = 12
"""Added to twice an e2m1 value, it leaves nothing negative: vpmaddubsw takes one side unsigned."""


@dataclass(frozen=True)
class Decoder:
    """f32 weights, one column a step, by arithmetic that every CPU has. The base of the others."""

    lanes: int
    steps = QUARTER
    unit = 0.5
    """What a decoded weight must still be multiplied with."""
    token_tiles: tuple[int, ...] = (1, 2, 4)
    parts = 1
    """Values of x that a step multiplies with the same weights, each with a sum of its own."""
    staged_as_it_is = False
    """Whether a row of x is staged already where it lies."""

    @property
    def staged(self) -> ir.Type:
        """The element type x is staged in; an element holds the columns of one step."""
        return f32()

    @property
    def columns(self) -> int:
        return QUARTER // self.steps

    @property
    def span(self) -> int:
        """Staged elements of a row's group."""
        return GROUP // self.columns

    def stage(self, x: Buffer, start: Val, staged: Buffer, there: Val, kind: str, tier: Tier) -> None:
        """Stage a group of a row: x[start .. start+GROUP] into staged[there .. there+span]."""
        for column in range(0, GROUP, self.lanes):
            staged.store(widen(x.load(start + column, self.lanes), kind, tier), there + column)

    def column(self, step: int) -> int:
        """Nibbles 0..3 of a row's 32 bits hold the even columns, 4..7 the odd ones."""
        return 2 * (step % 4) + step // 4

    def words(self, payload: Buffer, position: Val) -> Val:
        return payload.load(position, 4 * self.lanes).bits(vec(self.lanes, i32()))

    def load(self, staged: Buffer, there: Val, quarter: int, step: int) -> tuple[Val, ...]:
        """The parts of x in a step, scalars of the staged type, of a row's group staged at `there`."""
        return (staged.load(there + (quarter * QUARTER + self.column(step)) // self.columns),)

    def weights(self, words: Val, step: int) -> Val:
        """Twice the e2m1 value: of the magnitude bits c it is c, plus c - 4 above 4, plus 2 (c - 6) above 6."""
        floats = vec(self.lanes, f32())
        code = ((words >> (4 * step)) & 7).to(floats)
        twice = code + (code - 4.0).max(0.0) + (code - 6.0).max(0.0) * 2.0
        return _with_sign(twice, words, step)

    @property
    def sums(self) -> ir.Type:
        """The vector in which the products of a part are summed over a group."""
        return vec(self.lanes, f32())

    def add(self, weights: Val, x: Val, total: Val) -> Val:
        """The sums of a part with those of a step."""
        return total + weights * x

    def group_sum(self, totals: tuple[Val, ...], staged: Buffer, there: Val) -> Val:
        """The sums of a group and of a row staged at `there` in f32."""
        return totals[0] * self.unit

    def scale_add(self, product: Val, scale: Val, total: Val) -> Val:
        return total + product * scale


@dataclass(frozen=True)
class Avx2(Decoder):
    """Bytes of twice the value and `_SHIFT`, looked up four columns at a time (vpshufb) and multiplied with the digits
    of x in fixed point (vpmaddubsw). All sums of a group are exact.

    A byte is at most 24 and a digit at most 64 of either sign, so that 16 products fit in an i16.
    """

    steps = 2
    token_tiles: tuple[int, ...] = (1, 2, 4)
    parts = DIGITS

    @property
    def staged(self) -> ir.Type:
        return i32()

    @property
    def span(self) -> int:
        """The digits, what `_SHIFT` adds to every integer sum, and the factor that makes it f32."""
        return DIGITS * QUARTER + 2

    def stage(self, x: Buffer, start: Val, staged: Buffer, there: Val, kind: str, tier: Tier) -> None:
        parts, total, factor = digits(x, start, kind, tier)
        for number, part in enumerate(parts):
            staged.store(part.bits(vec(QUARTER, i32())), there + number * QUARTER)
        staged.store(total * _SHIFT, there + DIGITS * QUARTER)
        staged.store((factor * 0.5).bits(i32()), there + DIGITS * QUARTER + 1)

    def load(self, staged: Buffer, there: Val, quarter: int, step: int) -> tuple[Val, ...]:
        at = quarter % 2 * 4 + quarter // 2 * 2 + step
        return tuple(staged.load(there + number * QUARTER + at) for number in range(DIGITS))

    def weights(self, words: Val, step: int) -> Val:
        kind = vec(4 * self.lanes, i8())
        codes = ((words >> (4 * step)) & 0x0F0F0F0F).bits(kind)
        shifted = [int(2 * value) + _SHIFT for value in SIGNED_E2M1]
        return intrinsic("llvm.x86.avx2.pshuf.b", kind, table(shifted * 2, i8()), codes)

    @property
    def sums(self) -> ir.Type:
        return vec(2 * self.lanes, i16())

    def add(self, weights: Val, x: Val, total: Val) -> Val:
        columns = x.splat(vec(self.lanes, i32())).bits(weights.type)
        return total + intrinsic("llvm.x86.avx2.pmadd.ub.sw", self.sums, weights, columns)

    def group_sum(self, totals: tuple[Val, ...], staged: Buffer, there: Val) -> Val:
        kind = vec(self.lanes, i32())
        shifted: list[Val] = []
        for number, total in enumerate(totals):
            power = const(1 << DIGIT_BITS * number, total.type)
            shifted.append(intrinsic("llvm.x86.avx2.pmadd.wd", kind, total, power))
        low, middle, high = shifted
        integers = low + middle + (high - staged.load(there + DIGITS * QUARTER))
        return integers.to(vec(self.lanes, f32())) * staged.load(there + DIGITS * QUARTER + 1).bits(f32())

    def scale_add(self, product: Val, scale: Val, total: Val) -> Val:
        return fma(product, scale, total)


@dataclass(frozen=True)
class Avx512(Decoder):
    """Signed values looked up with vpermps of 16 lanes (its index is 4 bits, the higher ones are ignored)."""

    unit = 1.0
    token_tiles: tuple[int, ...] = (1, 2, 4, 6, 8, 12)

    def weights(self, words: Val, step: int) -> Val:
        kind = vec(self.lanes, f32())
        return intrinsic("llvm.x86.avx512.permvar.sf.512", kind, table(SIGNED_E2M1, f32()), words >> (4 * step))

    def add(self, weights: Val, x: Val, total: Val) -> Val:
        return fma(weights, x, total)

    def scale_add(self, product: Val, scale: Val, total: Val) -> Val:
        return fma(product, scale, total)


@dataclass(frozen=True)
class Avx512Bf16(Avx512):
    """bf16 column pairs looked up with vpermw (its index is 5 bits, so the table stands there twice), multiplied with
    vdpbf16ps; x is staged as pairs of bf16 in an i32."""

    steps = 4
    staged_as_it_is = True

    @property
    def staged(self) -> ir.Type:
        return i32()

    def stage(self, x: Buffer, start: Val, staged: Buffer, there: Val, kind: str, tier: Tier) -> None:
        for pair in range(0, self.span, self.lanes):
            bits = x.load(start + 2 * pair, 2 * self.lanes)
            staged.store(bits.bits(vec(self.lanes, i32())), there + pair)

    def column(self, step: int) -> int:
        return 2 * step

    def words(self, payload: Buffer, position: Val) -> Val:
        return payload.load(position, 4 * self.lanes).bits(vec(2 * self.lanes, i16()))

    def weights(self, words: Val, step: int) -> Val:
        return self.look_up([bf16_bits(v) for v in SIGNED_E2M1], words, step)

    def look_up(self, values: Sequence[int], words: Val, step: int) -> Val:
        """The 16-bit values of a step's codes."""
        kind = vec(2 * self.lanes, i16())
        bits = table([*values, *values], i16())
        return intrinsic("llvm.x86.avx512.permvar.hi.512", kind, bits, words >> (4 * step))

    def add(self, weights: Val, x: Val, total: Val) -> Val:
        pairs = vec(2 * self.lanes, bf16())
        x = x.splat(vec(self.lanes, i32()))
        return intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", total.type, total, weights.bits(pairs), x.bits(pairs))


@dataclass(frozen=True)
class Amx(Avx512Bf16):
    """As its base for one token and where a scale is extreme; otherwise tokens go 16 at a time (amx.py)."""

    token_tiles: tuple[int, ...] = (1, 16, 32)


def decoder(tier: Tier, x: str) -> Decoder:
    """The decoder of a tier for activations of type "bf16" or "f16" (f16 is not exact in bf16, so it takes f32)."""
    if tier.has("amx_bf16") and x == "bf16":
        return Amx(16)
    if tier.has("avx512_bf16") and x == "bf16":
        return Avx512Bf16(16)
    if tier.has("avx512f"):
        return Avx512(16)
    return Avx2(8) if tier.has("avx2") else Decoder(4)


def _with_sign(magnitude: Val, words: Val, step: int) -> Val:
    shift = 28 - 4 * step
    sign = (words << shift if shift else words) & (1 << 31)
    return (magnitude.bits(words.type) | sign).bits(magnitude.type)


def bf16_bits(value: float) -> int:
    """An e2m1 value has one mantissa bit, so the upper half of its f32 is exact."""
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16
