"""The inner step of the prefill products on sm_90, in PTX: a chunk of weights a warp times the tokens of a sort block.

Weights are the M side of `wgmma.m64nNk16`, in registers, tokens the N side, in shared memory. A warp's part of the A
operand is what `mma.m16n8k16` takes, so a lane's 16 bytes of a chunk (`decode_chunk.py`) are four A fragments here too.
Each is widened to bf16 and scaled before the product, exactly: a code's bits put into a bf16 are 2^-126 times its
value, and the stored scale byte is e8m0 + 64, so a weight is 2^-62 times what it was, and a sum too.

An instruction reads its registers while the warp goes on. So a chunk is widened while the product of the one before is
under way, into other registers, and first the product before that one is waited for. With the sums of 128 tokens a
thread has no registers for two: there, other warps' products are what goes on meanwhile.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import _fragment, _registers

SUM_SCALE = gl.constexpr(2.0**62)
"""A finished sum times this is the product."""
SUM = "moe_sum"
"""Registers of a thread's sums, by number (`prefill_loop.py`)."""
MOST_TOKENS_PENDING = 64
"""Tokens beside whose sums a thread has registers for two chunks of weights."""
MOST_TOKENS_BESIDE_A_CHUNK = 128
"""And for one; beside more it widens half a chunk at a time."""
STEP_COLUMNS = gl.constexpr(64)
"""Columns of a chunk: 128 bytes of x a token, the width of wgmma's swizzle."""
STEP_BYTES = gl.constexpr(128)
PIECES = gl.constexpr(8)
"""Of 16 bytes of a token in a step."""

# Of a matrix descriptor: 8 rows lie 1024 bytes after the 8 before (in units of 16 bytes), swizzled by 128 bytes. The
# other stride has no meaning for a matrix as wide as its swizzle.
LOW, _HIGH = 1 << 16, 1024 >> 4 | 1 << 30


@gluon.constexpr_function
def chunks_pending(tokens):
    """Chunks whose products may be under way when those of another one start."""
    return 1 if tokens <= MOST_TOKENS_PENDING else 0


@gluon.constexpr_function
def fragments_at_once(tokens):
    """Fragments of a chunk that are widened before their products start."""
    return 4 if tokens <= MOST_TOKENS_BESIDE_A_CHUNK else 2


@gluon.constexpr_function
def chunk_lines(chunk, words, scales, matrix, at, tokens):
    """PTX that adds chunk number `chunk` of a record times x to the sums; under way behind it.

    Registers by name: the 4 `words` of the chunk, `scales` 0 to 3 of the scale chunk; x is `at` (in units of 16 bytes)
    behind `matrix`, the low half of a descriptor.
    """
    sums = tokens // 2
    lines = [
        "{ .reg .b32 a<4>, w<16>, m, s, q, f<4>, low; .reg .b64 d;",
        # At the beginning of a record none is under way (`prefill_loop.py`).
        f"wgmma.wait_group.sync.aligned {chunks_pending(tokens)};" if chunk else "",
        # The four lanes of a row share its scales: four words of the chunk each.
        f"shfl.sync.idx.b32 q, {scales}{chunk % 4}, {chunk // 4}, 0x1c1f, 0xffffffff;",
    ]
    # Bytes: row r of both groups of 32 columns, row r + 8 of both; each twice, as the exponents of two bf16.
    for byte in range(4):
        lines += [f"prmt.b32 f{byte}, q, 0, 0x4{byte}4{byte};", f"shl.b32 f{byte}, f{byte}, 7;"]
    at_once = fragments_at_once(tokens)
    for first in range(0, 4, at_once):
        steps = range(first, first + at_once)
        if first:
            lines.append("wgmma.wait_group.sync.aligned 0;")
        for step in steps:
            lines += _fragment(words[step])
            for number in range(4):
                register = (step - first) * 4 + number
                lines.append(f"mul.rn.bf16x2 w{register}, a{number}, f{number % 2 * 2 + step // 2};")
        lines.append("wgmma.fence.sync.aligned;")
        for step in steps:
            lines += [
                f"add.u32 low, {matrix}, {at + 2 * step};",  # 16 columns on
                f"mov.b64 d, {{low, {_HIGH}}};",
                f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.bf16.bf16 {_registers(SUM, 0, sums)}, "
                f"{_registers('w', 4 * (step - first), 4)}, d, 1, 1, 1, 0;",
            ]
        lines.append("wgmma.commit_group.sync.aligned;")
    return [*lines, "}"]


@gluon.constexpr_function
def tokens_layout(warps, tokens):
    """[threads, tokens / 4]: of each octet of tokens the two, 2c and 2c + 1, that lane 4r + c has sums of."""
    return gl.BlockedLayout([1, tokens // 4], [32, 1], [warps, 1], [1, 0])


@gluon.jit
def sums_of(FIRST: gl.constexpr, TOKENS: gl.constexpr):
    """f32 [threads, TOKENS / 4] each: the products with TOKENS from FIRST on (`tokens_layout`) of the weight rows r and
    r + 8 of the warp's fragment, in lane 4r + c."""
    layout: gl.constexpr = tokens_layout(gl.num_warps(), TOKENS)
    kind: gl.constexpr = gl.distributed_type(gl.float32, [32 * gl.num_warps(), TOKENS // 4], layout)
    row, row_8 = gl.inline_asm(_moves(FIRST, TOKENS), _results(TOKENS), [], (kind, kind), is_pure=False)
    return row * SUM_SCALE, row_8 * SUM_SCALE


@gluon.constexpr_function
def _moves(first, tokens):
    """An instruction's sums of an octet are row r of both tokens, then row r + 8 of both."""
    places = [first // 2 + 4 * octet + 2 * half + i for half in (0, 1) for octet in range(tokens // 8) for i in (0, 1)]
    return " ".join(f"mov.f32 ${number}, {SUM}{place};" for number, place in enumerate(places))


@gluon.constexpr_function
def _results(tokens):
    return ",".join(["=f"] * (tokens // 2))
