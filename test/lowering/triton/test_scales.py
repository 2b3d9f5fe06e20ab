"""Templates sort_scales and quant_sort: fused equals split equals the reference on every defined byte, the rest stays
as it was. What the contract leaves undefined is 0xFF before the run (docs/contract.md, sections 3 and 4)."""

import pytest
import torch

from moeloom.runtime import reference

GUARD = 256
"""Bytes of poison before and behind every result."""
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


def masked(ids, experts):
    return ids, experts, len(ids) - 1, torch.arange(experts) % 3 == 1


SCENES = (plain, without_expert, fewer_live, one_expert, masked)


def sorted_tokens(tokens, topk, seed, block=None):
    """sorted_ids, num_valid and the block of one of the scenes; block and experts vary with the seed too."""
    experts, block = (3, 2, 1)[seed % 3], block or (16, 32, 8, 64)[seed // 2 % 4]
    ids = torch.randint(experts, (tokens, topk), generator=generator(seed), dtype=torch.int32)
    ids, experts, live, expert_map = SCENES[seed % len(SCENES)](ids, experts)
    weights = torch.zeros(ids.shape)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, weights, experts, block, live, expert_map)
    # Entries beyond num_valid are not for reading: these name token 0.
    sorted_ids[int(num_valid[0]) :] = 0
    return sorted_ids, num_valid, block


class Kernels:
    """Runs the templates on results of 0xFF bytes between guards of the same."""

    def __init__(self, interpret):
        self._interpret, self._guarded = interpret, []

    def result(self, *shape):
        memory = torch.full((GUARD + torch.Size(shape).numel() + GUARD,), 0xFF, dtype=torch.uint8)
        self._guarded.append(memory)
        return memory[GUARD:-GUARD].view(shape)

    def run(self, template, params, operands, results, m, tiles):
        self._interpret(template, params, operands, results, m, tiles)
        for memory in self._guarded:
            assert bool((memory[:GUARD] == 0xFF).all()), f"{template} writes before a result"
            assert bool((memory[-GUARD:] == 0xFF).all()), f"{template} writes behind a result"
        self._guarded.clear()

    def quant(self, x, mode):
        columns = x.shape[1]
        codes, scales = self.result(len(x), columns // 2), self.result(len(x), columns // 32)
        params = {"columns": columns, "x": "bf16", "scale_mode": mode, "factor": 1, "early": False}
        params |= {"rows": 256, "groups": 4}
        tiles = -(-len(x) // 256) * -(-columns // 128)
        self.run("quant", params, [(x, x.stride(0))], [codes, scales], len(x), tiles)
        return codes, scales

    def sort_scales(self, scales, sorted_ids, num_valid, stage, topk, layout="tiled_32x8"):
        columns = scales.shape[1]
        out = self.result(*sorted_shape(sorted_ids, columns, layout))
        params = {"columns": columns, "stage": stage, "topk": topk, "layout": layout}
        operands = [(scales, scales.stride(0)), sorted_ids, num_valid]
        self.run("sort_scales", params, operands, [out], len(scales), blocks(sorted_ids, num_valid))
        return out

    def quant_sort(
        self,
        x,
        sorted_ids,
        num_valid,
        block,
        stage,
        topk,
        layout="tiled_32x8",
        mode="even",
        rows=64,
        slots=0,
        groups=8,
        early=False,
    ):
        codes, out = (
            self.result(len(x), x.shape[1] // 2),
            self.result(*sorted_shape(sorted_ids, x.shape[1] // 32, layout)),
        )
        params = {"columns": x.shape[1], "x": {torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]}
        params |= {"scale_mode": mode, "stage": stage, "topk": topk, "block": block, "layout": layout}
        slots = slots or 1 << (topk - 1).bit_length()
        params |= {"rows": rows, "slots": slots, "groups": groups, "early": early}
        tokens = len(x) // (1 if stage == 1 else topk)
        shares = -(-topk // slots) if stage == 1 else 1
        tiles = -(-len(x) // rows) * shares * -(-out.shape[1] // groups)
        operands = [(x, x.stride(0)), slot_rows(sorted_ids, num_valid, tokens, topk), num_valid]
        self.run("quant_sort", params, operands, [codes, out], tokens, tiles)
        return codes, out


@pytest.fixture
def kernels(interpret):
    return Kernels(interpret)


def slot_rows(sorted_ids, num_valid, tokens, topk):
    """As the token sort writes them, rows before padding marked as the last of an expert."""
    rows = reference.source_rows(sorted_ids, num_valid, 2, topk)
    places = torch.arange(len(rows), dtype=torch.int32)
    is_last = torch.cat([rows[1:] < 0, torch.tensor([True])]) if len(rows) else places > 0
    out = torch.full((tokens * topk,), -1, dtype=torch.int32)
    out[rows[rows >= 0]] = (places + is_last * 2**30)[rows >= 0].int()
    return out


def blocks(sorted_ids, num_valid):
    """Blocks of 32 sorted rows to launch: those in use and one beyond, for the interpreter is slow."""
    return min(-(-len(sorted_ids) // 32), -(-int(num_valid[0]) // 32) + 1)


def sorted_shape(sorted_ids, columns, layout):
    """Rows up to 32; columns up to 8 when tiled."""
    return -(-len(sorted_ids) // 32) * 32, -(-columns // 8) * 8 if layout == "tiled_32x8" else columns


def same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk):
    """Defined bytes agree, and undefined ones of `found` are untouched."""
    payload = reference.defined_payload(sorted_ids, num_valid, stage, topk, len(want[0]))
    scales = reference.defined_scales(num_valid, found[1].shape)
    assert torch.equal(found[0][payload], want[0][payload])
    assert bool((found[0][~payload] == 0xFF).all())
    assert torch.equal(found[1], torch.where(scales, want[1], 0xFF))


X = torch.randn(64 * 4, 160, generator=generator(0)).bfloat16()


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("topk", [1, 2, 4])
def test_fused_equals_split_for_every_decode_batch(kernels, topk, stage):
    """M = 1..64; the scene, the block and the width change with M."""
    quantised = {columns: kernels.quant(X[:, :columns], "even") for columns in (32, 96, 160)}
    for tokens in range(1, 65):
        sorted_ids, num_valid, block = sorted_tokens(tokens, topk, tokens + topk)
        columns, rows = (32, 96, 160)[tokens % 3], tokens * (1 if stage == 1 else topk)
        codes, scales = (result[:rows] for result in quantised[columns])
        want = codes, kernels.sort_scales(scales, sorted_ids, num_valid, stage, topk)
        found = kernels.quant_sort(X[:rows, :columns], sorted_ids, num_valid, block, stage, topk)
        same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("columns", "topk", "mode"), [(32, 1, "even"), (160, 3, "rceil"), (416, 9, "floor")])
def test_both_equal_the_reference(kernels, columns, topk, mode, layout, stage):
    for seed in range(len(SCENES)):
        tokens = 5 + 3 * seed
        sorted_ids, num_valid, block = sorted_tokens(tokens, topk, seed)
        x = torch.randn(tokens * (1 if stage == 1 else topk), columns, generator=generator(seed)).bfloat16()
        codes, scales = reference.quantise(x, mode)
        want = codes, reference.sort_scales(scales, sorted_ids, num_valid, stage, topk, layout)
        early = seed % 2 == 1
        found = kernels.quant_sort(x, sorted_ids, num_valid, block, stage, topk, layout, mode, early=early)
        same_defined_bytes(found, want, sorted_ids, num_valid, stage, topk)
        assert torch.equal(kernels.sort_scales(scales, sorted_ids, num_valid, stage, topk, layout), want[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("topk", [2, 6])
@pytest.mark.parametrize(("rows", "slots", "groups"), [(1, 1, 32), (1, 2, 8), (4, 1, 2), (8, 2, 4), (2, 4, 16)])
def test_any_tile_gives_the_same_bytes(kernels, rows, slots, groups, topk, layout):
    sorted_ids, num_valid, block = sorted_tokens(7, topk, 5, block=16)
    assert topk > 2 or num_valid[0] % 32 == 16, (
        "rows of the last tile of 32 are beyond num_valid, and zeros all the same"
    )
    x = X[:7, :96]
    codes, scales = reference.quantise(x, "even")
    want = codes, reference.sort_scales(scales, sorted_ids, num_valid, 1, topk, layout)
    found = kernels.quant_sort(x, sorted_ids, num_valid, block, 1, topk, layout, rows=rows, slots=slots, groups=groups)
    same_defined_bytes(found, want, sorted_ids, num_valid, 1, topk)


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("slots", [1, 2])
def test_the_last_tile_of_32_rows_is_padded_where_the_first_tokens_have_no_expert(kernels, slots, block):
    ids = torch.tensor([[-1, -1], [-1, -1], [0, 1], [2, 0]], dtype=torch.int32)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.zeros(4, 2), 3, block)
    assert int(num_valid[0]) == 3 * block
    codes, scales = reference.quantise(X[:4, :96], "even")
    want = codes, reference.sort_scales(scales, sorted_ids, num_valid, 1, 2)
    found = kernels.quant_sort(X[:4, :96], sorted_ids, num_valid, block, 1, 2, rows=1, slots=slots, groups=2)
    same_defined_bytes(found, want, sorted_ids, num_valid, 1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tail_of_columns_is_sorted(kernels, layout):
    """C need be no multiple of 4 or 8; 200 columns take two steps."""
    sorted_ids, num_valid, _ = sorted_tokens(29, 4, 0)
    for columns in (*range(1, 17), 90, 128, 200):
        scales = torch.randint(255, (29, columns), generator=generator(columns), dtype=torch.uint8)
        want = reference.sort_scales(scales, sorted_ids, num_valid, 1, 4, layout)
        assert torch.equal(kernels.sort_scales(scales, sorted_ids, num_valid, 1, 4, layout), want)


def test_scales_may_be_strided(kernels):
    sorted_ids, num_valid, _ = sorted_tokens(29, 4, 0)
    wide = torch.randint(255, (29, 101), generator=generator(1), dtype=torch.uint8)
    found = kernels.sort_scales(wide[:, 3:93], sorted_ids, num_valid, 1, 4)
    assert torch.equal(found, reference.sort_scales(wide[:, 3:93].contiguous(), sorted_ids, num_valid, 1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_x_may_be_strided_and_unaligned(kernels, dtype):
    wide = torch.randn(23, 99, generator=generator(3)).to(dtype)
    sorted_ids, num_valid, block = sorted_tokens(23, 4, 3)
    codes, scales = reference.quantise(wide[:, 1:97], "even")
    want = codes, reference.sort_scales(scales, sorted_ids, num_valid, 1, 4)
    found = kernels.quant_sort(wide[:, 1:97], sorted_ids, num_valid, block, 1, 4)
    same_defined_bytes(found, want, sorted_ids, num_valid, 1, 4)


def test_offsets_pass_2_to_the_31(kernels):
    """Token 8 begins 2^31 elements behind token 0; only pages that hold a row become real."""
    x = torch.empty(8 * 2**28 + 32, dtype=torch.bfloat16).as_strided((9, 32), (2**28, 1))
    x.copy_(X[:9, :32])
    sorted_ids, num_valid, block = sorted_tokens(9, 2, 0)
    codes, scales = reference.quantise(x, "even")
    want = codes, reference.sort_scales(scales, sorted_ids, num_valid, 1, 2)
    same_defined_bytes(kernels.quant_sort(x, sorted_ids, num_valid, block, 1, 2), want, sorted_ids, num_valid, 1, 2)


def test_groups_with_a_nan_and_zero_groups_keep_their_bytes(kernels):
    """255 is a scale of a token's group, and never one of padding."""
    x = X[:9, :96].clone()
    x[2, 40], x[4], x[5, 3], x[6, :32] = torch.nan, 0, torch.inf, -0.0
    sorted_ids, num_valid, block = sorted_tokens(9, 2, 0)
    codes, scales = reference.quantise(x, "ceil")
    assert {0, 253, 255} <= set(scales.flatten().tolist())
    want = codes, reference.sort_scales(scales, sorted_ids, num_valid, 1, 2)
    same_defined_bytes(
        kernels.quant_sort(x, sorted_ids, num_valid, block, 1, 2, mode="ceil"), want, sorted_ids, num_valid, 1, 2
    )


def test_slots_from_128_are_unsigned(kernels):
    """k = 200: half of the entries are negative."""
    x = torch.randn(400, 32, generator=generator(4)).bfloat16()
    sorted_ids, num_valid, block = sorted_tokens(2, 200, 0)
    assert bool((sorted_ids[: int(num_valid[0])] < 0).any())
    codes, scales = reference.quantise(x, "even")
    want = codes, reference.sort_scales(scales, sorted_ids, num_valid, 2, 200)
    same_defined_bytes(kernels.quant_sort(x, sorted_ids, num_valid, block, 2, 200), want, sorted_ids, num_valid, 2, 200)
    assert torch.equal(kernels.sort_scales(scales, sorted_ids, num_valid, 2, 200), want[1])


def test_a_padding_row_is_known_by_its_slot_alone(kernels):
    """With 3 of 8 tokens live, the token field of padding names the legal row 3."""
    ids = torch.zeros(8, 2, dtype=torch.int32)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.zeros(8, 2), 1, 32, 3)
    codes, scales = kernels.quant_sort(X[:8, :96], sorted_ids, num_valid, 32, 1, 2)
    assert bool((codes[3:] == 0xFF).all())
    rows = scales[:32].view(4, 16, 2, 2).permute(3, 1, 2, 0).reshape(32, 8)
    assert bool((rows[:6, :3] > 0).all()) and not rows[6:].any() and not rows[:, 3:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rows_write_nothing(kernels, layout):
    sorted_ids, num_valid = torch.zeros(64, dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    scales = torch.zeros(3, 3, dtype=torch.uint8)
    results = [kernels.sort_scales(scales, sorted_ids, num_valid, 1, 2, layout)]
    results += kernels.quant_sort(X[:3, :96], sorted_ids, num_valid, 16, 1, 2, layout)
    assert all(bool((result == 0xFF).all()) for result in results)
