"""The order in which the prefill products take sort blocks: by how many of their rows are multiplied, most first.

A block is multiplied as long as the tokens in it, rounded up to one of a few lengths. Programs that take every
PROGRAMS-th unit then end together; in the order of the list, some would have many of the long ones. More than ORDERED
blocks are taken as they come, all of them whole.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_stream import pushed, threads_layout
from .shared_words import WORD, get_pair, put_words

BLOCK_BYTES = gl.constexpr(8)
"""Of a block in the order: its number and that of its expert."""
_FIELD = gl.constexpr(16)
"""Bits of a count: up to four lengths are counted in an i64."""


@gluon.constexpr_function
def lengths_of(block):
    """How many rows of a sort block of so many may be multiplied, the most first: the N of the instructions.

    Each is a loop of its own, a second or two of compilation."""
    return {64: (64, 32), 80: (80, 64, 48, 32), 128: (128, 64), 160: (160, 128, 96, 64)}.get(block, (block,))


@gluon.constexpr_function
def lengths(block, ordered):
    """How many lengths there are of a block, 1 where nothing is put in order."""
    return len(lengths_of(block)) if ordered else 1


@gluon.constexpr_function
def length_of(block, number):
    """Length number `number` of a block."""
    return lengths_of(block)[number]


@gluon.jit
def _counted(sorted_ids, blocks, start, BLOCK: gl.constexpr, TOPK: gl.constexpr, ORDERED: gl.constexpr):
    """For the blocks from `start` on, one a thread: the number, whether it exists, that of its length, its count."""
    block = start + gl.arange(0, 32 * gl.num_warps(), threads_layout(gl.num_warps()))
    exists = block < blocks
    length = gl.zeros_like(block)
    for number in gl.static_range(1, lengths(BLOCK, ORDERED)):
        entry = gl.load(sorted_ids + block * BLOCK + length_of(BLOCK, number), mask=exists, other=0)
        length += (entry.to(gl.uint32, bitcast=True) >> 24 == TOPK).to(gl.int32)
    count = gl.where(exists, 1, 0).to(gl.int64) << (length * _FIELD).to(gl.int64)
    return block, exists, length, count


@gluon.jit
def _field(counts, number):
    return (counts >> (number * _FIELD)).to(gl.int32) & ((1 << _FIELD) - 1)


@gluon.jit
def uniform(value):
    """Scalar i32 `value`, so that ptxas sees that a warp has one of it, and keeps what follows from it out of registers
    of threads."""
    return gl.inline_asm("shfl.sync.idx.b32 $0, $1, 0, 0x1f, 0xffffffff;", "=r,r", [value], gl.int32, is_pure=False)


@gluon.jit
def order_blocks(order, sorted_ids, expert_ids, blocks, BLOCK: gl.constexpr, TOPK: gl.constexpr, ORDERED: gl.constexpr):
    """Write all `blocks` in order to shared memory at `order`; where the blocks of each length end.

    A barrier must follow."""
    size: gl.constexpr = 32 * gl.num_warps()
    listed = gl.where(blocks <= ORDERED, blocks, 0)
    counts = listed.to(gl.int64) * 0
    for start in range(0, listed, size):
        counts += gl.sum(_counted(sorted_ids, listed, start, BLOCK, TOPK, ORDERED)[3], 0)
    # Where the blocks of each length begin, then where its next one goes.
    places = counts * 0
    ends = (uniform(gl.where(blocks <= ORDERED, _field(counts, 0), blocks)),)
    for number in gl.static_range(1, lengths(BLOCK, ORDERED)):
        places |= ends[number - 1].to(gl.int64) << (number * _FIELD)
        ends = pushed(ends, uniform(ends[number - 1] + _field(counts, number)))
    for start in range(0, listed, size):
        block, exists, length, count = _counted(sorted_ids, listed, start, BLOCK, TOPK, ORDERED)
        place = order + _field(places + gl.cumsum(count, 0) - count, length.to(gl.int64)) * BLOCK_BYTES
        put_words(place, block, exists.to(gl.int32), 1)
        put_words(place + WORD, gl.load(expert_ids + block, mask=exists, other=0), exists.to(gl.int32), 1)
        places += gl.sum(count, 0)
    return ends


@gluon.jit
def block_at(order, expert_ids, rank, blocks, ORDERED: gl.constexpr):
    """The block number `rank` of `blocks` in the order, and its expert; behind the last one, the last one."""
    block = gl.minimum(rank, blocks - 1)
    if ORDERED == 0:
        return block, gl.load(expert_ids + block)
    if blocks <= ORDERED:
        block, expert = get_pair(order + block * BLOCK_BYTES)
        block, expert = uniform(block), uniform(expert)
    else:
        expert = gl.load(expert_ids + block)
    return block, expert
