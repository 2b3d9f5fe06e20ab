"""Triton template route, interpreted, against runtime/reference.py (float64)."""

import itertools

import pytest
import torch

from moeloom.runtime import reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy names what overflows to Inf or NaN
SCORES = ("softmax_after_topk", "softmax_before_topk", "sigmoid")
KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def route(
    interpret, logits, topk, score="softmax_after_topk", *, rows=4, correction_bias=None, num_tokens=None, **options
):
    tokens, experts = logits.shape
    params = {"renormalise": False, "scale": 1.0, "groups": 1, "top_groups": 1} | options
    params |= {"experts": experts, "topk": topk, "score": score, "logits": KINDS[logits.dtype], "rows": rows}
    params |= {"has_bias": correction_bias is not None, "has_num_tokens": num_tokens is not None}
    weights, ids = torch.full((tokens, topk), torch.nan), torch.full((tokens, topk), -7, dtype=torch.int32)
    operands = [(logits, logits.stride(0))]
    operands += [] if correction_bias is None else [correction_bias]
    operands += [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
    interpret("route", params, operands, [weights, ids], tokens, -(-tokens // rows))
    return weights, ids


def check(interpret, logits, topk, score, *, rows=4, **options):
    weights, ids = route(interpret, logits, topk, score, rows=rows, **options)
    want_weights, want_ids = reference.route(logits, topk, score, **options)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("score", SCORES)
def test_equals_the_reference(interpret, score):
    """bf16 and f16 logits tie in many rows."""
    shapes = ((128, 4), (32, 8), (100, 9), (3, 3), (1, 1), (256, 8), (384, 16), (96, 6))
    dtypes = itertools.cycle(KINDS)
    rows = itertools.cycle((4, 2, 16))
    for (experts, topk), dtype, renormalise in zip(shapes, dtypes, itertools.cycle((False, True)), strict=False):
        logits = (torch.randn(11, experts, generator=generator(experts)) * 3).to(dtype)
        check(interpret, logits, topk, score, rows=next(rows), renormalise=renormalise, scale=2.5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bias_and_groups_choose_only(interpret, score, dtype):
    logits = torch.randn(20, 64, generator=generator(1)).to(dtype)
    bias = torch.randn(64, generator=generator(2))
    for groups, top_groups, correction_bias in ((8, 3, bias), (4, 2, None), (1, 1, bias), (64, 9, bias)):
        options = {"groups": groups, "top_groups": top_groups, "correction_bias": correction_bias}
        check(interpret, logits, 6, score, renormalise=True, **options)


@pytest.mark.parametrize(("experts", "groups"), [(96, 4), (96, 6), (30, 3), (60, 5)])
def test_groups_of_any_number_and_size(interpret, experts, groups):
    logits = torch.randn(20, experts, generator=generator(3))
    bias = torch.randn(experts, generator=generator(4))
    for correction_bias in (None, bias, bias - 4):
        check(interpret, logits, 5, "sigmoid", groups=groups, top_groups=2, correction_bias=correction_bias)


def test_fewer_experts_in_the_groups_than_asked_for(interpret):
    check(interpret, torch.randn(20, 16, generator=generator(1)), 6, "sigmoid", groups=8, top_groups=2)
    check(interpret, torch.randn(20, 30, generator=generator(1)), 28, "sigmoid", groups=3, top_groups=1)


@pytest.mark.parametrize("dtype", KINDS)
def test_ties_go_to_the_lowest_expert(interpret, dtype):
    logits = torch.tensor([[0.0, -0.0, 1.0, 0.0, 1.0], [2.0] * 5, [-0.0, 0.0, -0.0, -1.0, -0.0], [-1.0] * 5]).to(dtype)
    _, ids = route(interpret, logits, 4)
    assert ids.tolist() == [[2, 4, 0, 1], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_value_has_its_place(interpret, dtype):
    """All 16-bit patterns but NaN, in rows of one sign and both."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    values = values[~values.isnan()][torch.randperm(int((~values.isnan()).sum()), generator=generator(5))]
    logits = values[: len(values) // 128 * 128].view(-1, 128)
    _, ids = route(interpret, logits, 16, rows=128)
    assert torch.equal(ids, logits.double().sort(dim=-1, descending=True, stable=True).indices[:, :16].int())


def test_subnormal_logits_are_told_apart(interpret):
    _, ids = route(interpret, torch.tensor([[1e-40, 3e-40, -1e-40, 2e-40]]), 4)
    assert ids.tolist() == [[1, 3, 0, 2]]


def test_rows_beyond_the_live_count_have_no_expert(interpret):
    logits = torch.randn(9, 32, generator=generator(1)).bfloat16()
    for live in (-3, 0, 5, 9, 12):
        check(interpret, logits, 4, "softmax_after_topk", num_tokens=live)


def test_rows_may_be_strided_and_unaligned(interpret):
    logits = torch.randn(9, 35, generator=generator(1)).bfloat16()[:, 1:34]
    check(interpret, logits, 4, "softmax_before_topk")


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("groups", [1, 4])
def test_logits_that_are_no_numbers_give_valid_ids(interpret, score, groups):
    nan, inf = torch.nan, torch.inf
    logits = torch.zeros(6, 16)
    logits[0], logits[1], logits[2], logits[3, 5], logits[4, 7], logits[5, 1] = nan, -inf, inf, nan, -nan, -inf
    for correction_bias in (None, torch.zeros(16)):
        _, ids = route(interpret, logits, 4, score, groups=groups, top_groups=1, correction_bias=correction_bias)
        assert bool(((ids >= 0) & (ids < 16)).all())
        assert all(len(set(row)) == 4 for row in ids.tolist())


@pytest.mark.parametrize("dtype", KINDS)
def test_a_nan_logit_is_chosen_as_the_largest(interpret, dtype):
    logits = torch.randn(2, 16, generator=generator(1)).to(dtype)
    logits[0, 5], logits[0, 3] = torch.nan, torch.inf
    weights, ids = route(interpret, logits, 2)
    assert ids[0].tolist() == [5, 3] and bool(weights[0].isnan().all()) and not bool(weights[1].isnan().any())


def test_scores_that_vanish_give_weights_of_zero(interpret):
    weights, _ = route(interpret, torch.full((2, 4), -200.0), 2, "sigmoid", renormalise=True)
    assert weights.tolist() == [[0.0, 0.0]] * 2


def test_large_and_tiny_scores_neither_overflow_nor_vanish(interpret):
    logits = torch.tensor([[3e38, -3e38, 3e38, 0.0], [-200.0, -201.0, -202.0, -300.0]])
    check(interpret, logits, 2, "softmax_after_topk")
    check(interpret, logits, 2, "softmax_before_topk", renormalise=True)
