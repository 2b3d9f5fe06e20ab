"""Template `route`: the experts of a token and their weights (docs/contract.md, section 2).

Choices are compared as integers that order as the floats do, NaN above all: no comparison can then fail, so every id is
an expert. A tile's columns are the experts by groups, each group padded to a power of two, so that columns rise with
experts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependents import follow
from .live_slots import live_tokens
from .template import POINTERS, Params, Template

_LARGEST, TAKEN = tl.constexpr(0x7FFFFFFF), tl.constexpr(-0x80000000)
_INF_BITS = tl.constexpr(0x7F800000)
_SMALLEST_NORMAL = tl.constexpr(2.0**-126)


@triton.jit
def _exp(x):
    """e^x in f32 as the CPU computes it (Cephes, to about 1 ulp): choices by score are then the same there."""
    x = tl.where(x > 89.0, 89.0, tl.where(x < -104.0, -104.0, x))
    shifted = tl.fma(x, 1.44269504088896341, 12582912.0)  # adding 1.5 * 2^23 rounds to an integer
    n = shifted - 12582912.0
    r = tl.fma(n, -0.693359375, x)
    r = tl.fma(n, 2.12194440e-4, r)
    value = tl.fma(r, 1.9875691500e-4, 1.3981999507e-3)
    value = tl.fma(value, r, 8.3334519073e-3)
    value = tl.fma(value, r, 4.1665795894e-2)
    value = tl.fma(value, r, 1.6666665459e-1)
    value = tl.fma(value, r, 0.5)
    value = tl.fma(value, r, 1.0)
    value = tl.fma(value, r, 1.0)
    power = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    first = power >> 1  # in two steps, because 2^128 and 2^-127 are no normal numbers
    value *= ((first + 127) << 23).to(tl.float32, bitcast=True)
    return value * ((power - first + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def order(x):
    """i32 that order as the f32 `x` do: -0 equals 0, NaN is the largest, none is `TAKEN`."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & _LARGEST
    return tl.where(magnitude > _INF_BITS, _LARGEST, tl.where(bits < 0, -magnitude, magnitude))


@triton.jit
def _value(key):
    """The f32 of a key that `order` made."""
    return tl.where(key < 0, -key | TAKEN, key).to(tl.float32, bitcast=True)


@triton.jit
def take_largest(keys, columns):
    """The column of each row's largest key, the lowest of equals, and the keys with that one marked as taken."""
    largest = tl.max(keys, 1)
    winner = tl.min(tl.where(keys == largest[:, None], columns[None, :], _LARGEST), 1)
    return winner, tl.where(columns[None, :] == winner[:, None], TAKEN, keys)


@triton.jit
def total_of(values):
    """The sum of each row of `values` [rows, a power of two], neighbours first: the same bits in any layout."""
    if values.shape[1] == 1:
        return values
    else:
        return total_of(tl.sum(tl.reshape(values, [values.shape[0], values.shape[1] // 2, 2]), 2))


@triton.jit
def _score(x, largest, total, SCORE: tl.constexpr):
    """The scores of logits `x`, given their row's largest and the sum of exp(row - largest)."""
    score = tl.div_rn(1.0, _exp(-x) + 1.0) if SCORE == "sigmoid" else tl.div_rn(_exp(x - largest), total)
    return score


@triton.jit
def _best_two(members):
    """The sum of the two largest of the last axis of keys [rows, groups, size]."""
    first = tl.max(members, 2)
    member = tl.arange(0, members.shape[2])[None, None, :]
    at = tl.min(tl.where(members == first[:, :, None], member, _LARGEST), 2)
    return _value(first) + _value(tl.max(tl.where(member == at[:, :, None], TAKEN, members), 2))


@triton.jit
def _outside_top_groups(members, GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, TOP_GROUPS: tl.constexpr):
    """Which of the keys [rows, groups, size] are not in the groups with the largest sums of their two best."""
    best = _best_two(members) if GROUP_SIZE > 1 else _value(tl.max(members, 2))
    group = tl.arange(0, members.shape[1])
    left = tl.where(group[None, :] < GROUPS, order(best), TAKEN)
    for _ in tl.static_range(TOP_GROUPS):
        _, left = take_largest(left, group)
    return tl.broadcast_to((left != TAKEN)[:, :, None], members.shape)


@triton.constexpr_function
def columns_of(experts, groups):
    """Columns of a tile of logits: groups, and the experts of each, padded to a power of two."""
    return triton.next_power_of_2(groups) * triton.next_power_of_2(experts // groups)


@triton.jit
def routed(
    logits,
    stride,
    correction_bias,
    token,
    column,
    slot,
    M,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOTAL_OF: tl.constexpr = total_of,
):
    """Experts i32 and weights f32 of tokens `token`, [rows, k padded to a power of two]. What a combination of options
    does not use, the compiler drops. `column` and `slot` number a tile's columns (`columns_of`) and padded slots.

    Gluon kernels call it too: all but `token`, `column` and `slot` has their layouts, and TOTAL_OF is `total_of` with
    the layout that its operand has.
    """
    ROWS: tl.constexpr = token.shape[0]
    GROUP_SIZE: tl.constexpr = EXPERTS // GROUPS
    groups: tl.constexpr = triton.next_power_of_2(GROUPS)
    size: tl.constexpr = triton.next_power_of_2(GROUP_SIZE)
    row = logits + tl.minimum(token, M - 1).to(tl.int64)[:, None] * stride
    expert = column // size * GROUP_SIZE + column % size
    exists = (column // size < GROUPS) & (column % size < GROUP_SIZE)
    x = tl.load(row + expert[None, :], mask=exists[None, :], other=float("-inf")).to(tl.float32)
    largest = tl.max(x, 1)[:, None]
    total = TOTAL_OF(_exp(x - largest))

    # Without a bias the order of the scores is that of the logits, which rounding cannot disturb.
    choice = x
    members = _score(x, largest, total, SCORE)
    if correction_bias is not None:
        choice = members + tl.load(correction_bias + expert, mask=exists, other=0.0)[None, :]
        members = choice
    keys = tl.where(exists[None, :], order(choice), TAKEN)
    if GROUPS > 1:
        grouped = tl.where(exists[None, :], order(members), TAKEN).reshape([ROWS, groups, size])
        outside = _outside_top_groups(grouped, GROUPS, GROUP_SIZE, TOP_GROUPS).reshape(keys.shape)
        keys = tl.where(outside & exists[None, :], -_INF_BITS, keys)

    slot = slot[None, :]
    chosen = token[:, None] * 0 + slot * 0
    for s in range(TOPK):
        winner, keys = take_largest(keys, column)
        chosen = tl.where(slot == s, winner[:, None], chosen)
    chosen = chosen // size * GROUP_SIZE + chosen % size

    used = slot < TOPK
    x = tl.load(row + chosen, mask=used, other=float("-inf")).to(tl.float32)
    if SCORE == "softmax_after_topk":
        largest = tl.max(x, 1)[:, None]
        total = TOTAL_OF(_exp(x - largest))
    weight = tl.where(used, _score(x, largest, total, SCORE), 0.0)
    if RENORMALISE:
        total = TOTAL_OF(weight)
        weight = tl.div_rn(weight, tl.where(total < _SMALLEST_NORMAL, _SMALLEST_NORMAL, total))
    return chosen, weight * SCALE


@triton.jit
def store_routing(weights, ids, token, slot, chosen, weight, live, M, TOPK: tl.constexpr):
    """What `routed` gave of tokens `token`; id -1 and weight 0 from `live` on."""
    slot = slot[None, :]
    out = token.to(tl.int64)[:, None] * TOPK + slot
    is_live = (token < live)[:, None]
    written = (token < M)[:, None] & (slot < TOPK)
    tl.store(weights + out, tl.where(is_live, weight, 0.0), mask=written)
    tl.store(ids + out, tl.where(is_live, chosen, -1), mask=written)


@triton.jit
def route_kernel(
    logits,
    stride,
    correction_bias,
    num_tokens,
    weights,
    ids,
    M,
    TARGET: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOPK: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile is ROWS tokens."""
    follow(TARGET)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column, slot = tl.arange(0, columns_of(EXPERTS, GROUPS)), tl.arange(0, triton.next_power_of_2(TOPK))
    chosen, weight = routed(
        logits, stride, correction_bias, token, column, slot, M,
        EXPERTS, TOPK, SCORE, RENORMALISE, SCALE, GROUPS, TOP_GROUPS,
    )  # fmt: skip
    store_routing(weights, ids, token, slot, chosen, weight, live_tokens(num_tokens, M), M, TOPK)


ROUTED = [("weights", "*fp32"), ("ids", "*i32")]


def router_arguments(params: Params) -> list[tuple[str, str]]:
    """The operands: logits, [correction_bias], [num_tokens]."""
    bias = [("correction_bias", "*fp32")] if params["has_bias"] else []
    count = [("num_tokens", "*i32")] if params["has_num_tokens"] else []
    logits = [("logits", POINTERS[params["logits"]]), ("stride", "i64")]
    return [*logits, *bias, *count]


def _arguments(params: Params) -> list[tuple[str, str]]:
    return [*router_arguments(params), *ROUTED]


def router_constants(params: Params) -> dict[str, object]:
    """The router and ROWS."""
    given = dict(router_arguments(params))
    absent = {name: None for name in ("correction_bias", "num_tokens") if name not in given}
    names = ("experts", "topk", "score", "renormalise", "scale", "groups", "top_groups", "rows")
    return {name.upper(): params[name] for name in names} | absent


ROUTE = Template(route_kernel, _arguments, router_constants)
