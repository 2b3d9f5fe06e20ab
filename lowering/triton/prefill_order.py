"""The order in which the prefill products take sort blocks: those with a token in their second half first.

The others, multiplied in half the time or so, come last. Programs that take every PROGRAMS-th unit then end together;
in the order of the list, some would have many of the long ones. More than ORDERED blocks are taken as they come,
all as long ones.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_stream import threads_layout
from .decode_x import address_of


@gluon.jit
def order_blocks(sorted_ids, blocks, BLOCK: gl.constexpr, TOPK: gl.constexpr, ORDERED: gl.constexpr):
    """The address in shared memory of the numbers of all `blocks` in order, and how many of them are long.

    The third result keeps the memory alive. Ends in a barrier.
    """
    size: gl.constexpr = 32 * gl.num_warps()
    shared = gl.allocate_shared_memory(gl.int32, [(ORDERED + 31) // 32, 32], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    address = address_of(shared)
    longs = blocks * 0
    if blocks > ORDERED:
        longs = blocks
    else:
        for start in range(0, blocks, size):
            block = start + gl.arange(0, size, threads_layout(gl.num_warps()))
            exists = block < blocks
            middle = gl.load(sorted_ids + block * BLOCK + BLOCK // 2, mask=exists, other=TOPK << 24)
            is_long = (middle.to(gl.uint32, bitcast=True) >> 24 != TOPK).to(gl.int32)
            longs_before = longs + gl.cumsum(is_long, 0) - is_long
            place = gl.where(is_long == 1, longs_before, blocks - 1 - (block - longs_before))
            gl.inline_asm(
                "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p st.shared.b32 [$0], $1; }",
                "r,r,r",
                [address + place * 4, block, exists.to(gl.int32)],
            )
            longs += gl.sum(is_long, 0)
    gl.barrier()
    return address, longs, shared


@gluon.jit
def block_at(order, rank, blocks, ORDERED: gl.constexpr):
    """The block number `rank` of `blocks` in the order at address `order`; behind the last one, the last one."""
    rank = gl.minimum(rank, blocks - 1)
    if ORDERED > 0:
        listed = blocks <= ORDERED
        if listed:
            rank = gl.inline_asm("ld.shared.b32 $0, [$1];", "=r,r", [order + rank * 4], gl.int32, is_pure=False)
    return rank
