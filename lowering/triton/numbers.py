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
def encode_portable(x, byte):
    """Codes (u32) of bf16 or f16 `x` [R, G, 32] / 2^(byte-127), byte i32 [R, G]: nearest even, saturating at 6, sign of
    zero kept; 0 where the byte is 255."""
    is_nan = (byte == E8M0_NAN)[:, :, None]
    # 2^(127-byte); the last one is subnormal. Products of NaN groups do not matter.
    reciprocal = tl.where(byte >= 254, 0x00400000, (254 - byte) << 23).to(tl.float32, bitcast=True)[:, :, None]
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    value = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True) * reciprocal
    value_bits = value.to(tl.uint32, bitcast=True)
    # From 1.0 (code 2) upwards a code is the exponent and one bit of mantissa; below, the last place of 2^22 is 0.5.
    normal = ((value_bits + 0x1FFFFF + ((value_bits >> 22) & 1)) >> 22) - 252
    subnormal = (value + 4194304.0).to(tl.uint32, bitcast=True) - 0x4A800000
    code = tl.where(value_bits < 0x3F800000, subnormal, normal)
    largest = tl.where(is_nan, 0, 7).to(tl.uint32)
    sign = tl.where(is_nan, 0, 8).to(tl.uint32)
    return tl.minimum(code, largest) | ((bits >> 28) & sign)


@triton.jit
def encode_gfx950(x, byte):
    """`encode_portable` by the hardware conversion, packed: u8 [R, G, 16].

    The instruction divides by 2^(exponent field of its f32 scale - 127), rounds to nearest even, honours subnormals and
    saturates (CDNA4 ISA, "packed convert"). Only groups with a NaN need help.
    """
    low, high = tl.split(tl.reshape(x.to(tl.uint16, bitcast=True), [x.shape[0], x.shape[1], GROUP // 2, 2]))
    pairs = low.to(tl.uint32) | (high.to(tl.uint32) << 16)
    pairs &= tl.where(byte == E8M0_NAN, 0, 0xFFFFFFFF).to(tl.uint32)[:, :, None]
    # For byte 0 the subnormal 2^-127: its exponent field is 0, whether or not it is flushed.
    scale = tl.where(byte == 0, 0x00400000, byte << 23).to(tl.float32, bitcast=True)[:, :, None]
    packed = tl.inline_asm_elementwise(
        "v_cvt_scalef32_pk_fp4_bf16 $0, $1, $2" if x.dtype == tl.bfloat16 else "v_cvt_scalef32_pk_fp4_f16 $0, $1, $2",
        "=v,v,v",
        [pairs, tl.broadcast_to(scale, pairs.shape)],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )
    return packed.to(tl.uint8)  # the instruction leaves the other bytes as they were


@triton.jit
def encode(x, byte, TARGET: tl.constexpr):
    """Codes of `x` [R, G, 32] (bf16 or f16) under scale bytes i32 [R, G], two a byte: u8 [R, G, 16], element 2j in the
    low nibble of byte j; groups of byte 255 become 0."""
    if TARGET == "gfx950":
        return encode_gfx950(x, byte)
    else:
        codes = encode_portable(x, byte)
        low, high = tl.split(tl.reshape(codes, [x.shape[0], x.shape[1], GROUP // 2, 2]))
        return (low | (high << 4)).to(tl.uint8)


@triton.jit
def quantise(x, MODE: tl.constexpr, TARGET: tl.constexpr):
    """MXFP4 per 1x32 of a tile `x` [R, G, 32] (bf16 or f16): packed codes u8 [R, G, 16] and scale bytes u8 [R, G]."""
    magnitude = x.to(tl.int16, bitcast=True) & 0x7FFF  # ordered like the values, NaN above Inf
    amax = tl.max(magnitude, axis=2).to(tl.int16).to(x.dtype, bitcast=True).to(tl.float32)
    byte = e8m0_scale(amax.to(tl.int32, bitcast=True), MODE)
    return encode(x, byte, TARGET), byte.to(tl.uint8)
