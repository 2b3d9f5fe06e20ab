"""The gated activations of an expert on f32 vectors (docs/contract.md, section 5).

Comparisons keep a NaN; a minimum would not.
"""

from __future__ import annotations

import math

from .dsl import Val, const, select
from .numbers import exp

_ERFC = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERFC_P = 0.3275911
"""Abramowitz and Stegun 7.1.26: erfc(x) = t (a1 + t (a2 + ...)) exp(-x^2), t = 1 / (1 + p x); error below 1.5e-7."""


def gated(name: str, gate: Val, up: Val, alpha: float, limit: float) -> Val:
    """silu(gate)*up, gelu(gate)*up; swiglu: (u+1) g sigmoid(alpha g) of g = min(gate, limit), u = up within +-limit."""
    if name == "silu":
        return gate * _sigmoid(gate) * up
    if name == "gelu":
        return gate * _normal_cdf(gate) * up
    if name == "gelu_tanh":
        inner = (gate * gate * 0.044715 + 1.0) * gate * math.sqrt(2 / math.pi)
        return gate * _sigmoid(inner * 2.0) * up
    if name == "swiglu":
        gate = _at_most(gate, limit)
        up = -_at_most(-_at_most(up, limit), limit)
        return (up + 1.0) * gate * _sigmoid(gate * alpha)
    raise ValueError(f"activation {name!r} is unknown; use silu, swiglu, gelu or gelu_tanh")


def _sigmoid(x: Val) -> Val:
    return 1.0 / (exp(-x) + 1.0)


def _normal_cdf(x: Val) -> Val:
    """(1 + erf(x / sqrt 2)) / 2, without cancellation on the negative side."""
    z = select(x < 0.0, -x, x) * math.sqrt(0.5)
    t = 1.0 / (z * _ERFC_P + 1.0)
    tail = const(_ERFC[0], x.type)
    for coefficient in _ERFC[1:]:
        tail = tail * t + coefficient
    tail = tail * t * exp(-(z * z)) * 0.5
    return select(x < 0.0, tail, 1.0 - tail)


def _at_most(x: Val, limit: float) -> Val:
    return select(x > limit, const(limit, x.type), x)
