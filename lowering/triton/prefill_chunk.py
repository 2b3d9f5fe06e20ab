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
MOST_SUMS_PENDING = 32
"""Sums a thread beside which it has registers for two chunks of weights."""
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
def chunks_pending(sums):
    """Chunks whose products may be under way when a thread with so many sums starts those of another one."""
    return 1 if sums <= MOST_SUMS_PENDING else 0


@gluon.constexpr_function
def chunk_constraints(sums):
    """Operands of `chunk_assembly` as inline assembly takes them."""
    return ",".join([*["=f"] * sums, *[str(number) for number in range(sums)], *["r"] * 9])


@gluon.constexpr_function
def chunk_assembly(chunk, sums):
    """PTX for chunk number `chunk` of a record, 2 * `sums` tokens. Operands: the sums of a lane, the same before, its 4
    words of weights, its 4 words of the scale chunk, and `matrix_of` x of these columns."""
    words, spread, place = 2 * sums, 2 * sums + 4, 2 * sums + 8
    lines = [
        ".reg .b32 a<4>, w<16>, m, s, q, f<4>, low;",
        ".reg .b64 d;",
        f"wgmma.wait_group.sync.aligned {chunks_pending(sums)};",
        # The four lanes of a row share its scales: four words of the chunk each.
        f"shfl.sync.idx.b32 q, ${spread + chunk % 4}, {chunk // 4}, 0x1c1f, 0xffffffff;",
    ]
    # Bytes: row r of both groups of 32 columns, row r + 8 of both; each twice, as the exponents of two bf16.
    for byte in range(4):
        lines += [f"prmt.b32 f{byte}, q, 0, 0x4{byte}4{byte};", f"shl.b32 f{byte}, f{byte}, 7;"]
    for step in range(4):
        lines += _fragment(f"${words + step}")
        for number in range(4):
            lines.append(f"mul.rn.bf16x2 w{4 * step + number}, a{number}, f{number % 2 * 2 + step // 2};")
    lines.append("wgmma.fence.sync.aligned;")
    accumulators = "{" + ", ".join(f"${number}" for number in range(sums)) + "}"
    for step in range(4):
        lines += [
            f"add.u32 low, ${place}, {2 * step};",  # 16 columns on
            f"mov.b64 d, {{low, {_HIGH}}};",
            f"wgmma.mma_async.sync.aligned.m64n{2 * sums}k16.f32.bf16.bf16 {accumulators}, "
            f"{_registers('w', 4 * step, 4)}, d, 1, 1, 1, 0;",
        ]
    lines.append("wgmma.commit_group.sync.aligned;")
    return "{\n\t" + "\n\t".join(lines) + "\n}"


@gluon.jit
def multiply_chunk(sums, words, scales, matrix, CHUNK: gl.constexpr):
    """`sums` + a fragment of chunk number CHUNK of a record times x, a `matrix_of`; under way on return.

    `words`, `scales` i32 [threads, 4].
    """
    form: gl.constexpr = sums[0].type
    rest = (words, scales, matrix)
    return gl.inline_asm(
        chunk_assembly(CHUNK, len(sums)),
        chunk_constraints(len(sums)),
        sums + rest,
        (form,) * len(sums),
        is_pure=False,
    )


@gluon.jit
def wait_for_products(PENDING: gl.constexpr):
    """Wait for the products of all chunks but the latest PENDING."""
    gl.inline_asm(_waiting(PENDING))


@gluon.constexpr_function
def _waiting(pending):
    return f"wgmma.wait_group.sync.aligned {pending};"


@gluon.constexpr_function
def tied(sums):
    """`sums` results that are as many operands."""
    return ",".join([*["=f"] * sums, *[str(number) for number in range(sums)]])


@gluon.jit
def finished(sums):
    """`sums`, when all products are over."""
    form: gl.constexpr = sums[0].type
    return gl.inline_asm("wgmma.wait_group.sync.aligned 0;", tied(len(sums)), sums, (form,) * len(sums), is_pure=False)
