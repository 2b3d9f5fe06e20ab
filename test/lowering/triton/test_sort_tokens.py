"""Triton templates sort_tokens and sort_count, sort_scan, sort_scatter, interpreted, against runtime/reference.py."""

import pytest
import torch

from moeloom.runtime import reference

BLOCKS = (16, 32, 64, 128, 144)
POISON = 0x55555555


def generator(seed):
    return torch.Generator().manual_seed(seed)


def poisoned(*shape, dtype=torch.int32):
    return torch.full(shape, -1, dtype=torch.int32).view(dtype)


def one_launch(interpret, params, ids, weights, optional, results):
    interpret("sort_tokens", params, [ids, weights, *optional], results, len(ids), params["experts"])


def three_launches(interpret, params, ids, weights, optional, results):
    tokens, experts = len(ids), params["experts"]
    chunks = -(-tokens // params["rows"])
    counts, starts, totals = poisoned(experts, chunks), poisoned(experts, chunks), poisoned(experts)
    interpret("sort_count", params, [ids, *optional], [counts], tokens, chunks)
    interpret("sort_scan", params, [counts], [starts, totals], tokens, experts)
    operands = [ids, weights, starts, totals, *optional]
    interpret("sort_scatter", params, operands, results, tokens, experts * chunks)


@pytest.fixture(params=[one_launch, three_launches])
def sort(request, interpret):
    """sort(ids, weights, experts, block, num_tokens, expert_map, rows) by one form."""

    def run(ids, weights, experts, block, num_tokens=None, expert_map=None, rows=16):
        tokens, topk = ids.shape
        kind = {None: "none", torch.bool: "mask", torch.int32: "index"}[getattr(expert_map, "dtype", None)]
        params = {"experts": experts, "topk": topk, "block": block, "rows": rows, "map": kind}
        params |= {"has_num_tokens": num_tokens is not None, "has_slot_rows": tokens % 3 > 0}
        entries = tokens * topk + experts * block - min(topk, experts)
        blocks = poisoned(-(-entries // block))
        results = [poisoned(entries), poisoned(entries, dtype=torch.float32), blocks, poisoned(2)]
        results += [torch.full((tokens, topk), POISON, dtype=torch.int32)] if params["has_slot_rows"] else []
        optional = [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
        optional += [] if expert_map is None else [expert_map.view(torch.uint8) if kind == "mask" else expert_map]
        request.param(interpret, params, ids, weights, optional, results)
        return results

    return run


def check(sort, ids, experts, block, num_tokens=None, expert_map=None, rows=16):
    weights = torch.rand(ids.shape, generator=generator(7))
    found = sort(ids, weights, experts, block, num_tokens, expert_map, rows)
    want = reference.sort_tokens(ids, weights, experts, block, num_tokens, expert_map)
    assert torch.equal(found[3], want[3])
    valid = int(want[3][0])
    assert torch.equal(found[0][:valid], want[0][:valid])
    assert torch.equal(found[1][:valid], want[1][:valid])
    assert torch.equal(found[2][: valid // block], want[2][: valid // block])
    if len(found) > 4:
        assert torch.equal(found[4], slot_rows(want, block, *ids.shape))
    for result, written in zip(found, (valid, valid, valid // block), strict=False):
        assert bool((result.view(torch.int32)[written:] == -1).all()), "nothing is written beyond num_valid[0]"


def slot_rows(want, block, tokens, topk):
    """The sorted row of each slot, 2^30 more for the last one of an expert, -1 where it has none."""
    out = torch.full((tokens * topk,), -1, dtype=torch.int32)
    rows = reference.source_rows(want[0], want[3], 2, topk).tolist()
    last = {}
    for place, row in enumerate(rows):
        if row >= 0:
            out[row] = place
            last[int(want[2][place // block])] = row
    out[list(last.values())] += 1 << 30
    return out.view(tokens, topk)


def random_ids(tokens, topk, experts, seed, low=0):
    return torch.randint(low, experts, (tokens, topk), generator=generator(seed), dtype=torch.int32)


@pytest.mark.parametrize(("experts", "topk"), [(1, 1), (1, 4), (3, 4), (3, 9), (20, 6)])
def test_random_ids_with_and_without_an_expert(sort, experts, topk):
    """topk may exceed the experts, and a token may name an expert twice."""
    for block, tokens, rows in zip(BLOCKS, (1, 7, 33, 40, 50), (16, 4, 16, 16, 32), strict=True):
        check(sort, random_ids(tokens, topk, experts, tokens, low=-1), experts, block, rows=rows)


def test_every_small_batch(sort):
    for tokens in range(1, 18):
        check(sort, random_ids(tokens, 3, 5, tokens, low=-1), 5, 16, rows=8)


def test_the_live_count_bounds_the_tokens(sort):
    ids = random_ids(40, 4, 8, 3, low=-1)
    for live in (-3, 0, 1, 16, 39, 50):
        check(sort, ids, 8, 32, num_tokens=live)


def test_maps_make_ids_local(sort):
    ids = random_ids(50, 3, 12, 4, low=-1)
    mask = torch.rand(12, generator=generator(1)) < 0.5
    check(sort, ids, 12, 32, expert_map=mask)
    check(sort, ids, 12, 16, num_tokens=31, expert_map=mask)
    check(sort, ids, 12, 32, expert_map=~mask)
    check(sort, ids, 12, 32, expert_map=torch.zeros(12, dtype=torch.bool))
    index = torch.full((12,), -1, dtype=torch.int32)
    index[torch.tensor([7, 2, 11, 4])] = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    check(sort, ids, 12, 32, expert_map=index)
    check(sort, ids, 12, 16, num_tokens=44, expert_map=index)


def test_ids_no_expert_has_take_no_row(sort):
    ids = torch.tensor([[0, 5], [-7, 1], [2**31 - 1, -(2**31)], [4, 3]], dtype=torch.int32)
    check(sort, ids, 4, 16)
    check(sort, torch.full((5, 2), -1, dtype=torch.int32), 4, 16)


def test_all_tokens_to_one_expert(sort):
    check(sort, torch.full((100, 2), 5, dtype=torch.int32), 9, 64)


def test_an_expert_of_more_blocks_than_are_written_at_a_time(sort):
    check(sort, torch.full((2100, 1), 1, dtype=torch.int32), 3, 16, rows=512)


@pytest.mark.parametrize("sort", [three_launches], indirect=True)
def test_more_chunks_than_are_summed_at_a_time(sort):
    check(sort, random_ids(131, 1, 2, 6), 2, 32, rows=1)


def test_slots_of_128_and_more_are_unsigned(sort):
    check(sort, random_ids(3, 255, 20, 9, low=-1), 20, 32, rows=2)


def test_many_experts(sort):
    check(sort, random_ids(12, 8, 130, 5), 130, 16)
    check(sort, random_ids(20, 4, 96, 6, low=-1), 96, 32)
