"""Template sort_tokens against runtime/reference.py, entry by entry below num_valid[0]."""

import pytest
import torch

from moeloom.runtime import reference

BLOCKS = (16, 32, 64, 128)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def capacity(tokens, topk, experts, block):
    return tokens * topk + experts * block - min(topk, experts)


def params_of(topk, experts, block, num_tokens=None, expert_map=None):
    kind = {None: "none", torch.bool: "mask", torch.int32: "index"}[getattr(expert_map, "dtype", None)]
    flags = {"has_num_tokens": num_tokens is not None, "map": kind}
    return {"experts": experts, "topk": topk, "block": block, **flags}


def sort(kernels, ids, weights, experts, block, num_tokens=None, expert_map=None):
    tokens, topk = ids.shape
    params = params_of(topk, experts, block, num_tokens, expert_map)
    entries = capacity(tokens, topk, experts, block)
    results = [
        kernels.output((entries,), torch.int32),
        kernels.output((entries,), torch.float32),
        kernels.output((-(-entries // block),), torch.int32),
        kernels.output((2,), torch.int32),
    ]
    operands = [ids, weights]
    operands += [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
    operands += [] if expert_map is None else [expert_map]
    kernels.run("sort_tokens", params, [*operands, *results, tokens], 1)
    return results


def check(kernels, ids, experts, block, num_tokens=None, expert_map=None):
    weights = torch.rand(ids.shape, generator=generator(7))
    found = sort(kernels, ids, weights, experts, block, num_tokens, expert_map)
    want = reference.sort_tokens(ids, weights, experts, block, num_tokens, expert_map)
    assert torch.equal(found[3], want[3])
    valid = int(want[3][0])
    assert torch.equal(found[0][:valid], want[0][:valid])
    assert torch.equal(found[1][:valid], want[1][:valid])
    assert torch.equal(found[2][: valid // block], want[2][: valid // block])
    assert bool((found[0][valid:] == -1).all()), "padding rows are written below num_valid[0] only"


def random_ids(tokens, topk, experts, seed, low=0):
    return torch.randint(low, experts, (tokens, topk), generator=generator(seed), dtype=torch.int32)


@pytest.mark.parametrize("topk", [1, 4, 9])
@pytest.mark.parametrize("experts", [1, 3, 96, 128])
def test_random_ids_with_and_without_an_expert(kernels, experts, topk):
    """topk may exceed the experts, and a token may name an expert twice."""
    kernels.compile(*(("sort_tokens", params_of(topk, experts, block)) for block in BLOCKS))
    for block, tokens in zip(BLOCKS * 2, (1, 2, 7, 64, 129, 33, 16, 5), strict=True):
        check(kernels, random_ids(tokens, topk, experts, tokens), experts, block)
        check(kernels, random_ids(tokens, topk, experts, tokens, low=-1), experts, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_live_count_bounds_the_tokens(kernels, block):
    ids = random_ids(40, 4, 8, 3, low=-1)
    for live in (0, 1, 17, 39, 40):
        check(kernels, ids, 8, block, num_tokens=live)


def test_a_live_count_outside_the_batch_is_clamped(kernels):
    ids = random_ids(6, 2, 4, 3)
    weights = torch.rand(6, 2)
    for given, live in ((9, 6), (-3, 0)):
        found = sort(kernels, ids, weights, 4, 16, num_tokens=given)
        want = sort(kernels, ids, weights, 4, 16, num_tokens=live)
        assert torch.equal(found[0], want[0]) and torch.equal(found[3], want[3])


def test_maps_make_ids_local(kernels):
    ids = random_ids(50, 3, 12, 4, low=-1)
    mask = torch.rand(12, generator=generator(1)) < 0.5
    check(kernels, ids, 12, 32, expert_map=mask)
    check(kernels, ids, 12, 32, num_tokens=31, expert_map=mask)
    check(kernels, ids, 12, 32, expert_map=torch.zeros(12, dtype=torch.bool))
    index = torch.full((12,), -1, dtype=torch.int32)
    index[torch.tensor([7, 2, 11, 4])] = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    check(kernels, ids, 12, 32, expert_map=index)
    check(kernels, ids, 12, 16, num_tokens=44, expert_map=index)


def test_ids_no_expert_has_take_no_row(kernels):
    ids = torch.tensor([[0, 5], [-7, 1], [2**31 - 1, -(2**31)], [4, 3]], dtype=torch.int32)
    check(kernels, ids, 4, 16)


def test_all_tokens_to_one_expert(kernels):
    check(kernels, torch.full((200, 2), 5, dtype=torch.int32), 9, 64)


def test_slots_of_128_and_more_are_unsigned(kernels):
    check(kernels, random_ids(3, 255, 20, 9, low=-1), 20, 32)


@pytest.mark.parametrize("experts", [4096, 70000])
def test_many_experts(kernels, experts):
    check(kernels, random_ids(64, 8, experts, 5), experts, 16)
