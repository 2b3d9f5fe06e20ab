"""Number formats in integer arithmetic: bf16, f16, e2m1 and e8m0 (docs/contract.md, section 1), and exp.

Integer operations because `truncf`/`extf` on half types become library calls on old CPUs, AVX-512 BF16's conversion
flushes subnormals, and the results may not depend on whether the calling thread flushes denormals. All functions take
scalars or vectors unless they say otherwise.
"""

from __future__ import annotations

from torch_mlir import ir

from .dsl import Val, bf16, const, element_of, f16, f32, fma, i8, i16, i32, select, vec, when
from .tiers import Tier

GROUP = 32
"""Elements that share one e8m0 scale."""
E8M0_NAN = 255
_INF = 0x7F800000


def like(value: Val, element: ir.Type) -> ir.Type:
    """The type of `value` with another element type."""
    return vec(value.type.shape[0], element) if isinstance(value.type, ir.VectorType) else element


def from_bf16(x: Val) -> Val:
    """bf16, or its bits as i16, to f32."""
    return (x.bits(like(x, i16())).to(like(x, i32())) << 16).bits(like(x, f32()))


def to_bf16_bits(x: Val) -> Val:
    """f32 to the bits of bf16 as i16: round to nearest even, NaN stays NaN."""
    bits = x.bits(like(x, i32()))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > _INF
    return select(is_nan, (bits >> 16) | 0x40, rounded).to(like(x, i16()))


def to_bf16(x: Val) -> Val:
    """f32 to bf16: round to nearest even, NaN stays NaN."""
    return to_bf16_bits(x).bits(like(x, bf16()))


def from_f16(x: Val, tier: Tier) -> Val:
    """f16, or its bits as i16, to f32."""
    if tier.has("f16c"):
        return x.bits(like(x, f16())).to(like(x, f32()))
    bits = x.bits(like(x, i16())).to(like(x, i32()))
    magnitude = bits & 0x7FFF
    normal = (magnitude << 13) + ((127 - 15) << 23)
    special = (magnitude << 13) | _INF
    subnormal = (magnitude.to(like(x, f32())) * 2.0**-24).bits(like(x, i32()))
    wide = select(magnitude < 0x400, subnormal, select(magnitude < 0x7C00, normal, special))
    return (wide | ((bits & 0x8000) << 16)).bits(like(x, f32()))


def to_f16(x: Val, tier: Tier) -> Val:
    """f32 to f16: round to nearest even, overflow to Inf, NaN stays NaN."""
    if tier.has("f16c"):
        return x.to(like(x, f16()))
    bits = x.bits(like(x, i32()))
    magnitude = bits & 0x7FFFFFFF
    rounded = (magnitude - ((127 - 15) << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    # Below 2^-14 the grid is that of 0.5's last place, so adding 0.5 rounds.
    subnormal = (magnitude.bits(like(x, f32())) + 0.5).bits(like(x, i32())) - 0x3F000000
    finite = select(magnitude < 0x38800000, subnormal, rounded.min(0x7C00))
    small = select(magnitude > _INF, const(0x7E00, finite.type), finite)
    return (small | ((bits >> 16) & 0x8000)).to(like(x, i16())).bits(like(x, f16()))


def widen(x: Val, kind: str, tier: Tier) -> Val:
    """Bits (i16) or values of `kind` "bf16" or "f16", or f32 values, to f32."""
    if kind == "f32":
        return x
    return from_bf16(x) if kind == "bf16" else from_f16(x, tier)


def narrow(x: Val, kind: str, tier: Tier) -> Val:
    """f32 to "bf16" or "f16", round to nearest even."""
    return to_bf16(x) if kind == "bf16" else to_f16(x, tier)


def e8m0_scale(amax: Val, mode: str) -> Val:
    """The scale byte (i32) of a group whose largest magnitude has the f32 bits `amax` (i32, no sign); NaN gives 255."""
    exponent, mantissa = amax >> 23, amax & 0x7FFFFF
    if mode == "even":
        byte = ((amax + 0x200000) >> 23) - 2
    elif mode == "floor":
        byte = exponent - 2
    elif mode == "ceil":
        byte = exponent + (mantissa > 0).to(amax.type) - 2
    elif mode == "rceil":
        # 6 is 1.5 * 2^2; Inf is above every finite 6 * 2^(b-127).
        above = (mantissa > 0x400000) | amax.eq(_INF)
        byte = exponent + above.to(amax.type) - 2
    else:
        raise ValueError(f"scale mode {mode!r} is unknown; use even, floor, ceil or rceil")
    return select(amax > _INF, const(E8M0_NAN, amax.type), byte.max(0))


def _integers(x: Val) -> tuple[Val, int, int]:
    """The bits of an f32 or bf16 value (or of bf16 held in i16), their width and their mantissa bits."""
    element = element_of(x.type)
    if isinstance(element, ir.F32Type):
        return x.bits(like(x, i32())), 32, 23
    return x.bits(like(x, i16())), 16, 7


def e2m1_encode(x: Val, scale: Val | int = 127) -> Val:
    """Codes 0..15 of x / 2^(scale-127): nearest even, saturating at 6, with the sign of zero kept.

    `x` is a vector of f32, of bf16 or of the bits of bf16 in i16, free of NaN; codes come in lanes of the same width.
    `scale` is one byte (i32) for all lanes.
    """
    bits, width, mantissa = _integers(x)
    sign, magnitude = (bits >> (width - 4)) & 8, bits & ((1 << (width - 1)) - 1)
    scale = scale if isinstance(scale, Val) else const(scale, i32())
    byte = scale.to(element_of(bits.type))
    # u is the bit distance from 1.0; e2m1 has one bit of mantissa, so rounding is that of any float format.
    one, half = 1 << mantissa, 1 << (mantissa - 1)
    u = (magnitude - (byte << mantissa)).min(2 * one + half)
    w = u + one
    rounded = (w + (half // 2 - 1) + ((w >> (mantissa - 1)) & 1)) >> (mantissa - 1)
    below_one = select(u >= -half, const(2, u.type), select(u > -2 * one, const(1, u.type), 0))
    codes = select(u < 0, below_one, rounded)

    def at_the_ends() -> list[Val]:
        quarter = const(1 << (mantissa - 3), byte.type) << byte.min(3)
        code = (magnitude > quarter).to(u.type) + (magnitude >= quarter * 3).to(u.type)
        code = code + (magnitude > quarter * 5).to(u.type) + (magnitude >= quarter * 7).to(u.type)
        finite = select(magnitude < one, code, codes)
        return [select(magnitude < (0xFF << mantissa), finite, const(7, u.type))]

    # Subnormals have no implied one, and from scale 3 upwards they round to 0 as the codes above say. Inf is just the
    # next number after the finite ones here, which shows from scale 253 upwards.
    return when((scale - 3).below(250), lambda: [codes], at_the_ends)[0] | sign


def e2m1_decode(codes: Val, scale: Val) -> Val:
    """bf16 bits (i16) of codes 0..15 (i16 vector) times 2^(scale-127), exact or Inf; scale 255 gives NaN."""
    magnitude, sign = codes & 7, (codes & 8) << 12
    byte = scale.to(i16())
    half = select(scale.eq(0), const(0x20, i16()), select(scale.eq(1), const(0x40, i16()), (byte - 1) << 7))
    bits = select(magnitude < 2, magnitude * half, ((magnitude - 2) << 6) + (byte << 7))
    # At scale 0 everything below code 4 is subnormal: a plain count of 2^-133.
    subnormals = select(scale.eq(0), const(4, i16()), 0)
    bits = select(magnitude < subnormals, magnitude << 5, bits)
    bits = select(bits.below(0x7F80), bits, 0x7F80)
    return select(scale.eq(E8M0_NAN), const(0x7FC0, bits.type), bits | sign)


def quantise_group(x: Val, mode: str) -> tuple[Val, Val]:
    """One group of 32: its 16 packed bytes (even elements in the low nibbles) and its scale byte (i8).

    `x` is a vector of 32 f32, bf16, or bits of bf16 in i16. A group with a NaN gives scale 255 and bytes 0.
    """
    bits, width, mantissa = _integers(x)
    amax = (bits & ((1 << (width - 1)) - 1)).reduce("maxsi").to(i32()) << (23 - mantissa)
    scale = e8m0_scale(amax, mode)
    codes = e2m1_encode(bits.bits(x.type), scale).to(vec(GROUP, i16()))
    pairs = codes.bits(vec(GROUP // 2, i32()))
    packed = (pairs | (pairs >> 12)).to(vec(GROUP // 2, i8()))
    return select(scale.eq(E8M0_NAN), const(0, packed.type), packed), scale.to(i8())


def unpack_codes(packed: Val) -> Val:
    """32 codes in i16 lanes of 16 packed bytes."""
    pairs = packed.to(vec(GROUP // 2, i32()))
    return ((pairs | (pairs << 12)) & 0x000F000F).bits(vec(GROUP, i16()))


_EXP = (1.0, 1.0, 0.5, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
"""Cephes expf, lowest power first."""


def exp(x: Val) -> Val:
    """e^x in f32 to about 1 ulp; overflows to Inf, underflows to 0, NaN stays NaN."""
    x = select(x > 89.0, const(89.0, x.type), select(x < -104.0, const(-104.0, x.type), x))
    # Adding 1.5 * 2^23 rounds to an integer without an instruction SSE2 lacks.
    shifted = fma(x, const(1.44269504088896341, x.type), const(12582912.0, x.type))
    n = shifted - 12582912.0
    r = fma(n, const(-0.693359375, x.type), x)
    r = fma(n, const(2.12194440e-4, x.type), r)
    value = const(_EXP[-1], x.type)
    for coefficient in _EXP[-2::-1]:
        value = fma(value, r, const(coefficient, x.type))
    # In two steps, because 2^128 and 2^-127 are no normal numbers.
    power = shifted.bits(like(x, i32())) - 0x4B400000
    first = power.shift_right_signed(1)
    for part in (first, power - first):
        value = value * ((part + 127) << 23).bits(x.type)
    return value


def sigmoid(x: Val) -> Val:
    """1 / (1 + e^-x) in f32."""
    return const(1.0, x.type) / (exp(const(0.0, x.type) - x) + 1.0)
