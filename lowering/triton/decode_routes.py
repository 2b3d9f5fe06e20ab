"""Routing inside the decode kernels, for up to OCTET tokens: the experts of a batch from its logits.

So few tokens give an expert one block at most, blocks lie in the order of their experts, and choices by logits are
the router's (route.py). Every program chooses for itself, a token's logits in the lanes of a warp; what it asks for
again and again it keeps in shared memory: the expert of each block, and of each token and slot.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.lowering.jobs import CompileError

from .decode_chunk import OCTET
from .decode_stream import thread_numbers, threads_layout
from .live_slots import live_tokens
from .route import TAKEN, order, routed, store_routing, take_largest, total_of
from .shared_words import WORD, allocate_words, get_word, put_words
from .template import POINTERS, Params

WARP = gl.constexpr(32)


@gluon.constexpr_function
def padded(experts):
    """Columns of the logits: a power of two, a warp at least."""
    return max(WARP.value, 1 << (experts - 1).bit_length())


@gluon.constexpr_function
def power_of_two(topk):
    """Slots of a token, padded."""
    return 1 << (topk - 1).bit_length()


@gluon.constexpr_function
def logits_layout(warps, size):
    """[OCTET, size]: a token's in one warp."""
    return gl.BlockedLayout([1, size // WARP.value], [1, WARP.value], [warps, 1], [1, 0])


@gluon.constexpr_function
def experts_layout(warps, size):
    """[size]: all of them in every warp."""
    return gl.BlockedLayout([size // WARP.value], [WARP.value], [warps], [0])


@gluon.constexpr_function
def _tokens_a_thread(warps):
    """Of an octet, each in a warp."""
    return max(1, OCTET.value // warps)


@gluon.jit
def slots_of_experts(logits, num_tokens, M, EXPERTS: gl.constexpr, TOPK: gl.constexpr, CACHE: gl.constexpr):
    """i32 [OCTET, padded]: the slot in which a live token of M chose an expert by its dense logits, -1 for none."""
    SIZE: gl.constexpr = padded(EXPERTS)
    layout: gl.constexpr = logits_layout(gl.num_warps(), SIZE)
    token = gl.arange(0, OCTET, gl.SliceLayout(1, layout))
    expert = gl.arange(0, SIZE, gl.SliceLayout(0, layout))
    live = live_tokens(num_tokens, M, CACHE)
    exists = (token < live)[:, None] & (expert < EXPERTS)[None, :]
    places = logits + token[:, None] * EXPERTS + expert[None, :]
    x = gl.load(places, mask=exists, other=0.0, cache_modifier=CACHE).to(gl.float32)
    keys = gl.where(exists, order(x), TAKEN)
    slots = gl.full([OCTET, SIZE], -1, gl.int32, layout)
    for slot in gl.static_range(TOPK):
        winner, keys = take_largest(keys, expert)
        slots = gl.where((expert[None, :] == winner[:, None]) & exists, slot, slots)
    return slots


@gluon.jit
def blocks_of(slots):
    """i32 [padded], all in every warp: the number of each expert's block, -1 where it has none."""
    chosen = (gl.max(slots, 0) >= 0).to(gl.int32)
    chosen = gl.convert_layout(chosen, experts_layout(gl.num_warps(), slots.shape[1]))
    return gl.where(chosen > 0, gl.cumsum(chosen, 0) - 1, -1)


@gluon.jit
def count_of(blocks):
    """How many blocks there are."""
    return gl.max(blocks, 0) + 1


@gluon.jit
def expert_at(blocks, block):
    """The expert of a block."""
    expert = gl.arange(0, blocks.shape[0], experts_layout(gl.num_warps(), blocks.shape[0]))
    return gl.max(gl.where(blocks == block, expert, 0), 0)


@gluon.jit
def allocate_tables(TOPK: gl.constexpr):
    """Shared memory for `fill_tables`."""
    words: gl.constexpr = 2 * OCTET * power_of_two(TOPK)
    return allocate_words(words)


@gluon.jit
def fill_tables(tables, slots, blocks, TOPK: gl.constexpr):
    """Put the expert of each token's slots, and of each block, at the address `tables`. Others wait for a barrier."""
    SIZE: gl.constexpr = slots.shape[1]
    wide: gl.constexpr = power_of_two(TOPK)
    layout: gl.constexpr = logits_layout(gl.num_warps(), SIZE)
    token = gl.arange(0, OCTET, gl.SliceLayout(1, layout))
    expert = gl.arange(0, SIZE, gl.SliceLayout(0, layout))
    for slot in gl.static_range(TOPK):
        found = gl.max(gl.where(slots == slot, expert[None, :], -1), 1)
        put_words(tables + (token * wide + slot) * WORD, found, found * 0 + 1, _tokens_a_thread(gl.num_warps()))
    expert = gl.arange(0, SIZE, experts_layout(gl.num_warps(), SIZE))
    put_words(tables + (OCTET * wide + blocks) * WORD, expert, (blocks >= 0).to(gl.int32), SIZE // WARP)


@gluon.jit
def tabled_expert(tables, block, TOPK: gl.constexpr):
    """The expert of a block; anything behind the last block of a full table is its last one."""
    wide: gl.constexpr = power_of_two(TOPK)
    return get_word(tables + (OCTET * wide + block) * WORD)


@gluon.jit
def tabled_entries(tables, expert, TOPK: gl.constexpr):
    """As entries of a sorted list, of an expert's block whose rows are the tokens: those of tokens 2c and 2c + 1."""
    own = thread_numbers(threads_layout(gl.num_warps())) % 4 * 2
    return _tabled_entry(tables, own, expert, TOPK), _tabled_entry(tables, own + 1, expert, TOPK)


@gluon.jit
def _tabled_entry(tables, token, expert, TOPK: gl.constexpr):
    wide: gl.constexpr = power_of_two(TOPK)
    found = token * 0 + TOPK
    for slot in gl.static_range(TOPK):
        found = gl.where(get_word(tables + (token * wide + slot) * WORD) == expert, slot, found)
    return found << 24 | token


@gluon.jit
def _total_of(values):
    return gl.convert_layout(total_of(values), values.type.layout)


@gluon.jit
def write_lists(
    logits,
    num_tokens,
    slots,
    blocks,
    weights,
    ids,
    sorted_ids,
    sorted_weights,
    expert_ids,
    num_valid,
    M,
    EXPERTS: gl.constexpr,
    TOPK: gl.constexpr,
    SCORE: gl.constexpr,
    RENORMALISE: gl.constexpr,
    SCALE: gl.constexpr,
    COUNTED: gl.constexpr,
):
    """What route_sort.py writes, by one program. COUNTED: the list is of the live tokens alone, not of M."""
    SIZE: gl.constexpr = slots.shape[1]
    layout: gl.constexpr = logits_layout(gl.num_warps(), SIZE)
    token = gl.arange(0, OCTET, gl.SliceLayout(1, layout))
    expert = gl.arange(0, SIZE, gl.SliceLayout(0, layout))
    slot = gl.arange(0, power_of_two(TOPK), gl.SliceLayout(0, layout))
    live = live_tokens(num_tokens, M)
    listed = live if COUNTED else M
    chosen, share = routed(
        logits, EXPERTS, None, token, expert, slot, M, EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, 1, 1, _total_of
    )
    store_routing(weights, ids, token, slot, chosen, share, live, M, TOPK)
    is_row = (slots >= 0).to(gl.int32)
    start = gl.convert_layout(blocks, gl.SliceLayout(0, layout)) * OCTET
    entry = start[None, :] + gl.cumsum(is_row, 0) - is_row
    gl.store(sorted_ids + entry, slots << 24 | token[:, None], mask=slots >= 0)
    for number in gl.static_range(TOPK):
        own = gl.sum(gl.where(slot[None, :] == number, share, 0.0), 1)[:, None]
        gl.store(sorted_weights + entry, gl.where(slots == number, own, 0.0), mask=slots == number)
    padding = (start >= 0)[None, :] & (token[:, None] >= gl.sum(is_row, 0)[None, :])
    entry = start[None, :] + token[:, None]
    gl.store(sorted_ids + entry, gl.where(padding, TOPK << 24 | listed, 0), mask=padding)
    gl.store(sorted_weights + entry, gl.where(padding, 0.0, 1.0), mask=padding)
    number = gl.arange(0, SIZE, experts_layout(gl.num_warps(), SIZE))
    gl.store(expert_ids + blocks, number, mask=blocks >= 0)
    gl.store(num_valid, count_of(blocks) * OCTET)
    gl.store(num_valid + 1, listed)


ROUTING = ("logits", "num_tokens")
"""Operands of a kernel that finds its first weights by the logits."""


def routing_arguments(params: Params) -> list[tuple[str, str]]:
    """Those of ROUTING that there are. CompileError for blocks that are not all of an expert's rows."""
    if params["routes"] == "none":
        return []
    if params["block"] != OCTET.value:
        raise CompileError(
            f"by the logits an expert has one sort block, of {OCTET.value} rows, not blocks of {params['block']}: "
            "give routes none"
        )
    count = [("num_tokens", "*i32")] if params["has_num_tokens"] else []
    return [("logits", POINTERS[params["routes"]]), *count]
