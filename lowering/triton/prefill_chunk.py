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
from .decode_stream import threads_layout

SUM_SCALE = gl.constexpr(2.0**62)
"""A finished sum times this is the product."""
SUM = "moe_sum"
"""Registers of a thread's sums, by number: declared once, named by assembly, and no values of Triton's. As operands of
each chunk, 160 of them, they took half of the time in which a kernel is compiled."""
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
_LOW, _HIGH = gl.constexpr(1 << 16), 1024 >> 4 | 1 << 30


@gluon.jit
def matrix_of(address):
    """The low half of the descriptor of a matrix at `address` in shared memory; the high one is a constant."""
    return (address >> 4) | _LOW


@gluon.constexpr_function
def chunks_pending(tokens):
    """Chunks whose products may be under way when those of another one start."""
    return 1 if tokens <= MOST_TOKENS_PENDING else 0


@gluon.constexpr_function
def fragments_at_once(tokens):
    """Fragments of a chunk that are widened before their products start."""
    return 4 if tokens <= MOST_TOKENS_BESIDE_A_CHUNK else 2


@gluon.constexpr_function
def chunk_assembly(chunk, tokens):
    """PTX for chunk number `chunk` of a record. Operands: 4 words of weights, 4 of the scale chunk, `matrix_of` x."""
    sums = tokens // 2
    lines = [
        ".reg .b32 a<4>, w<16>, m, s, q, f<4>, low;",
        ".reg .b64 d;",
        f"wgmma.wait_group.sync.aligned {chunks_pending(tokens)};",
        # The four lanes of a row share its scales: four words of the chunk each.
        f"shfl.sync.idx.b32 q, ${4 + chunk % 4}, {chunk // 4}, 0x1c1f, 0xffffffff;",
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
            lines += _fragment(f"${step}")
            for number in range(4):
                register = (step - first) * 4 + number
                lines.append(f"mul.rn.bf16x2 w{register}, a{number}, f{number % 2 * 2 + step // 2};")
        lines.append("wgmma.fence.sync.aligned;")
        for step in steps:
            lines += [
                f"add.u32 low, $8, {2 * step};",  # 16 columns on
                f"mov.b64 d, {{low, {_HIGH}}};",
                f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.bf16.bf16 {_registers(SUM, 0, sums)}, "
                f"{_registers('w', 4 * (step - first), 4)}, d, 1, 1, 1, 0;",
            ]
        lines.append("wgmma.commit_group.sync.aligned;")
    return "{\n\t" + "\n\t".join(lines) + "\n}"


@gluon.jit
def declare_sums(TOKENS: gl.constexpr):
    """Registers for the sums of up to TOKENS. Called once in a kernel, before all that follow."""
    gl.inline_asm(_declaration(TOKENS))


@gluon.constexpr_function
def _declaration(tokens):
    return f".reg .f32 {SUM}<{tokens // 2}>;"


@gluon.jit
def zero_sums(TOKENS: gl.constexpr):
    """Begin the sums of TOKENS."""
    gl.inline_asm(_zeros(TOKENS))


@gluon.constexpr_function
def _zeros(tokens):
    return " ".join(f"mov.f32 {SUM}{number}, 0f00000000;" for number in range(tokens // 2))


@gluon.jit
def multiply_chunk(words, scales, matrix, CHUNK: gl.constexpr, TOKENS: gl.constexpr):
    """Add a fragment of chunk number CHUNK of a record times x, a `matrix_of`, to the sums; under way on return.

    `words`, `scales` i32 [threads, 4].
    """
    gl.inline_asm(chunk_assembly(CHUNK, TOKENS), "r,r,r,r,r,r,r,r,r", [words, scales, matrix])


@gluon.jit
def wait_for_products(PENDING: gl.constexpr):
    """Wait for the products of all chunks but the latest PENDING."""
    gl.inline_asm(_waiting(PENDING))


@gluon.constexpr_function
def _waiting(pending):
    return f"wgmma.wait_group.sync.aligned {pending};"


@gluon.jit
def sums_of(FIRST: gl.constexpr, TOKENS: gl.constexpr):
    """f32 [threads] each: the sums of TOKENS from FIRST on, as `decode_stream.zero_sums` has them. All products must be
    over (`wait_for_products`)."""
    kind: gl.constexpr = gl.distributed_type(gl.float32, [32 * gl.num_warps()], threads_layout(gl.num_warps()))
    return gl.inline_asm(_moves(FIRST, TOKENS), _results(TOKENS), [], (kind,) * (TOKENS // 2), is_pure=False)


@gluon.constexpr_function
def _moves(first, tokens):
    return " ".join(f"mov.f32 ${number}, {SUM}{first // 2 + number};" for number in range(tokens // 2))


@gluon.constexpr_function
def _results(tokens):
    return ",".join(["=f"] * (tokens // 2))
