"""Templates sort_scales and quant_sort: fused equals split equals the reference on every defined byte, the rest stays
as it was. What the contract leaves undefined is 0xFF before the run (docs/contract.md, sections 3 and 4)."""

import itertools

import pytest
import torch

from moeloom.runtime import reference

WIDTHS = (32, 96, 384, 640, 2880)
TOPKS = (1, 2, 4, 8, 9)
MODES = ("even", *reference.SCALE_MODES)
LAYOUTS = ("tiled_32x8", "row_major")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plain(ids, experts):
    return ids, experts, None, None


def without_expert(ids, experts):
    ids[torch.rand(ids.shape, generator=generator(1)) < 0.3] = -1
    return ids, experts, None, None


def fewer_live(ids, experts):
    return ids, experts, len(ids) * 2 // 3, None


def one_expert(ids, experts):
    return ids.fill_(experts - 1), experts, None, None


def few_experts(ids, experts):
    return ids % 3, 3, None, None


def masked(ids, experts):
    return ids, experts, len(ids) - 1, torch.arange(experts) % 3 == 1


def mapped(ids, experts):
    return ids, experts, None, torch.where(torch.arange(experts) % 2 == 0, torch.arange(experts) // 2, -1).int()


SCENES = (plain, without_expert, fewer_live, one_expert, few_experts, masked, mapped)


def sorted_tokens(tokens, topk, seed):
    """sorted_ids and num_valid of one of the scenes; block and experts vary with the seed too."""
    experts, block = (8, 32, 5)[seed % 3], (32, 16, 64, 128)[seed % 4]
    ids = torch.randint(experts, (tokens, topk), generator=generator(seed), dtype=torch.int32)
    ids, experts, live, expert_map = SCENES[seed % len(SCENES)](ids, experts)
    weights = torch.zeros(ids.shape)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, weights, experts, block, live, expert_map)
    return sorted_ids, num_valid


def same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk):
    """Defined bytes agree, and undefined ones of `found` are untouched."""
    payload = reference.defined_payload(sorted_ids, num_valid, stage, topk, len(want[0]))
    scales = reference.defined_scales(num_valid, found[1].shape)
    assert torch.equal(found[0][payload], want[0][payload])
    assert bool((found[0][~payload] == 0xFF).all())
    assert torch.equal(found[1], torch.where(scales, want[1], 0xFF))


def split(kernels, x, sorted_ids, num_valid, stage, topk, layout="tiled_32x8", mode="even"):
    codes, scales = kernels.quant(x, mode)
    return codes, kernels.sort_scales(scales, sorted_ids, num_valid, stage, topk, layout)


def sort_params(columns, stage, topk, layout):
    return {"columns": columns, "stage": stage, "topk": topk, "layout": layout}


def all_kernels(topk, columns, layout="tiled_32x8", mode="even"):
    """What the tests of one width need, to be compiled in one go."""
    quant = {"x": "bf16", "scale_mode": mode}
    for stage in (1, 2):
        yield "sort_scales", sort_params(columns // 32, stage, topk, layout)
        yield "quant_sort", sort_params(columns, stage, topk, layout) | quant
    yield "quant", {"columns": columns, **quant}


X = torch.randn(64 * max(TOPKS), max(WIDTHS), generator=generator(0)).bfloat16()


@pytest.mark.parametrize("topk", TOPKS)
def test_fused_equals_split_for_every_decode_batch(kernels, topk):
    """M = 1..64, each width, both stages; the scene changes with M and the width."""
    kernels.compile(*itertools.chain.from_iterable(all_kernels(topk, columns) for columns in WIDTHS))
    for tokens in range(1, 65):
        for number, columns in enumerate(WIDTHS):
            sorted_ids, num_valid = sorted_tokens(tokens, topk, tokens + 5 * number + topk)
            for stage in (1, 2):
                x = X[: tokens * (1 if stage == 1 else topk), :columns]
                want = split(kernels, x, sorted_ids, num_valid, stage, topk)
                found = kernels.quant_sort(x, sorted_ids, num_valid, stage, topk)
                same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk)


@pytest.mark.parametrize("columns", [32, 96])
@pytest.mark.parametrize("topk", TOPKS)
def test_fused_equals_split_around_the_switches(kernels, topk, columns):
    """Stage 1 at 2048/k tokens, stage 2 at 8192 rows."""
    kernels.compile(*all_kernels(topk, columns))
    for stage, rows in ((1, 2048 // topk), (2, 8192 // topk)):
        for tokens in (rows - 1, rows, rows + 1):
            sorted_ids, num_valid = sorted_tokens(tokens, topk, tokens)
            x = torch.randn(tokens * (1 if stage == 1 else topk), columns, generator=generator(1)).bfloat16()
            want = split(kernels, x, sorted_ids, num_valid, stage, topk)
            found = kernels.quant_sort(x, sorted_ids, num_valid, stage, topk)
            same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("columns", "topk", "mode"), list(zip(WIDTHS, TOPKS, MODES, strict=True)))
def test_both_equal_the_reference(kernels, columns, topk, mode, stage):
    kernels.compile(*itertools.chain.from_iterable(all_kernels(topk, columns, layout, mode) for layout in LAYOUTS))
    for seed, layout in itertools.product(range(len(SCENES)), LAYOUTS):
        tokens = 11 + 3 * seed
        sorted_ids, num_valid = sorted_tokens(tokens, topk, seed)
        x = X[: tokens * (1 if stage == 1 else topk), :columns]
        codes, scales = reference.quantise(x, mode)
        want = codes, reference.sort_scales(scales, sorted_ids, num_valid, stage, topk, layout)
        found = kernels.quant_sort(x, sorted_ids, num_valid, stage, topk, layout, mode)
        same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk)
        same_scales = kernels.sort_scales(scales, sorted_ids, num_valid, stage, topk, layout)
        assert torch.equal(same_scales, found[1])


def test_every_tail_of_columns_is_sorted(kernels):
    """C need be no multiple of 4 or 8: 1 to 8 columns and 9 to 16."""
    sorted_ids, num_valid = sorted_tokens(29, 4, 2)
    cases = list(itertools.product(range(1, 17), LAYOUTS))
    kernels.compile(*(("sort_scales", sort_params(columns, 1, 4, layout)) for columns, layout in cases))
    for columns, layout in cases:
        scales = torch.randint(255, (29, columns), generator=generator(columns), dtype=torch.uint8)
        want = reference.sort_scales(scales, sorted_ids, num_valid, 1, 4, layout)
        assert torch.equal(kernels.sort_scales(scales, sorted_ids, num_valid, 1, 4, layout), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_may_be_strided_and_unaligned(kernels, dtype):
    wide = torch.randn(23, 99, generator=generator(3)).to(dtype)
    sorted_ids, num_valid = sorted_tokens(23, 4, 3)
    found = kernels.quant_sort(wide[:, 1:97], sorted_ids, num_valid, 1, 4)
    want = split(kernels, wide[:, 1:97].contiguous(), sorted_ids, num_valid, 1, 4)
    same_defined_bytes(found, want, sorted_ids, num_valid, 1, 4)


def test_a_padding_row_is_known_by_its_slot_alone(kernels):
    """With 3 of 8 tokens live, the token field of padding names the legal row 3."""
    ids = torch.zeros(8, 2, dtype=torch.int32)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.zeros(8, 2), 1, 32, 3)
    found = kernels.quant_sort(X[:8, :96], sorted_ids, num_valid, 1, 2)
    assert bool((found[0][3:] == 0xFF).all())
    rows = found[1][:32].view(4, 16, 2, 2).permute(3, 1, 2, 0).reshape(32, 8)
    assert bool((rows[:6, :3] > 0).all()) and not rows[6:].any() and not rows[:, 3:].any()
