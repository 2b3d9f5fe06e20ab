"""The rows of a sort block in shared memory, where the ends of its units find them: entries of sorted_ids and weights.

Asked for in memory a unit, they would take registers during its product, and whoever waits for one load of memory waits
for chunks of weights too: six scoreboards serve all loads of a warp.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import OCTET
from .decode_stream import pushed, thread_numbers, threads_layout
from .shared_words import WORD, allocate_words, get_pair, get_word, put_words


@gluon.jit
def allocate_rows(BLOCK: gl.constexpr):
    """Shared memory for `put_row`."""
    return allocate_words(4 * BLOCK)


@gluon.jit
def load_row(values, block, BLOCK: gl.constexpr):
    """Of `values`, one a sorted row, that of a row of `block` in each of the first BLOCK threads."""
    return gl.load(values + block * BLOCK + thread_numbers(threads_layout(gl.num_warps())) % BLOCK)


@gluon.jit
def put_row(rows, entry, share, expert, BLOCK: gl.constexpr):
    """Put at `rows` what `load_row` gave of sorted_ids, and of the weights or None; and the expert of the block behind,
    or None. Others wait for a barrier."""
    thread = thread_numbers(threads_layout(gl.num_warps()))
    own = (thread < BLOCK).to(gl.int32)
    put_words(rows + thread * WORD, entry, own, 1)
    if share is not None:
        put_words(rows + (BLOCK + thread) * WORD, share.to(gl.int32, bitcast=True), own, 1)
    if expert is not None:
        put_words(rows + 2 * BLOCK * WORD + thread * 0, expert + thread * 0, (thread == 0).to(gl.int32), 1)


@gluon.jit
def expert_behind(rows, BLOCK: gl.constexpr):
    """The expert of the block behind the one at `rows`."""
    return get_word(rows + 2 * BLOCK * WORD)


@gluon.jit
def is_half(rows, TOPK: gl.constexpr):
    """Whether all but the first octet of the block at `rows` is padding."""
    return get_word(rows + OCTET * WORD).to(gl.uint32, bitcast=True) >> 24 == TOPK


@gluon.jit
def own_entries(rows, BLOCK: gl.constexpr):
    """The entries of tokens 2c, 2c + 1 of each octet, c a thread's number modulo 4: i32 [threads] each."""
    place = rows + thread_numbers(threads_layout(gl.num_warps())) % 4 * (2 * WORD)
    found = get_pair(place)
    for octet in gl.static_range(1, BLOCK // OCTET):
        pair = get_pair(place + octet * (OCTET * WORD))
        found = pushed(pushed(found, pair[0]), pair[1])
    return found


@gluon.jit
def own_shares(rows, BLOCK: gl.constexpr):
    """The weights of the same tokens: f32 [threads] each."""
    found = own_entries(rows + BLOCK * WORD, BLOCK)
    shares = (found[0].to(gl.float32, bitcast=True),)
    for token in gl.static_range(1, len(found)):
        shares = pushed(shares, found[token].to(gl.float32, bitcast=True))
    return shares
