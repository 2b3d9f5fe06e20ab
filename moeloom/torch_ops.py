"""The two operators a mixture-of-experts block is exported as: `torch.ops.moe.route` and `torch.ops.moe.experts`.

They stay whole in `torch.export` graphs, so that no gather of weights and no decomposed top-k reaches the compiler.
Run eagerly they are `runtime.reference`: float64, for checking, not for speed. M tokens, H hidden, I intermediate,
E experts, k experts a token.
"""

import torch
from torch import Tensor

from moeloom.runtime import reference


@torch.library.custom_op("moe::route", mutates_args=())
def route(
    logits: Tensor,
    correction_bias: Tensor | None,
    num_tokens: Tensor | None,
    topk: int,
    score: str,
    renormalise: bool,
    scale: float,
    groups: int,
    top_groups: int,
) -> tuple[Tensor, Tensor]:
    """Choose `topk` of the E experts for each row of `logits` [M, E]: weights f32 [M, k] and ids i32 [M, k].

    `score` is softmax_after_topk, softmax_before_topk or sigmoid. `correction_bias` f32 [E] counts for the choice only;
    of `groups` groups of experts the `top_groups` with the largest sum of their two best scores take part. Ties go to
    the lowest expert. Rows from `num_tokens` i32 [1] on get weight 0 and id -1.
    """
    return reference.route(
        logits,
        topk,
        score,
        renormalise=renormalise,
        scale=scale,
        groups=groups,
        top_groups=top_groups,
        correction_bias=correction_bias,
        num_tokens=None if num_tokens is None else int(num_tokens),
    )


@route.register_fake
def _(logits, correction_bias, num_tokens, topk, score, renormalise, scale, groups, top_groups):
    shape = (logits.shape[0], topk)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("moe::experts", mutates_args=())
def experts(
    x: Tensor,
    x_scales: Tensor | None,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor | None,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor | None,
    down_bias: Tensor | None,
    dtype: torch.dtype,
    activation: str,
    alpha: float,
    limit: float,
    gate_up_order: str,
    weight_order: str,
) -> Tensor:
    """All experts of a block: out[t] = sum over slots s of weights[t, s] * expert[ids[t, s]](x[t]), as `dtype` [M, H].

    `x` is [M, H], or the u8 payload [M, H/2] of MXFP4 with `x_scales` u8 [M, H/32]. `gate_up` is [E, 2I, H] (order nk)
    or [E, H, 2I] (kn), or with `gate_up_scales` u8 [E, 2I, H/32] the MXFP4 payload u8 [E, 2I, H/32, 16]; so is `down`
    [E, H, I]. An id below 0 names no expert.
    """
    return reference.experts(
        x if x_scales is None else (x, x_scales),
        ids,
        weights,
        gate_up if gate_up_scales is None else (gate_up, gate_up_scales),
        down if down_scales is None else (down, down_scales),
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
        activation=activation,
        alpha=alpha,
        limit=limit,
        order=gate_up_order,
        weight_order=weight_order,
        activations="bf16" if x_scales is None else "mxfp4",
        out_dtype=dtype,
    )


@experts.register_fake
def _(x, x_scales, ids, weights, gate_up, gate_up_scales, gate_up_bias, down, down_scales, down_bias, dtype, *how):
    hidden = x.shape[1] if x_scales is None else 2 * x.shape[1]
    return x.new_empty((x.shape[0], hidden), dtype=dtype)
