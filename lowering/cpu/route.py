"""Template `route`: the experts of a token and their weights (docs/contract.md, section 2). One token a tile.

Choices are compared as integers that order as the floats do, NaN above all: no comparison can then fail, so every id is
an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .dsl import Buffer, Val, const, f32, i16, i32, index, loop, select, table, vec, when
from .kernel_function import KernelFunction, define
from .live_slots import live_tokens
from .numbers import exp, like, sigmoid, widen
from .tiers import Tier

_LARGEST, _TAKEN = 0x7FFFFFFF, -0x80000000
_SMALLEST_NORMAL = 2.0**-126


def _order(x: Val) -> Val:
    """i32 that order as the f32 `x` do: -0 equals 0, NaN is the largest, none is `_TAKEN`."""
    bits = x.bits(like(x, i32()))
    magnitude = bits & _LARGEST
    signed = select(bits < 0, const(0, magnitude.type) - magnitude, magnitude)
    return select(magnitude > 0x7F800000, const(_LARGEST, signed.type), signed)


class _Row:
    """`count` numbers on the stack, padded to whole vectors."""

    def __init__(self, count: int, element: Any, lanes: int):
        self.count, self.lanes, self.padded = count, lanes, -(-count // lanes) * lanes
        self.buffer = Buffer.stack(self.padded, element)

    def fill_padding(self, value: float) -> None:
        loop(self.count, self.padded, 1, [], lambda i: self.buffer.store(value, i))

    def fill(self, of: Callable[[Val], Val]) -> None:
        """`of(i)` is the vector from i on."""
        loop(0, self.padded, self.lanes, [], lambda i: self.buffer.store(of(i), i))

    def load(self, i: Val) -> Val:
        return self.buffer.load(i, self.lanes)

    def reduce(self, how: str, start: float) -> Val:
        """ "add" or "maxnumf" of all numbers."""
        join = Val.__add__ if how == "add" else Val.max
        kind = vec(self.lanes, self.buffer.element)
        (total,) = loop(0, self.padded, self.lanes, [const(start, kind)], lambda i, a: [join(a, self.load(i))])
        return total.reduce(how)

    def take_largest(self) -> Val:
        """The index of the largest key (i32), the lowest of equals, which is then marked as taken."""
        kind = vec(self.lanes, i32())
        steps = table(range(self.lanes), i32())

        def step(i: Val, best: Val, where: Val) -> list[Val]:
            keys = self.load(i)
            larger = keys > best
            return [select(larger, keys, best), select(larger, steps + i.to(i32()), where)]

        best, where = loop(0, self.padded, self.lanes, [const(_TAKEN, kind), steps], step)
        winner = select(best.eq(best.reduce("maxsi")), where, _LARGEST).reduce("minsi").to(index())
        self.buffer.store(_TAKEN, winner)
        return winner


def _softmax(row: _Row, into: _Row) -> None:
    largest = row.reduce("maxnumf", float("-inf"))
    into.fill(lambda i: exp(row.load(i) - largest))
    total = into.reduce("add", 0.0)
    into.fill(lambda i: into.load(i) / total)


def _mask_groups(keys: _Row, members: _Row, group_keys: _Row, top_groups: int) -> None:
    """Give the lowest key to all experts but those of the groups with the largest sums of their two best members."""
    groups, size = group_keys.count, keys.count // group_keys.count
    group_keys.fill_padding(_TAKEN)
    lowest = const(float("-inf"), f32())

    def score(group: Val) -> None:
        def best_two(i: Val, first: Val, second: Val) -> list[Val]:
            value = members.buffer.load(group * size + i)
            larger = _order(value) > _order(first)
            loser = select(larger, first, value)
            second = select(_order(loser) > _order(second), loser, second)
            return [select(larger, value, first), second]

        first, second = loop(0, size, 1, [lowest, lowest], best_two)
        group_keys.buffer.store(_order(first + second if size > 1 else first), group)

    def mask(group: Val) -> None:
        def drop() -> None:
            loop(0, size, 1, [], lambda i: keys.buffer.store(_order(lowest), group * size + i))

        when(group_keys.buffer.load(group).ne(_TAKEN), drop)

    def take(_: Val) -> None:
        group_keys.take_largest()

    loop(0, groups, 1, [], score)
    loop(0, top_groups, 1, [], take)
    loop(0, groups, 1, [], mask)


def build(name: str, params: Mapping[str, Any], tier: Tier) -> None:
    """Add the kernel. Params: experts, topk, score, renormalise, scale, groups, top_groups, logits, has_bias,
    has_num_tokens."""
    experts, topk, lanes, kind = params["experts"], params["topk"], tier.lanes, params["logits"]
    after = params["score"] == "softmax_after_topk"
    grouped, biased = params["groups"] > 1, params["has_bias"]

    def body(k: KernelFunction) -> None:
        source, stride = k.tensor(f32() if kind == "f32" else i16()), k.size()
        bias = k.tensor(f32()) if biased else None
        num_tokens = k.tensor(i32()) if params["has_num_tokens"] else None
        weights, ids = k.tensor(f32()), k.tensor(i32())
        live = live_tokens(num_tokens, k.size())
        out = k.tile * topk
        logits, scores, choice = (_Row(experts, f32(), lanes) for _ in range(3))
        keys, group_keys = _Row(experts, i32(), lanes), _Row(params["groups"], i32(), lanes)
        chosen = _Row(topk, f32(), lanes)

        def read_logits() -> None:
            start, whole = k.tile * stride, experts - experts % lanes
            loop(
                0, whole, lanes, [], lambda i: logits.buffer.store(widen(source.load(start + i, lanes), kind, tier), i)
            )
            loop(whole, experts, 1, [], lambda i: logits.buffer.store(widen(source.load(start + i), kind, tier), i))
            logits.fill_padding(float("-inf"))

        def choose() -> None:
            """Without a bias the order of the scores is that of the logits, which rounding cannot disturb."""
            if params["score"] == "sigmoid":
                scores.fill(lambda i: sigmoid(logits.load(i)))
            elif not after or biased or grouped:
                _softmax(logits, scores)
            if bias:
                loop(0, experts, 1, [], lambda i: choice.buffer.store(scores.buffer.load(i) + bias.load(i), i))
                choice.fill_padding(float("-inf"))
            compared = choice if biased else logits
            keys.fill(lambda i: _order(compared.load(i)))
            keys.fill_padding(_TAKEN)
            if grouped:
                _mask_groups(keys, choice if biased else scores, group_keys, params["top_groups"])

        def take(slot: Val) -> None:
            expert = keys.take_largest()
            ids.store(expert.to(i32()), out + slot)
            chosen.buffer.store((logits if after else scores).buffer.load(expert), slot)

        def weigh() -> None:
            chosen.fill_padding(float("-inf") if after else 0.0)
            if after:
                _softmax(chosen, chosen)
            if params["renormalise"]:
                total = chosen.reduce("add", 0.0)
                total = select(total < _SMALLEST_NORMAL, const(_SMALLEST_NORMAL, f32()), total)
                chosen.fill(lambda i: chosen.load(i) / total)
            loop(0, topk, 1, [], lambda s: weights.store(chosen.buffer.load(s) * params["scale"], out + s))

        def route() -> None:
            read_logits()
            choose()
            loop(0, topk, 1, [], take)
            weigh()

        def no_expert(slot: Val) -> None:
            ids.store(-1, out + slot)
            weights.store(0.0, out + slot)

        if num_tokens is None:
            route()
        else:
            when(k.tile < live, route)
            when(k.tile >= live, lambda: loop(0, topk, 1, [], no_expert))

    define(name, tier, body)
