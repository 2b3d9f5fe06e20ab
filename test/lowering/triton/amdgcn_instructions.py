"""What single instructions of CDNA3 and CDNA4 make of their operands, u32 of 64 lanes, by AMD's ISA documents."""

import numpy as np

LANES = np.arange(64)
U32, I32, U64 = np.uint32, np.int32, np.uint64
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def f32(words: np.ndarray) -> np.ndarray:
    return np.asarray(words, U32).view(np.float32)


def bits(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).view(U32)


def bf16_pairs(words: np.ndarray) -> np.ndarray:
    """float64 [.., 2 n] of u32 [.., n]."""
    halves = np.stack([words << U32(16), words & U32(0xFFFF0000)], axis=-1)
    return f32(halves).astype(np.float64).reshape(*words.shape[:-1], -1)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The nearest bf16, ties to even, as u32."""
    words = bits(values).astype(np.uint64)
    return ((words + 0x7FFF + (words >> U64(16) & U64(1))) >> U64(16)).astype(U32) & U32(0xFFFF)


def operand_matrix(values: np.ndarray) -> np.ndarray:
    """[16, 4 n]: lane l has row (of A) or column (of B) l % 16, and n columns of K from n (l / 16)."""
    out, size = np.full((16, 4 * values.shape[1]), np.nan), values.shape[1]
    for i in range(size):
        out[LANES % 16, LANES // 16 * size + i] = values[:, i]
    return out


def signed(word: int) -> int:
    return (word & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def field_of(word: int, where: int) -> int:
    """s_bfe_u32: offset in bits 4-0, width in bits 22-16."""
    return word >> (where & 31) & (1 << (where >> 16 & 127)) - 1


def perm(high: np.ndarray, low: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """v_perm_b32: bytes 0-3 of `low`, 4-7 of `high`; 12 is 0."""
    result = U32(0)
    for place in range(4):
        chosen = selector >> U32(8 * place) & U32(255)
        byte = np.where(chosen < 4, low >> (U32(8) * (chosen & U32(3))), high >> (U32(8) * (chosen & U32(3)))) & U32(
            255
        )
        assert ((chosen < 8) | (chosen == 12)).all()
        result = result | np.where(chosen == 12, U32(0), byte) << U32(8 * place)
    return result


def as_signed(word: np.ndarray) -> np.ndarray:
    return np.asarray(word, U32).view(I32)


def signed24(word: np.ndarray) -> np.ndarray:
    return (as_signed(word << U32(8)) >> 8).astype(np.int64)


def fused(a, b, c) -> np.ndarray:
    return bits((f32(a).astype(np.float64) * f32(b) + f32(c)).astype(np.float32))


def bfe(word: np.ndarray, offset: np.ndarray, width: np.ndarray) -> np.ndarray:
    return word >> offset & ((U32(1) << width) - U32(1))


def bfe_signed(word, offset, width) -> np.ndarray:
    top = np.int64(1) << (width.astype(np.int64) - 1)
    return ((bfe(word, offset, width).astype(np.int64) ^ top) - top).astype(I32).view(U32)


COMPARE = {
    "lt": lambda a, b: a < b,
    "gt": lambda a, b: a > b,
    "le": lambda a, b: a <= b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "nlt": lambda a, b: ~(a < b),
    "ngt": lambda a, b: ~(a > b),
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
}
VECTOR = {
    "mov_b32": lambda a: a,
    "not_b32": lambda a: ~a,
    "and_b32": lambda a, b: a & b,
    "or_b32": lambda a, b: a | b,
    "xor_b32": lambda a, b: a ^ b,
    "and_or_b32": lambda a, b, c: a & b | c,
    "or3_b32": lambda a, b, c: a | b | c,
    "perm_b32": perm,
    "lshlrev_b32": lambda a, b: b << (a & U32(31)),
    "lshrrev_b32": lambda a, b: b >> (a & U32(31)),
    "ashrrev_i32": lambda a, b: (as_signed(b) >> as_signed(a & U32(31))).view(U32),
    "ashrrev_i16": lambda a, b: (
        (b & U32(0xFFFF)).astype(np.uint16).view(np.int16) >> (a & U32(15)).astype(np.int16)
    ).astype(np.uint16),
    "lshlrev_b16": lambda a, b: b << (a & U32(15)) & U32(0xFFFF),
    "lshrrev_b16": lambda a, b: (b & U32(0xFFFF)) >> (a & U32(15)),
    "lshl_add_u32": lambda a, b, c: (a << (b & U32(31))) + c,
    "add_lshl_u32": lambda a, b, c: (a + b) << (c & U32(31)),
    "lshl_or_b32": lambda a, b, c: a << (b & U32(31)) | c,
    "add_u32": lambda a, b: a + b,
    "add3_u32": lambda a, b, c: a + b + c,
    "sub_u32": lambda a, b: a - b,
    "subrev_u32": lambda a, b: b - a,
    "add_u16": lambda a, b: a + b & U32(0xFFFF),
    "sub_u16": lambda a, b: a - b & U32(0xFFFF),
    "mul_lo_u32": lambda a, b: a * b,
    "mul_u32_u24": lambda a, b: (a & U32(0xFFFFFF)) * (b & U32(0xFFFFFF)),
    "mad_u32_u24": lambda a, b, c: (a & U32(0xFFFFFF)) * (b & U32(0xFFFFFF)) + c,
    "mad_i32_i24": lambda a, b, c: (
        (as_signed(a << U32(8)) >> 8).view(U32) * (as_signed(b << U32(8)) >> 8).view(U32) + c
    ),
    "bfe_u32": bfe,
    "bfe_i32": bfe_signed,
    "min_i32": lambda a, b: np.minimum(as_signed(a), as_signed(b)).view(U32),
    "max_i32": lambda a, b: np.maximum(as_signed(a), as_signed(b)).view(U32),
    "min_u32": np.minimum,
    "max_u32": np.maximum,
    "add_f32": lambda a, b: bits(f32(a) + f32(b)),
    "sub_f32": lambda a, b: bits(f32(a) - f32(b)),
    "mul_f32": lambda a, b: bits(f32(a) * f32(b)),
    "fma_f32": fused,
    "fmac_f32": fused,
    "exp_f32": lambda a: bits(np.exp2(f32(a))),
    "rcp_f32": lambda a: bits(np.float32(1) / f32(a)),
    "ldexp_f32": lambda a, b: bits(np.ldexp(f32(a), as_signed(b))),
    "div_fmas_f32": fused,
    "div_fixup_f32": lambda q, b, a: bits(f32(a) / f32(b)),
    "cvt_pk_bf16_f32": lambda a, b: to_bf16(f32(a)) | to_bf16(f32(b)) << U32(16),
}
SCALAR = {
    "mov_b32": lambda scc, a: (a, None),
    "movk_i32": lambda scc, a: (a, None),
    "brev_b32": lambda scc, a: (int(f"{a:032b}"[::-1], 2), None),
    "add_i32": lambda scc, a, b: (a + b, not -(1 << 31) <= signed(a) + signed(b) < 1 << 31),
    "sub_i32": lambda scc, a, b: (a - b, not -(1 << 31) <= signed(a) - signed(b) < 1 << 31),
    "addk_i32": lambda scc, a, b: (a + b, not -(1 << 31) <= signed(a) + b < 1 << 31),
    "add_u32": lambda scc, a, b: (a + b, a + b >> 32),
    "addc_u32": lambda scc, a, b: (a + b + scc, a + b + scc >> 32),
    "sub_u32": lambda scc, a, b: (a - b, a < b),
    "subb_u32": lambda scc, a, b: (a - b - scc, a < b + scc),
    "mul_i32": lambda scc, a, b: (a * b, None),
    "mulk_i32": lambda scc, a, b: (a * b, None),
    "mul_hi_i32": lambda scc, a, b: (signed(a) * signed(b) >> 32, None),
    "mul_hi_u32": lambda scc, a, b: (a * b >> 32, None),
    "and_b32": lambda scc, a, b: (a & b, a & b),
    "or_b32": lambda scc, a, b: (a | b, a | b),
    "xor_b32": lambda scc, a, b: (a ^ b, a ^ b),
    "lshl_b32": lambda scc, a, b: (a << (b & 31), (a << (b & 31)) & 0xFFFFFFFF),
    "lshr_b32": lambda scc, a, b: (a >> (b & 31), a >> (b & 31)),
    "ashr_i32": lambda scc, a, b: (signed(a) >> (b & 31), signed(a) >> (b & 31)),
    "lshl1_add_u32": lambda scc, a, b: (2 * a + b, 2 * a + b >> 32),
    "lshl2_add_u32": lambda scc, a, b: (4 * a + b, 4 * a + b >> 32),
    "lshl4_add_u32": lambda scc, a, b: (16 * a + b, 16 * a + b >> 32),
    "bfe_u32": lambda scc, a, b: (field_of(a, b), field_of(a, b)),
    "min_i32": lambda scc, a, b: (min(signed(a), signed(b)), signed(a) < signed(b)),
    "max_i32": lambda scc, a, b: (max(signed(a), signed(b)), signed(a) > signed(b)),
    "min_u32": lambda scc, a, b: (min(a, b), a < b),
    "cselect_b32": lambda scc, a, b: (a if scc else b, None),
}
