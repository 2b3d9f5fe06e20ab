"""Template route against runtime/reference.py (float64), and its choices against a stable sort of the logits."""

import itertools

import pytest
import torch

from moeloom.runtime import reference

SCORES = ("softmax_after_topk", "softmax_before_topk", "sigmoid")
KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def route(kernels, logits, topk, score="softmax_after_topk", *, correction_bias=None, num_tokens=None, **options):
    tokens, experts = logits.shape
    params = {"renormalise": False, "scale": 1.0, "groups": 1, "top_groups": 1} | options
    params |= {"experts": experts, "topk": topk, "score": score, "logits": KINDS[logits.dtype]}
    params |= {"has_bias": correction_bias is not None, "has_num_tokens": num_tokens is not None}
    weights, ids = kernels.output((tokens, topk), torch.float32), kernels.output((tokens, topk), torch.int32)
    operands = [logits, logits.stride(0)]
    operands += [] if correction_bias is None else [correction_bias]
    operands += [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
    kernels.run("route", params, [*operands, weights, ids, tokens], tokens)
    return weights, ids


def check(kernels, logits, topk, score, **options):
    weights, ids = route(kernels, logits, topk, score, **options)
    want_weights, want_ids = reference.route(logits, topk, score, **options)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("score", SCORES)
def test_equals_the_reference(kernels, score):
    """bf16 logits tie in many rows."""
    shapes = ((128, 4), (32, 8), (100, 9), (3, 3), (1, 1), (256, 8))
    dtypes = itertools.cycle(KINDS)
    for (experts, topk), dtype, renormalise in zip(shapes, dtypes, itertools.cycle((False, True)), strict=False):
        logits = (torch.randn(40, experts, generator=generator(experts)) * 3).to(dtype)
        check(kernels, logits, topk, score, renormalise=renormalise, scale=2.5)


@pytest.mark.parametrize("score", SCORES)
def test_bias_and_groups_choose_only(kernels, score):
    logits = torch.randn(40, 64, generator=generator(1))
    bias = torch.randn(64, generator=generator(2))
    for groups, top_groups, correction_bias in ((8, 3, bias), (4, 2, None), (1, 1, bias), (64, 9, bias)):
        options = {"groups": groups, "top_groups": top_groups, "correction_bias": correction_bias}
        check(kernels, logits, 6, score, renormalise=True, **options)


def test_fewer_experts_in_the_groups_than_asked_for(kernels):
    check(kernels, torch.randn(20, 16, generator=generator(1)), 6, "sigmoid", groups=8, top_groups=2)


def test_ties_go_to_the_lowest_expert(kernels):
    logits = torch.tensor([[0.0, -0.0, 1.0, 0.0, 1.0], [2.0] * 5, [-0.0, 0.0, -0.0, -1.0, -0.0]]).bfloat16()
    _, ids = route(kernels, logits, 4)
    assert ids.tolist() == [[2, 4, 0, 1], [0, 1, 2, 3], [0, 1, 2, 4]]


def test_subnormal_logits_are_told_apart_when_denormals_are_flushed(kernels):
    logits = torch.tensor([[1e-40, 3e-40, -1e-40, 2e-40]])
    torch.set_flush_denormal(True)
    try:
        _, ids = route(kernels, logits, 4)
    finally:
        torch.set_flush_denormal(False)
    assert ids.tolist() == [[1, 3, 0, 2]]


def test_rows_beyond_the_live_count_have_no_expert(kernels):
    logits = torch.randn(9, 32, generator=generator(1)).bfloat16()
    for live in (0, 5, 9):
        check(kernels, logits, 4, "softmax_after_topk", num_tokens=live)


def test_rows_may_be_strided_and_unaligned(kernels):
    logits = torch.randn(9, 35, generator=generator(1)).bfloat16()[:, 1:34]
    check(kernels, logits, 4, "softmax_before_topk")


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("groups", [1, 4])
def test_logits_that_are_no_numbers_give_valid_ids(kernels, score, groups):
    nan, inf = torch.nan, torch.inf
    logits = torch.zeros(6, 16)
    logits[0], logits[1], logits[2], logits[3, 5], logits[4, 7], logits[5, 1] = nan, -inf, inf, nan, -nan, -inf
    _, ids = route(kernels, logits, 4, score, groups=groups, top_groups=1, correction_bias=torch.zeros(16))
    assert bool(((ids >= 0) & (ids < 16)).all())
    assert all(len(set(row)) == 4 for row in ids.tolist())


def test_a_nan_logit_is_chosen_as_the_largest(kernels):
    logits = torch.randn(2, 16, generator=generator(1))
    logits[0, 5] = torch.nan
    weights, ids = route(kernels, logits, 2)
    assert ids[0, 0] == 5 and bool(weights[0].isnan().all()) and not bool(weights[1].isnan().any())


def test_large_and_tiny_scores_neither_overflow_nor_vanish(kernels):
    logits = torch.tensor([[3e38, -3e38, 3e38, 0.0], [-200.0, -201.0, -202.0, -300.0]])
    check(kernels, logits, 2, "softmax_after_topk")
    check(kernels, logits, 2, "softmax_before_topk", renormalise=True)
