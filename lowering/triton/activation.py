"""The gated activations of an expert on f32 tiles (docs/contract.md, section 5).

Comparisons keep a NaN; a minimum would not.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(math.sqrt(1 / 2))
TWO_SQRT_TWO_OVER_PI = tl.constexpr(2 * math.sqrt(2 / math.pi))


@triton.jit
def gated(gate, up, NAME: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """silu(gate)*up, gelu(gate)*up; swiglu: (u+1) g sigmoid(alpha g) of g = min(gate, limit), u = up within +-limit."""
    if NAME == "silu":
        return gate * tl.sigmoid(gate) * up
    elif NAME == "gelu":
        return 0.5 * gate * (1.0 + tl.erf(gate * SQRT_HALF)) * up
    elif NAME == "gelu_tanh":
        # (1 + tanh(z)) / 2 = sigmoid(2 z)
        return gate * tl.sigmoid((1.0 + 0.044715 * gate * gate) * gate * TWO_SQRT_TWO_OVER_PI) * up
    else:
        tl.static_assert(NAME == "swiglu", "activation must be silu, swiglu, gelu or gelu_tanh")
        gate = tl.where(gate > LIMIT, LIMIT, gate)
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
        return (up + 1.0) * gate * tl.sigmoid(ALPHA * gate)
