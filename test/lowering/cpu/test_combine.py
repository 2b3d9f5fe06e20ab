"""Template combine against a plain float64 sum over the slots that have an expert."""

import pytest
import torch

from moeloom.runtime import reference

NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}


def combine(kernels, rows, ids, experts, dtype=torch.bfloat16, num_tokens=None, expert_map=None):
    tokens, topk = ids.shape
    kind = {None: "none", torch.bool: "mask", torch.int32: "index"}[getattr(expert_map, "dtype", None)]
    params = {"columns": rows.shape[1], "topk": topk, "experts": experts, "out": NAMES[dtype]}
    params |= {"has_num_tokens": num_tokens is not None, "map": kind}
    operands = [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
    operands += [] if expert_map is None else [expert_map]
    out = kernels.output((tokens, rows.shape[1]), dtype)
    kernels.run("combine", params, [rows, ids, *operands, out, tokens], tokens)
    return out


MASK = torch.tensor([True, False, True, True, False, True])
INDEX = torch.tensor([-1, 0, -1, 2, 1, -1], dtype=torch.int32)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("expert_map", [None, MASK, INDEX], ids=["none", "mask", "index"])
@pytest.mark.parametrize("columns", [32, 96, 2880])
def test_sums_the_rows_that_have_an_expert(kernels, columns, expert_map, dtype):
    """Rows without one are NaN here: they may not be touched."""
    generator = torch.Generator().manual_seed(1)
    for tokens, topk, live in ((1, 4, None), (13, 3, None), (13, 3, 9), (5, 9, 0)):
        ids = torch.randint(-1, 7, (tokens, topk), generator=generator, dtype=torch.int32)
        rows = torch.randn(tokens * topk, columns, generator=generator)
        here = reference.local_experts(ids, 6, live, expert_map) >= 0
        want = (rows.double().view(tokens, topk, -1) * here.unsqueeze(-1)).sum(1)
        rows[~here.flatten()] = torch.nan
        found = combine(kernels, rows, ids, 6, dtype, live, expert_map)
        torch.testing.assert_close(found.double(), want, rtol=2**-8 if dtype == torch.bfloat16 else 2**-11, atol=1e-6)
        assert not bool(found[~here.any(-1)].any())


@pytest.mark.parametrize("dtype", NAMES)
def test_rounds_to_nearest_even(kernels, dtype):
    """One slot: the output is the row, rounded as torch rounds it; overflow, Inf and NaN too."""
    generator = torch.Generator().manual_seed(2)
    bits = torch.randint(-(2**31), 2**31 - 1, (256, 96), generator=generator)
    rows = bits.to(torch.int32).view(torch.float32)
    rows[:, :32] = torch.randn(256, 32, generator=generator) * 1e-6
    rows[:, 32:64] = torch.randn(256, 32, generator=generator)
    found = combine(kernels, rows, torch.zeros(256, 1, dtype=torch.int32), 1, dtype)
    torch.testing.assert_close(found, rows.to(dtype), rtol=0, atol=0, equal_nan=True)
