"""The order in which the prefill products take sort blocks: by how many of their rows are multiplied, most first.

A block is multiplied as long as the tokens in it, rounded up to one of a few lengths. Programs that take every
PROGRAMS-th unit then end together; in the order of the list, some would have many of the long ones. More than ORDERED
blocks are taken as they come, all of them whole.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_stream import pushed, threads_layout
from .shared_words import get_word, put_words

BLOCK_BYTES = gl.constexpr(4)
"""Of a block in the order: its number, above it that of its length, and above that its expert."""
_LENGTH, _EXPERT = gl.constexpr(13), gl.constexpr(16)
"""The lowest bits of both."""
_FIELD, _MOST = gl.constexpr(10), gl.constexpr(1023)
"""Bits of a count, and the most that they hold. Up to six lengths are counted in an i64, that of whole blocks, the only
one that an expert may have several blocks of, in its highest bits. Blocks of more experts than _MOST have no order."""


@gluon.constexpr_function
def lengths_of(block):
    """How many rows of a sort block of so many may be multiplied, the most first: the N of the instructions.

    Each is a loop of its own, up to two seconds of compilation.
    """
    return {64: (64, 32), 128: (128, 64), 144: (144, 112, 80, 64, 48, 32)}.get(block, (block,))


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
    count = gl.where(exists, 1, 0).to(gl.int64) << ((lengths(BLOCK, ORDERED) - 1 - length) * _FIELD).to(gl.int64)
    return block, exists, length, count


@gluon.jit
def _field(counts, number, LENGTHS: gl.constexpr):
    """The count of length `number` of LENGTHS."""
    number = gl.to_tensor(number)
    count = (counts >> ((LENGTHS - 1 - number) * _FIELD).to(gl.int64)).to(gl.int32)
    return gl.where(number > 0, count & _MOST, count)


@gluon.jit
def uniform(value):
    """Scalar i32 `value`, so that ptxas sees that a warp has one of it, and keeps what follows from it out of registers
    of threads."""
    return gl.inline_asm("shfl.sync.idx.b32 $0, $1, 0, 0x1f, 0xffffffff;", "=r,r", [value], gl.int32, is_pure=False)


@gluon.jit
def order_blocks(order, sorted_ids, expert_ids, blocks, BLOCK: gl.constexpr, TOPK: gl.constexpr, ORDERED: gl.constexpr):
    """Write all `blocks` in order to shared memory at `order`. A barrier must follow."""
    size: gl.constexpr = 32 * gl.num_warps()
    LENGTHS: gl.constexpr = lengths(BLOCK, ORDERED)
    listed = gl.where(blocks <= ORDERED, blocks, 0)
    counts = listed.to(gl.int64) * 0
    for start in range(0, listed, size):
        counts += gl.sum(_counted(sorted_ids, listed, start, BLOCK, TOPK, ORDERED)[3], 0)
    ends = (uniform(gl.where(blocks <= ORDERED, _field(counts, 0, LENGTHS), blocks)),)
    for number in gl.static_range(1, LENGTHS):
        ends = pushed(ends, uniform(ends[number - 1] + _field(counts, number, LENGTHS)))
    before = counts * 0
    for start in range(0, listed, size):
        block, exists, length, count = _counted(sorted_ids, listed, start, BLOCK, TOPK, ORDERED)
        rank = _field(before + gl.cumsum(count, 0) - count, length, LENGTHS)
        for number in gl.static_range(1, LENGTHS):
            rank = gl.where(length == number, ends[number - 1] + rank, rank)
        expert = gl.load(expert_ids + block, mask=exists, other=0)
        word = block | length << _LENGTH | expert << _EXPERT
        put_words(order + rank * BLOCK_BYTES, word, exists.to(gl.int32), 1)
        before += gl.sum(count, 0)


@gluon.jit
def rows_of_length(length, BLOCK: gl.constexpr, ORDERED: gl.constexpr):
    """How many rows of a block are multiplied that has length number `length`."""
    rows = length * 0 + BLOCK
    for number in gl.static_range(1, lengths(BLOCK, ORDERED)):
        rows = gl.where(length == number, length_of(BLOCK, number), rows)
    return rows


@gluon.jit
def block_at(order, expert_ids, rank, blocks, ORDERED: gl.constexpr):
    """The block number `rank` of `blocks` in the order, its expert, and the number of its length; behind the last one,
    the last one."""
    block = gl.minimum(rank, blocks - 1)
    length = block * 0
    if ORDERED == 0:
        return block, gl.load(expert_ids + block), length
    if blocks <= ORDERED:
        word = uniform(get_word(order + block * BLOCK_BYTES))
        block, length = word & ((1 << _LENGTH) - 1), word >> _LENGTH & ((1 << (_EXPERT - _LENGTH)) - 1)
        expert = word >> _EXPERT
    else:
        expert = gl.load(expert_ids + block)
    return block, expert, length
