"""The inner step of the decode kernels on sm_90, in PTX: a chunk of weights times an octet of tokens, or several.

A chunk is 16 weight rows x 64 columns of a warp, as `runtime/pack_stream.py` lays them out: a lane's 16 bytes are its
registers of four `mma.m16n8k16` A fragments, four bits an element. Weights are the M side, tokens the N side: a
fragment is decoded once and multiplied with every octet.

A code's three magnitude bits are put where a bf16 has its low exponent bits and highest mantissa bit: that bf16 is
2^-126 times the value, subnormals included, so no table and no conversion is needed. x lies in shared memory times
2^32, so that sums stay far from the ends of f32. With one octet sums of 32 columns are then scaled by 2^(byte - 127)
of the stored byte (e8m0 + 64) in f32; with more the fragments are, exactly, before they are multiplied, which takes
fewer instructions and registers. Either way a finished sum is 2^(-126 + 32 + 64) = 2^-30 times the product.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

OCTET = gl.constexpr(8)
"""Tokens of an instruction, its N; a sort block has one octet of rows or several."""
CHUNK_X_BYTES = gl.constexpr(1024)
"""Of an octet."""
SUM_SCALE = gl.constexpr(2.0**30)
"""A finished sum times this is the product."""

CODES, LOWEST, SCALE, SCALES = 0x81C081C0, 0x00400040, 0x7F800000, 0x7F807F80
"""Bits: of a code in both halves, its lowest one; of the exponent in f32, and in two bf16."""
AND_OR = 0xEA  # lop3: (a & b) | c


@gluon.constexpr_function
def _shifted(to: str, word: str, by: int) -> str:
    return f"shl.b32 {to}, {word}, {by};" if by > 0 else f"shr.u32 {to}, {word}, {-by};"


@gluon.constexpr_function
def _fragment(word: str) -> list[str]:
    """Registers a0..a3 of one fragment: 9 instructions for 8 weights."""
    return [
        f"and.b32 a0, {word}, {CODES};",
        f"shl.b32 m, {word}, 6;",
        f"and.b32 a1, m, {CODES};",
        f"shf.l.wrap.b32 m, {word}, {word}, 28;",
        f"and.b32 a2, m, {CODES};",
        f"shf.l.wrap.b32 m, {word}, {word}, 26;",
        f"and.b32 m, m, {CODES ^ LOWEST};",
        f"shl.b32 s, {word}, 2;",
        f"lop3.b32 a3, s, {LOWEST}, m, {AND_OR};",
    ]


@gluon.constexpr_function
def _registers(name: str, first: int, count: int) -> str:
    return "{" + ", ".join(f"{name}{first + i}" for i in range(count)) + "}"


@gluon.constexpr_function
def _mma(sums: str, x: str, start: str) -> str:
    return f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {sums}, {{a0, a1, a2, a3}}, {x}, {start};"


@gluon.constexpr_function
def _x(step: int, group: int, octet: int) -> str:
    """Registers of x for a fragment of a group of 32 columns."""
    return _registers("b", 8 * octet + 4 * group + 2 * step, 2)


@gluon.constexpr_function
def _scale_sums(words: list[str], group: int) -> list[str]:
    """Two fragments times x of one octet, then times the scales of their rows."""
    lines, part = [], _registers("t", 0, 4)
    for step, word in enumerate(words):
        lines += [*_fragment(word), _mma(part, _x(step, group, 0), "{z, z, z, z}" if step == 0 else part)]
    # Bytes of q: row r of both groups, row r + 8 of both groups.
    for row, shift in enumerate((23 - 8 * group, 7 - 8 * group)):
        lines += [_shifted("q2", "q", shift), f"and.b32 q2, q2, {SCALE};", f"mov.b32 f{row}, q2;"]
    return lines + [f"fma.rn.f32 ${i}, t{i}, f{i // 2}, ${i};" for i in range(4)]


@gluon.constexpr_function
def _scale_weights(words: list[str], group: int, octets: int) -> list[str]:
    """Two fragments times the scales of their rows, then times x of every octet: fewer instructions than its sums'."""
    # Bytes of q: row r of both groups, row r + 8 of both groups.
    lines = [
        _shifted("q2", "q", -1 if group else 7),
        f"and.b32 q2, q2, {SCALES};",
        "mov.b32 {h0, h1}, q2;",
        "mov.b32 s0, {h0, h0};",
        "mov.b32 s1, {h1, h1};",
    ]
    for step, word in enumerate(words):
        lines += [*_fragment(word), *[f"mul.rn.bf16x2 a{i}, a{i}, s{i % 2};" for i in range(4)]]
        for octet in range(octets):
            sums = _registers("$", 4 * octet, 4)
            lines.append(_mma(sums, _x(step, group, octet), sums))
    return lines


@gluon.constexpr_function
def chunk_lines(chunk, words, scales, x, octets, octet_bytes):
    """PTX that adds chunk number `chunk` of a record times x to the sums, operands 0 on: 4 an octet, of (row, token)
    pairs as the instruction has them.

    Registers by name: the lane's 4 `words` of the chunk and its 4 `scales` of the scale chunk; and `x`, where the lane
    reads x of the first octet; those of the next one lie `octet_bytes` on.
    """
    lines = [
        f"{{ .reg .b32 a<4>, b<{8 * octets}>, m, s, s0, s1, q, q2;",
        ".reg .b16 h0, h1;",
        ".reg .f32 t<4>, z, f0, f1;",
        # No instruction, but ptxas moves no load past it: without it, loads of the ring sink to where they are used.
        "bar.warp.sync 0xffffffff;",
        "mov.f32 z, 0f00000000;",
        # The four lanes of a row share its scales: four words of the chunk each.
        f"shfl.sync.idx.b32 q, {scales[chunk % 4]}, {chunk // 4}, 0x1c1f, 0xffffffff;",
    ]
    for group in (0, 1):
        for octet in range(octets):
            own, offset = _registers("b", 8 * octet + 4 * group, 4), octet * octet_bytes + 1024 * chunk + 512 * group
            lines.append(f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {own}, [{x} + {offset}];")
        pair = words[2 * group : 2 * group + 2]
        lines += _scale_sums(pair, group) if octets == 1 else _scale_weights(pair, group, octets)
    return [*lines, "}"]
