"""A step of the decode kernels on CDNA GPUs: 64 weight rows times 16 tokens over 128 columns, by one wave.

Weights are the M side of 16x16 MFMA instructions, tokens the N side: the narrowest that multiply e2m1 or 16 columns of
bf16. The wave's 64 rows are four fragments, each with accumulators of its own, which read the same x.

What a lane 16g + r loads is in the order that `runtime/pack_mfma.py` states: of row r of a fragment (of token r, for x)
the 32 columns from 32g. Where the instruction takes K in another order, both sides take the same one:

    gfx950, codes times codes   v_mfma_scale_f32_16x16x128_f8f6f4: the loaded registers, their scales picked by OPSEL
    gfx950, bf16                v_cvt_scalef32_pk_bf16_fp4 and v_mfma_f32_16x16x32_bf16, K = (8 columns, g, column)
    gfx942                      v_perm_b32 and v_mfma_f32_16x16x16_bf16, K = (8 columns, parity, g, column of a parity)

gfx942 looks the bf16 of three magnitude bits up in eight table entries, which hold the scale too: their exponents are
added to. No multiplication, and no subnormal: the unit may flush those.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .products import F4

TOKENS = gl.constexpr(16)
"""Rows of a sort block: the N of the instructions."""
ROWS = gl.constexpr(64)
"""Of a tile."""
LANES = gl.constexpr(64)
COLUMNS = gl.constexpr(128)
"""Of a step."""
LANE_COLUMNS = gl.constexpr(32)
"""That a lane holds of a step."""

MAGNITUDES = 0x07070707
SIGNS = gl.constexpr(0x80808080 - (1 << 32))
LOW_VALUES, HIGH_VALUES = gl.constexpr(0x05010400), gl.constexpr(0x07030602)
"""v_perm_b32: bytes 0 and 1 (2 and 3) of two words, those of the second one low, as two halves."""
EVEN_BYTES, ODD_BYTES = gl.constexpr(0x06040200), gl.constexpr(0x07050301)
X_EXPONENT = gl.constexpr(2)
"""Where x is looked up too, it is taken times 2^2, so that byte 0 makes no subnormal. Beyond the greatest byte: NaN."""
GREATEST_X_SCALE = gl.constexpr(250)
NANS = gl.constexpr(0x7FC07FC0)


@gluon.constexpr_function
def is_scaled(x, target):
    """Whether codes are multiplied as they are."""
    return x == F4.value and target == "gfx950"


@gluon.constexpr_function
def sum_scale(x, target):
    """A finished sum times this is the product."""
    return 2.0**-X_EXPONENT.value if x == F4.value and not is_scaled(x, target) else 1.0


@gluon.constexpr_function
def sums_layout(x, target):
    """Of sums f32 [64 rows, 16 tokens]."""
    columns = 16 if target == "gfx942" else 128 if is_scaled(x, target) else 32
    version = 3 if target == "gfx942" else 4
    return gl.amd.AMDMFMALayout(version, [16, 16, columns], transposed=False, warps_per_cta=[1, 1])


@gluon.constexpr_function
def lanes_layout(size):
    """[64 n, size]: `size` neighbours a lane, n times 64 of them."""
    return gl.BlockedLayout([1, size], [64, 1], [1, 1], [1, 0])


@gluon.jit
def multiply_step(sums, weight, scales, x, x_scales, X: gl.constexpr, TARGET: gl.constexpr):
    """`sums` + a step of weights times x.

    weight i32 [256, 4] and scales i32 [64] as loaded; x i32 [64, 16] of bf16, or [64, 4] of codes, x_scales i32 [64].
    """
    weight, scales, x = _whole(weight), _whole(scales), _whole(x)
    if X == F4:
        x_scales = _whole(x_scales)
    if is_scaled(X, TARGET):
        return _multiply_scaled(sums, weight, scales, x, x_scales)
    elif TARGET == "gfx950":
        return gl.amd.cdna4.mfma(_widened(weight, scales, sums.type.layout), _x_by_eight(x, sums.type.layout), sums)
    else:
        layout: gl.constexpr = sums.type.layout
        powers = gl.convert_layout(_fragment_scales(scales), gl.SliceLayout(1, weight.type.layout), assert_trivial=True)
        a = _looked_up(weight, _tables((powers - 1) << 7))
        a = gl.reshape(a, [4, 4, 16, 4, 2, 2, 2])  # fragment, g, row, 8 columns, parity, half, pair
        a = gl.reshape(gl.permute(a, [0, 2, 3, 4, 1, 6, 5]), [ROWS, COLUMNS])
        if X == F4:
            b = _x_looked_up(x, x_scales)
        else:
            b = gl.reshape(_pairs(x), [4, 16, 4, 4, 2])  # g, token, 8 columns, column, parity
            b = gl.reshape(gl.permute(b, [2, 4, 0, 3, 1]), [COLUMNS, TOKENS])
        return gl.amd.cdna3.mfma(_operand(a, 0, layout, 4), _operand(b, 1, layout, 4), sums)


@gluon.jit
def _multiply_scaled(sums, weight, scales, x, x_scales):
    layout: gl.constexpr = sums.type.layout
    a = gl.permute(gl.reshape(_bytes(weight), [4, 4, 16, 16]), [0, 2, 1, 3])  # from fragment, g, row, byte
    b = gl.permute(gl.reshape(_bytes(x), [4, 16, 16]), [0, 2, 1])  # from g, token, byte
    a = _operand(gl.reshape(a, [ROWS, COLUMNS // 2]), 0, layout, 16)
    b = _operand(gl.reshape(b, [COLUMNS // 2, TOKENS]), 1, layout, 16)
    a_scales = gl.permute(gl.reshape(_bytes(scales), [4, 16, 4]), [2, 1, 0])  # from g, row, fragment
    b_scales = gl.permute(gl.reshape(x_scales.to(gl.uint8), [4, 16]), [1, 0])
    a_form: gl.constexpr = gl.amd.cdna4.get_mfma_scale_layout(a.type.layout, [ROWS, 4])
    b_form: gl.constexpr = gl.amd.cdna4.get_mfma_scale_layout(b.type.layout, [TOKENS, 4])
    a_scales = gl.convert_layout(gl.reshape(a_scales, [ROWS, 4]), a_form, assert_trivial=True)
    b_scales = gl.convert_layout(b_scales, b_form, assert_trivial=True)
    return gl.amd.cdna4.mfma_scaled(a, a_scales, "e2m1", b, b_scales, "e2m1", sums)


@gluon.jit
def _widened(weight, scales, layout: gl.constexpr):
    """The A operand, bf16, by gfx950's conversion of pairs of codes."""
    codes = gl.reshape(_bytes(weight), [4, 4, 16, 16])  # fragment, g, row, byte
    powers = gl.permute(gl.reshape(_bytes(scales), [4, 16, 4]), [2, 0, 1])
    form: gl.constexpr = gl.amd.cdna4.get_scaled_upcast_fp4_scale_layout(codes, LANE_COLUMNS, gl.bfloat16, 3)
    powers = gl.convert_layout(gl.reshape(powers, [4, 4, 16, 1]), form, assert_trivial=True)
    values = gl.amd.cdna4.scaled_upcast(codes, powers, gl.bfloat16, 3)
    values = gl.permute(gl.reshape(values, [4, 4, 16, 4, 8]), [0, 2, 3, 1, 4])
    return _operand(gl.reshape(values, [ROWS, COLUMNS]), 0, layout, 8)


@gluon.jit
def _x_by_eight(x, layout: gl.constexpr):
    values = gl.permute(gl.reshape(_pairs(x), [4, 16, 4, 8]), [2, 0, 3, 1])  # from g, token, 8 columns, column
    return _operand(gl.reshape(values, [COLUMNS, TOKENS]), 1, layout, 8)


@gluon.jit
def _x_looked_up(x, x_scales):
    """The B operand, bf16 times 2^2, of codes on gfx942."""
    powers = gl.convert_layout(x_scales, gl.SliceLayout(1, x.type.layout), assert_trivial=True)
    tables = _tables((powers - 1 + X_EXPONENT) << 7)
    is_nan = powers > GREATEST_X_SCALE
    nans = gl.full([LANES], NANS, gl.int32, powers.type.layout)
    tables = (
        gl.where(is_nan, nans, tables[0]),
        gl.where(is_nan, nans, tables[1]),
        gl.where(is_nan, nans, tables[2]),
        gl.where(is_nan, nans, tables[3]),
    )
    b = gl.reshape(_looked_up(x, tables), [4, 16, 4, 2, 2, 2])  # g, token, 8 columns, parity, half, pair
    return gl.reshape(gl.permute(b, [2, 3, 0, 5, 4, 1]), [COLUMNS, TOKENS])


@gluon.jit
def _operand(values, NUMBER: gl.constexpr, layout: gl.constexpr, WIDTH: gl.constexpr):
    """`values` as the operand that they are already: no lane gives any to another."""
    return gl.convert_layout(values, gl.DotOperandLayout(NUMBER, layout, WIDTH), assert_trivial=True)


@gluon.jit
def _whole(words):
    """`words`, of which LLVM knows nothing: it would carry their parts from step to step, in registers of their own."""
    return gl.inline_asm_elementwise("", "=v,0", [words], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _bytes(words):
    """u8 [.., 2, 2] of i32: byte 2i + j at (i, j)."""
    even = gl.join(words.to(gl.uint8), (words >> 16).to(gl.uint8))
    return gl.join(even, gl.join((words >> 8).to(gl.uint8), (words >> 24).to(gl.uint8)))


@gluon.jit
def _pairs(words):
    """bf16 [.., 2] of i32, the low half first."""
    high = (words >> 16).to(gl.int16).to(gl.bfloat16, bitcast=True)
    return gl.join(words.to(gl.int16).to(gl.bfloat16, bitcast=True), high)


@gluon.jit
def _fragment_scales(scales):
    """i32 [256] by (fragment, lane) of a word a lane, byte f of fragment f."""
    return gl.reshape(gl.permute(gl.reshape(_bytes(scales), [LANES, 4]), [1, 0]), [4 * LANES]).to(gl.int32)


@gluon.jit
def _tables(half):
    """Four words: the bf16 of magnitudes 0 .. 7, two a word, where that of 0.5 is `half`, a power of two."""
    halves = (half & 0x7F80) * 0x10001
    return halves << 16, halves + 0x00C00080, halves + 0x01400100, halves + 0x01C00180


@gluon.jit
def _looked_up(words, tables):
    """bf16 [lanes, 4 words, 2, 2, 2] of codes i32 [lanes, 4]; `tables` are of the lane.

    Column 4i + 2j + e of a word lies at (e, j, i): parity, half of a pair, pair.
    """
    zero, one, two, three = tables
    low_0, low_1 = _permuted(one, zero, EVEN_BYTES), _permuted(three, two, EVEN_BYTES)
    high_0, high_1 = _permuted(one, zero, ODD_BYTES), _permuted(three, two, ODD_BYTES)
    even_0, even_1, odd_0, odd_1, _ = gl.inline_asm_elementwise(
        look_up_assembly(),
        "=&v,=&v,=&v,=&v,=&v,v,v,v,v,v,s,s,s",
        [words, low_0[:, None], low_1[:, None], high_0[:, None], high_1[:, None], SIGNS, LOW_VALUES, HIGH_VALUES],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )
    return gl.join(_pairs(gl.join(even_0, odd_0)), _pairs(gl.join(even_1, odd_1)))


@gluon.jit
def _permuted(high, low, PATTERN: gl.constexpr):
    return gl.inline_asm_elementwise(
        "v_perm_b32 $0, $1, $2, $3", "=v,v,v,s", [high, low, PATTERN], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.constexpr_function
def look_up_assembly():
    """14 instructions for 8 weights, and the wait states before a matrix instruction may read the last of them.

    $0, $1: columns 0, 2 and 4, 6 of the word $5; $2, $3: 1, 3 and 5, 7. $6-$9: the low and high bytes of eight bf16.
    """
    word, low_0, low_1, high_0, high_1, signs, first, second = (f"${number}" for number in range(5, 13))
    lines = [
        f"v_and_b32 $0, {MAGNITUDES:#x}, {word}",
        f"v_perm_b32 $1, {low_1}, {low_0}, $0",
        f"v_perm_b32 $0, {high_1}, {high_0}, $0",
        f"v_lshlrev_b32 $2, 4, {word}",
        f"v_and_or_b32 $2, $2, {signs}, $0",
        f"v_perm_b32 $0, $2, $1, {first}",
        f"v_perm_b32 $1, $2, $1, {second}",
        f"v_lshrrev_b32 $2, 4, {word}",
        f"v_and_b32 $2, {MAGNITUDES:#x}, $2",
        f"v_perm_b32 $3, {low_1}, {low_0}, $2",
        f"v_perm_b32 $2, {high_1}, {high_0}, $2",
        f"v_and_or_b32 $4, {word}, {signs}, $2",
        f"v_perm_b32 $2, $4, $3, {first}",
        f"v_perm_b32 $3, $4, $3, {second}",
        "s_nop 1",
    ]
    return "\n\t".join(lines)
