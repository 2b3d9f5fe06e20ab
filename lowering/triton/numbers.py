"""Number formats on the device: the e8m0 scale of a group and e2m1 codes (docs/contract.md, section 1).

Scales and reciprocals are made from bits, because `exp2` flushes subnormals on GPUs and float -> uint8 of a negative
number is undefined there. Everything here is exact, so it equals the CPU target's bytes on every target.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(32)
"""Elements that share one e8m0 scale."""
E8M0_NAN = tl.constexpr(255)
_INF = tl.constexpr(0x7F800000)
_INTEGERS = tl.constexpr(8388608.0)
"""2^23: from here to 2^24 f32 holds the integers, the low bits of its mantissa counting from 0."""


@triton.jit
def widened(x):
    """The f32 bits (u32) of bf16 or f16 `x`; of bf16 by a shift, because Triton's interpreter flushes subnormals."""
    if x.dtype == tl.bfloat16:
        return x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    else:
        return x.to(tl.float32).to(tl.uint32, bitcast=True)


@triton.jit
def e8m0_scale(amax, MODE: tl.constexpr):
    """The scale byte (i32) of groups whose largest magnitude has the f32 bits `amax` (i32, no sign); NaN gives 255."""
    exponent, mantissa = amax >> 23, amax & 0x7FFFFF
    if MODE == "even":
        byte = ((amax + 0x200000) >> 23) - 2
    elif MODE == "floor":
        byte = exponent - 2
    elif MODE == "ceil":
        byte = exponent + (mantissa > 0).to(tl.int32) - 2
    else:
        tl.static_assert(MODE == "rceil", "the scale mode must be even, floor, ceil or rceil")
        # 6 is 1.5 * 2^2; Inf is above every finite 6 * 2^(b-127).
        byte = exponent + ((mantissa > 0x400000) | (amax == _INF)).to(tl.int32) - 2
    return tl.where(amax > _INF, E8M0_NAN, tl.maximum(byte, 0))


@triton.jit
def _pairs(x):
    """Elements 2j and elements 2j+1 of a tile [R, G, 32], each [R, G, 16]."""
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1], GROUP // 2, 2]))


@triton.jit
def encode_portable(x, byte):
    """Packed codes u8 [R, G, 16] of `x` by float arithmetic that is exact, as long as subnormals are not flushed."""
    is_nan = (byte == E8M0_NAN)[:, :, None]
    # 2^(127-byte); the last one is subnormal.
    reciprocal = tl.where(byte >= 254, 0x00400000, (254 - byte) << 23).to(tl.float32, bitcast=True)[:, :, None]
    bits = widened(x)
    size = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True) * reciprocal
    # Codes are spaced 0.5 up to 2.0 (code 4), 1.0 up to 4.0 (code 6), then 2.0. Each line, rounded to nearest even, is
    # the code in its range and no less elsewhere.
    low_lines = tl.minimum(tl.fma(size, 2.0, _INTEGERS), size + (_INTEGERS + 2.0))
    lines = tl.minimum(low_lines, tl.fma(size, 0.5, _INTEGERS + 4.0))
    rounded = tl.minimum(lines, tl.where(is_nan, _INTEGERS, _INTEGERS + 7.0))
    sign = (bits >> 28) & tl.where(is_nan, 0, 8).to(tl.uint32)
    even, odd = _pairs((rounded.to(tl.uint32, bitcast=True) & 7) | sign)
    return (even | (odd << 4)).to(tl.uint8)


@triton.jit
def encode_gfx950(x, byte):
    """Packed codes u8 [R, G, 16] of `x` by the hardware conversion of CDNA4.

    The instruction divides by 2^(exponent field of its f32 scale - 127), rounds to nearest even, takes subnormals as
    they are and saturates, Inf too (CDNA4 ISA, "Packed Convert"). Only groups with a NaN need help.
    """
    bits = tl.where((byte == E8M0_NAN)[:, :, None], 0, x.to(tl.int16, bitcast=True)).to(tl.uint16, bitcast=True)
    even, odd = _pairs(bits)
    # For byte 0 the subnormal 2^-127: its exponent field is 0, whether or not it is flushed.
    scale = tl.where(byte == 0, 0x00400000, byte << 23).to(tl.float32, bitcast=True)
    scale, _ = _pairs(tl.broadcast_to(scale[:, :, None], x.shape))  # laid out like the pairs
    packed = tl.inline_asm_elementwise(
        "v_cvt_scalef32_pk_fp4_bf16 $0, $1, $2" if x.dtype == tl.bfloat16 else "v_cvt_scalef32_pk_fp4_f16 $0, $1, $2",
        "=v,v,v",
        [even.to(tl.uint32) | (odd.to(tl.uint32) << 16), scale],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )
    return packed.to(tl.uint8)  # the instruction leaves the other bytes as they were


_SM_90_PAIR = tl.constexpr(
    """{
    .reg .b32 m, b, c, s, line;
    and.b32 m, $1, 0x7fff7fff;
    mul.rn.bf16x2 m, m, $2;
    mov.b32 b, 0x40004000; mov.b32 c, 0x43004300; fma.rn.bf16x2 $0, m, b, c;
    mov.b32 b, 0x3f803f80; mov.b32 c, 0x43024302; fma.rn.bf16x2 line, m, b, c; min.bf16x2 $0, $0, line;
    mov.b32 b, 0x3f003f00; mov.b32 c, 0x43044304; fma.rn.bf16x2 line, m, b, c; min.bf16x2 $0, $0, line;
    mov.b32 c, 0x43074307; min.bf16x2 $0, $0, c;
    shr.u32 s, $1, 12;
    and.b32 s, s, 0x00080008;
    lop3.b32 $0, $0, 0x00070007, s, 0xea;
    shr.u32 s, $0, 12;
    or.b32 $0, $0, s;
    }"""
)
"""The byte $0 of a pair $1 of bf16 and the pair $2 of their reciprocals: `encode_portable` in bf16, where sums with
128 are rounded to whole numbers. Bits above the byte are not 0."""


@triton.jit
def encode_sm_90(x, byte):
    """Packed codes u8 [R, G, 16] of bf16 `x`, two elements an instruction."""
    is_nan = (byte == E8M0_NAN)[:, :, None]
    even, odd = _pairs(x.to(tl.uint16, bitcast=True))
    reciprocal = tl.where(byte >= 254, 0x0040, (254 - byte) << 7).to(tl.uint32)  # 2^(127-byte) as bf16
    reciprocal, _ = _pairs(tl.broadcast_to((reciprocal | reciprocal << 16)[:, :, None], x.shape))
    packed = tl.inline_asm_elementwise(
        _SM_90_PAIR,
        "=&r,r,r",
        [even.to(tl.uint32) | (odd.to(tl.uint32) << 16), reciprocal],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )
    return tl.where(is_nan, 0, packed).to(tl.uint8)


@triton.jit
def encode(x, byte, TARGET: tl.constexpr):
    """Codes of `x` [R, G, 32] (bf16 or f16) / 2^(byte-127), byte i32 [R, G]: u8 [R, G, 16], element 2j in byte j's low
    nibble. Nearest even, saturating at 6, sign of zero kept; groups of byte 255 become 0."""
    if TARGET == "gfx950":
        return encode_gfx950(x, byte)
    elif TARGET == "sm_90" and x.dtype == tl.bfloat16:
        return encode_sm_90(x, byte)
    else:
        return encode_portable(x, byte)


@triton.jit
def quantise(x, MODE: tl.constexpr, TARGET: tl.constexpr):
    """MXFP4 per 1x32 of a tile `x` [R, G, 32] (bf16 or f16): packed codes u8 [R, G, 16] and scale bytes u8 [R, G]."""
    magnitude = x.to(tl.uint16, bitcast=True) & 0x7FFF  # ordered like the values, NaN above Inf
    amax = tl.max(magnitude, axis=2).to(tl.uint16).to(x.dtype, bitcast=True)
    byte = e8m0_scale(widened(amax).to(tl.int32, bitcast=True), MODE)
    return encode(x, byte, TARGET), byte.to(tl.uint8)
