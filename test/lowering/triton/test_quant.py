"""Template quant against torchao (scales, payload) and ml_dtypes (payload); the hardware conversion as defined."""

import functools
import re

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx
from triton.runtime.interpreter import TensorHandle

from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.assembly import WIDE_LOADS, instructions, matching
from moeloom.lowering.triton.build import ASSEMBLY, compile_kernels
from moeloom.lowering.triton.numbers import encode
from moeloom.runtime import reference

# What the products of groups with a NaN or Inf do under NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in multiply:RuntimeWarning")

MODES = reference.SCALE_MODES
KINDS = {torch.bfloat16: "bf16", torch.float16: "f16"}
BYTES = (0, 1, 2, 3, 20, 101, 126, 127, 128, 190, 252, 253, 254)
GUARD = 256
"""Bytes of poison before and behind every result."""


def poisoned(*shape):
    """A result of 0xFF bytes within more of them: (result, memory)."""
    memory = torch.full((GUARD + torch.Size(shape).numel() + GUARD,), 0xFF, dtype=torch.uint8)
    return memory[GUARD:-GUARD].view(shape), memory


@pytest.fixture
def quant(interpret):
    """quant(x, mode): codes and scales. A tile has 128 rows and 4 groups: the interpreter is slow per tile."""

    def run(x, mode="even", rows=128, groups=4, m=None, factor=1):
        height, columns = x.shape
        (codes, codes_memory), (scales, scales_memory) = (poisoned(height, columns // n) for n in (2, 32))
        params = {"columns": columns, "x": KINDS[x.dtype], "scale_mode": mode, "factor": factor, "early": False}
        params |= {"rows": rows, "groups": groups}
        m = height // factor if m is None else m
        tiles = -(-m * factor // rows) * -(-columns // 32 // groups)
        interpret("quant", params, [(x, x.stride(0))], [codes, scales], m, tiles)
        for memory in (codes_memory, scales_memory):
            assert bool((memory[:GUARD] == 0xFF).all() and (memory[-GUARD:] == 0xFF).all())
        return codes, scales

    return run


def generator(seed):
    return torch.Generator().manual_seed(seed)


def every(dtype):
    """All values of a 16-bit format, by their bits."""
    return torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(dtype)


def random_bits(low, high, seed):
    """bf16 with exponent fields from low to below high, any sign and mantissa."""
    g = generator(seed)
    signs, exponents, mantissas = (torch.randint(*r, (96, 96), generator=g) for r in ((2,), (low, high), (128,)))
    return (signs << 15 | exponents << 7 | mantissas).to(torch.int32).to(torch.uint16).view(torch.bfloat16)


def ties(exponents, seed):
    """Values halfway between two codes, and neighbours of them, at scales 2^exponents."""
    sizes = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 0.0, -0.0, -0.25, -1.25, -5.0]).double()
    picks = sizes[torch.randint(len(sizes), (96, 96), generator=generator(seed))]
    return (picks * 2.0 ** torch.tensor(exponents).repeat(96 // len(exponents)).unsqueeze(-1)).bfloat16()


def with_inf():
    x = torch.randn(96, 96, generator=generator(4)).bfloat16()
    x[::2, 5], x[1::4, 40] = torch.inf, -torch.inf
    x[2, 6], x[3, 41] = 3e38, -2.5e38
    return x


def edges():
    x = torch.zeros(96, 96, dtype=torch.bfloat16)
    x[1::4], x[2::4, ::3] = -0.0, -1e-30
    x[3::4, 7], x[3::4, 40] = torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).tiny
    return x


INPUTS = {
    "normal": torch.randn(96, 96, generator=generator(1)).bfloat16(),
    "any_exponent": random_bits(0, 255, 2),
    "largest": random_bits(250, 255, 7),
    "subnormal": random_bits(0, 5, 5),
    "only_subnormal": random_bits(0, 1, 6),
    "ties": ties(range(-16, 16), 3),
    "ties_at_the_bottom": ties(range(-130, -124), 8),
    "inf": with_inf(),
    "edges": edges(),
}


def by_torchao(x, mode):
    scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode.upper()])
    return codes.view(torch.uint8), scales.view(torch.uint8)


def by_ml_dtypes(x, scales):
    """The payload of x / 2^(b-127), in float64."""
    scaled = x.double().numpy() * 2.0 ** (127 - scales.numpy().astype(np.float64).repeat(32, -1))
    codes = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_torchao_and_ml_dtypes(quant, mode, name):
    x = INPUTS[name]
    codes, scales = quant(x, mode)
    want_codes, want_scales = by_torchao(x, mode)
    assert torch.equal(scales, want_scales)
    # torchao divides by 2^-126 or by 1 where the scale byte is 0.
    departs = (scales == 0) & (x.unflatten(-1, (-1, 32)).abs().amax(-1) > 0)
    agree = (codes == want_codes).unflatten(-1, (-1, 16)).all(-1)
    assert bool((agree | departs).all())
    assert torch.equal(codes, by_ml_dtypes(x, scales))


@pytest.mark.parametrize("mode", MODES)
def test_every_f16_equals_torchao(quant, mode):
    """Among neighbours of any size and in order."""
    finite = every(torch.float16)
    finite = finite[~finite.isnan()]
    mixed = finite[torch.randperm(len(finite), generator=generator(2))]
    x = torch.cat([mixed, finite.sort().values])[: len(finite) * 2 // 96 * 96].view(-1, 96)
    codes, scales = quant(x, mode, rows=2048)
    want_codes, want_scales = by_torchao(x.float(), mode)
    assert torch.equal(scales, want_scales)
    assert torch.equal(codes, want_codes)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_spoils_its_own_group_only(quant, mode, dtype):
    x = INPUTS["inf"].to(dtype)
    want_codes, want_scales = quant(x, mode)
    places = ((3, 40, 0x7FC0), (5, 0, 0xFF81), (7, 95, 0x7FFF))
    for row, column, bits in places:
        x.view(torch.uint16)[row, column] = bits
        group = column // 32
        want_scales[row, group] = 255
        want_codes[row, 16 * group : 16 * group + 16] = 0
    codes, scales = quant(x, mode)
    assert torch.equal(codes, want_codes) and torch.equal(scales, want_scales)


@pytest.mark.parametrize(("rows", "groups"), [(1, 32), (2, 2), (4, 1), (8, 8)])
@pytest.mark.parametrize("dtype", KINDS)
def test_tiles_cover_odd_sizes_of_strided_unaligned_rows(quant, dtype, rows, groups):
    wide = torch.randn(5, 163, generator=generator(rows)).to(dtype)
    x = wide[:, 1:161]
    codes, scales = quant(x, "rceil", rows, groups)
    want_codes, want_scales = reference.quantise(x, "rceil")
    assert torch.equal(codes, want_codes) and torch.equal(scales, want_scales)


def test_offsets_pass_2_to_the_31(quant):
    """Row 8 begins 2^31 elements behind row 0; only pages that hold a row become real."""
    x = torch.empty(8 * 2**28 + 32, dtype=torch.bfloat16).as_strided((9, 32), (2**28, 1))
    x.copy_(INPUTS["normal"][:9, :32])
    codes, scales = quant(x)
    want_codes, want_scales = reference.quantise(x, "even")
    assert torch.equal(codes, want_codes) and torch.equal(scales, want_scales)


def test_rows_from_factor_times_m_are_left_alone(quant):
    x = torch.randn(12, 64, generator=generator(1)).bfloat16()
    codes, scales = quant(x, "even", rows=8, groups=2, m=3, factor=3)
    want_codes, want_scales = reference.quantise(x[:9], "even")
    assert torch.equal(codes[:9], want_codes) and torch.equal(scales[:9], want_scales)
    assert bool((codes[9:] == 0xFF).all()) and bool((scales[9:] == 0xFF).all())


@triton.jit
def encode_kernel(x, bytes, codes, ROWS: tl.constexpr, TARGET: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, 32)
    values = tl.load(x + rows[:, None] * 32 + columns[None, :])
    byte = tl.load(bytes + rows).to(tl.int32)
    packed = encode(tl.reshape(values, [ROWS, 1, 32]), tl.reshape(byte, [ROWS, 1]), TARGET)
    tl.store(codes + rows[:, None] * 16 + tl.arange(0, 16)[None, :], tl.reshape(packed, [ROWS, 16]))


def encoded(dtype, byte, target):
    """Codes of every value of a format but NaN, which is 0 in a group of its own, under one scale byte."""
    x = every(dtype)
    x = torch.where(x.isnan(), 0, x).view(-1, 32)
    scales, codes = torch.full((len(x), 1), byte, dtype=torch.uint8), torch.full((len(x), 16), 0xFF, dtype=torch.uint8)
    encode_kernel[(1,)](x, scales, codes, ROWS=len(x), TARGET=target)
    return x, scales, codes


@pytest.mark.parametrize("byte", BYTES)
@pytest.mark.parametrize("dtype", KINDS)
def test_portable_encoder_is_exact_for_every_value(dtype, byte):
    x, scales, codes = encoded(dtype, byte, "")
    assert torch.equal(codes, by_ml_dtypes(x, scales))


def converted(bits, mantissa_bits, bias, scale):
    """v_cvt_scalef32_pk_fp4_*'s code of one source, as AMD defines it in integers (fcbx::from_float of HIP's
    amd_hip_ocp_host.hpp): `scale` is the f32's bits, of which the exponent field counts."""
    bits, sign_bit = bits.astype(np.int64), 15
    sign, field, mantissa = bits >> sign_bit, bits >> mantissa_bits & (1 << sign_bit - mantissa_bits) - 1, 0
    mantissa = bits & (1 << mantissa_bits) - 1
    special = field == (1 << sign_bit - mantissa_bits) - 1  # Inf and NaN
    significand = np.where(field == 0, mantissa, mantissa | 1 << mantissa_bits)
    exponent = np.maximum(field, 1) - bias - ((scale.astype(np.int64) >> 23 & 0xFF) - 127) - mantissa_bits
    # significand * 2^exponent as a count of halves in steps of 1, 2 or 4, rounded to nearest even.
    top = np.where(significand == 0, -99, exponent + np.floor(np.log2(np.maximum(significand, 1))).astype(np.int64))
    step = np.clip(top, 0, 99) - 1 - exponent  # bits of the significand below the last place of the code
    places = np.clip(step, 0, 40)
    wide = significand << np.clip(-step, 0, 8)
    quotient, rest, half = wide >> places, wide & (1 << places) - 1, 1 << places >> 1
    quotient += (rest > half) | ((rest == half) & (places > 0) & (quotient & 1 == 1))
    code = np.where((top > 2) | special, 7, np.minimum(quotient + 2 * np.clip(top, 0, 2), 7))
    return code | sign << 3


FORMATS = {"bf16": (7, 127), "f16": (10, 15)}


def instruction(asm, constraints, args, dtype, is_pure, pack, _semantic=None):
    """In place of Triton's inline assembly under the interpreter: the instruction by its definition."""
    kind = re.fullmatch(r"v_cvt_scalef32_pk_fp4_(bf16|f16) \$0, \$1, \$2", asm)[1]
    assert (constraints, dtype, is_pure, pack) == ("=v,v,v", tl.uint32, True, 1)
    pairs, scale = (argument.handle.data for argument in args)
    assert (pairs.dtype, scale.dtype) == (np.uint32, np.float32)
    even, odd = (converted(half, *FORMATS[kind], scale.view(np.uint32)) for half in (pairs & 0xFFFF, pairs >> 16))
    rest_of_the_register = 0xA5A5A500
    found = (even | odd << 4 | rest_of_the_register).astype(np.uint32)
    return tl.tensor(TensorHandle(found, tl.uint32), tl.block_type(tl.uint32, list(found.shape)))


@pytest.mark.parametrize("byte", BYTES)
@pytest.mark.parametrize("dtype", KINDS)
def test_hardware_conversion_equals_the_portable_encoder_by_its_definition(dtype, byte, monkeypatch):
    want = encoded(dtype, byte, "")[2]
    monkeypatch.setattr(tl, "inline_asm_elementwise", instruction)
    assert torch.equal(encoded(dtype, byte, "gfx950")[2], want)


@pytest.mark.parametrize("target", ["", "gfx950"])
@pytest.mark.parametrize("dtype", KINDS)
def test_groups_with_a_nan_encode_to_zero(dtype, target, monkeypatch):
    monkeypatch.setattr(tl, "inline_asm_elementwise", instruction)
    x = every(dtype).view(-1, 32)
    codes = torch.full((len(x), 16), 0xFF, dtype=torch.uint8)
    encode_kernel[(1,)](x, torch.full((len(x),), 255, dtype=torch.uint8), codes, ROWS=len(x), TARGET=target)
    assert not codes.any()


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """assembly(target, x) of a tile of one row and 1024 columns; worker processes do not interpret."""

    @functools.cache
    def compiled(target):
        fixed = {"columns": 2880, "scale_mode": "even", "factor": 1, "early": False, "rows": 1, "groups": 32}
        fixed |= {"num_warps": 1024 // 8 // ARCHITECTURES[target].warp_size, "num_stages": 1}
        kernels = {kind: {"template": "quant", "params": fixed | {"x": kind}} for kind in FORMATS}
        return compile_kernels(kernels, ARCHITECTURES[target], tmp_path_factory.mktemp(target), lambda *_: None)

    return lambda target, kind: (compiled(target)[kind] / ASSEMBLY).read_text()


def last_writer(lines, register):
    """The latest of `lines` that writes a vector register: (its place, its words)."""
    number = int(register[1:])
    for place in reversed(range(len(lines))):
        words = lines[place].replace(",", "").split()
        span = re.fullmatch(r"v(?:(\d+)|\[(\d+):(\d+)\])", words[1]) if len(words) > 1 else None
        if span and int(span[1] or span[2]) <= number <= int(span[1] or span[3]) and "store" not in words[0]:
            return place, words
    raise AssertionError(f"nothing writes {register}")


@pytest.mark.parametrize("kind", FORMATS)
def test_gfx950_converts_in_hardware(assembly, kind):
    """Its operands: the loaded pairs, or 0 for NaN, and the byte in the exponent's place, or 2^-127 for byte 0."""
    lines = assembly("gfx950", kind).splitlines()
    converts = [place for place, line in enumerate(lines) if f"v_cvt_scalef32_pk_fp4_{kind}" in line]
    assert len(converts) == 4, "a thread has 8 elements"
    for place in converts:
        _, pair, scale = re.fullmatch(r"\tv_cvt_scalef32_pk_fp4_\w+ (v\d+), (v\d+), (v\d+)", lines[place]).groups()
        selected, words = last_writer(lines[:place], pair)
        assert words[0].startswith("v_cndmask_b32") and words[3] == "0"
        assert "load_dwordx4" in last_writer(lines[:selected], words[2])[1][0]
        selected, words = last_writer(lines[:place], scale)
        assert words[0].startswith("v_cndmask_b32")
        sources = [last_writer(lines[:selected], register)[1] for register in words[2:4]]
        assert sources[0][0] == "v_mov_b32_e32" and sources[0][2] == "0x400000"
        assert sources[1][0] == "v_lshlrev_b32_e32" and sources[1][2] == "23"


@pytest.mark.parametrize("target", ["gfx942", "sm_90"])
@pytest.mark.parametrize("kind", FORMATS)
def test_other_targets_convert_by_arithmetic(assembly, kind, target):
    text = assembly(target, kind)
    assert "cvt_scale" not in text
    assert ".amdhsa_float_denorm_mode_32 3" in text or target == "sm_90"
    assert ".ftz" not in text, "flushed subnormals lose bytes"


@pytest.mark.parametrize("target", ["gfx950", "gfx942", "sm_90"])
@pytest.mark.parametrize("kind", FORMATS)
def test_loads_16_bytes_at_a_time(assembly, kind, target):
    assert matching(instructions(assembly(target, kind)), WIDE_LOADS)
