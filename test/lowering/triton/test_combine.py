"""Triton template combine, interpreted, against a plain float64 sum over the slots that have an expert."""

import pytest
import torch

from moeloom.runtime import reference

NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}
ULP = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the output: the interpreter truncates to bf16, where a GPU rounds to nearest even."""

MASK = torch.tensor([True, False, True, True, False, True])
INDEX = torch.tensor([-1, 0, -1, 2, 1, -1], dtype=torch.int32)


def combine(interpret, rows, ids, experts, dtype=torch.bfloat16, num_tokens=None, expert_map=None, tile=(1, 64)):
    """`rows` is f32 [splits, M*k, H], `tile` tokens by columns."""
    (tokens, topk), (splits, _, columns) = ids.shape, rows.shape
    kind = {None: "none", torch.bool: "mask", torch.int32: "index"}[getattr(expert_map, "dtype", None)]
    params = {"columns": columns, "topk": topk, "experts": experts, "out": NAMES[dtype], "map": kind}
    params |= {
        "has_num_tokens": num_tokens is not None,
        "splits": splits,
        "rows": tile[0],
        "block_n": tile[1],
        "early": False,
    }
    operands = [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
    operands += [] if expert_map is None else [expert_map.view(torch.uint8) if kind == "mask" else expert_map]
    out = torch.full((tokens, columns), torch.nan, dtype=dtype)
    interpret("combine", params, [rows, ids, *operands], [out], tokens, -(-tokens // tile[0]) * -(-columns // tile[1]))
    return out


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("expert_map", [None, MASK, INDEX], ids=["none", "mask", "index"])
@pytest.mark.parametrize("columns", [32, 96, 160])
def test_sums_the_rows_that_have_an_expert(interpret, columns, expert_map, dtype):
    """Rows without one are NaN here: they may not be touched."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 4, None, 1), (13, 3, None, 2), (13, 3, 9, 3), (5, 9, 0, 1), (5, 9, -2, 1), (5, 2, 7, 1))
    for (tokens, topk, live, splits), tile in zip(shapes, ((1, 64), (4, 128), (1, 256)) * 2, strict=True):
        ids = torch.randint(-1, 7, (tokens, topk), generator=generator, dtype=torch.int32)
        rows = torch.randn(splits, tokens * topk, columns, generator=generator)
        here = reference.local_experts(ids, 6, live, expert_map) >= 0
        want = (rows.double().sum(0).view(tokens, topk, -1) * here.unsqueeze(-1)).sum(1)
        rows[:, ~here.flatten()] = torch.nan
        found = combine(interpret, rows, ids, 6, dtype, live, expert_map, tile)
        torch.testing.assert_close(found.double(), want, rtol=ULP[dtype], atol=1e-6)
        assert not bool(found[~here.any(-1)].any())


def test_adds_splits_first_and_in_order(interpret):
    """2^12 + 2^-12 is 2^12 in f32, so what is left when large numbers cancel tells the order of adding."""
    picks = torch.randint(3, (3, 8 * 5, 64), generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([2.0**12, 2.0**-12, -(2.0**12)])[picks]
    slots = ((rows[0] + rows[1]) + rows[2]).view(8, 5, 64)
    want = torch.zeros(8, 64)
    for slot in range(5):
        want += slots[:, slot]
    found = combine(interpret, rows, torch.zeros(8, 5, dtype=torch.int32), 1, torch.float16)
    assert torch.equal(found, want.half())
