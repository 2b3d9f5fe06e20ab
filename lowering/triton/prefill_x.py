"""x of a sort block in shared memory, as the prefill products read it: a ring of steps of a few columns.

64 columns of a step are bf16 [tokens, 64], 128 bytes a token, as wgmma reads a K-major matrix of that
swizzle: the 16 bytes number p of token t lie at place p ^ (t % 8) of its row. A thread moves piece thread % 8 of some
tokens.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import SWIZZLE_BYTES

from .decode_stream import thread_numbers, threads_layout
from .prefill_chunk import PIECES

ALIGNMENT = gl.constexpr(SWIZZLE_BYTES)


@gluon.jit
def allocate_steps(BLOCK: gl.constexpr, STEP: gl.constexpr, STEPS: gl.constexpr):
    """Shared memory for STEPS steps, and for `aligned` to move them."""
    words: gl.constexpr = STEPS * step_bytes(BLOCK, STEP) // 4
    shape: gl.constexpr = [words // 32 + ALIGNMENT // 128, 32]
    return gl.allocate_shared_memory(gl.int32, shape, gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.constexpr_function
def step_bytes(block, step):
    """Of a step of `step` columns."""
    return block * step * 2


@gluon.jit
def aligned(address):
    """The first place from `address` on where a step may begin."""
    return (address + (ALIGNMENT - 1)) & -ALIGNMENT


@gluon.constexpr_function
def tokens_a_pass(warps):
    """Tokens that all threads move pieces of at once."""
    return 32 * warps // PIECES.value


@gluon.jit
def row_of(sorted_ids, block, exists, BLOCK: gl.constexpr, STAGE: gl.constexpr, TOPK: gl.constexpr):
    """i32 [threads]: the rows of x of the tokens of `block`, one a thread; -1 for padding, and where no such block
    `exists`. STAGE as in `source_rows`."""
    own = thread_numbers(threads_layout(gl.num_warps()))
    entry = gl.load(sorted_ids + block * BLOCK + own, mask=exists & (own < BLOCK), other=TOPK << 24)
    slot, token = entry.to(gl.uint32, bitcast=True) >> 24, entry & 0xFFFFFF
    row = token if STAGE == 1 else token * TOPK + slot.to(gl.int32)
    return gl.where(slot != TOPK, row, -1)
