"""Template sort_quant, interpreted: the lists of a token sort and the bytes of its stage 1 quantiser, against
runtime/reference.py. What the contract leaves undefined is 0xFF before the run and stays so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moeloom.kernel_reference import slot_rows
from moeloom.runtime import reference

COLUMNS = 160
PARAMS: dict[str, Any] = {"columns": COLUMNS, "x": "bf16", "scale_mode": "even", "layout": "tiled_32x8", "stage": 1}
PARAMS |= {"groups": 8, "rows": 8}


def poison(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((size,), 0xFF, dtype=torch.uint8).view(dtype).view(shape)


def same_bytes(
    interpret: Callable,
    ids: Tensor,
    experts: int,
    block: int,
    x: Tensor,
    num_tokens: int | None = None,
    expert_map: Tensor | None = None,
    **params: Any,
) -> None:
    """The kernel gives what it must, and writes nothing else."""
    (tokens, topk), weights = ids.shape, torch.rand(ids.shape)
    kind = {None: "none", torch.bool: "mask", torch.int32: "index"}[getattr(expert_map, "dtype", None)]
    given = PARAMS | {"experts": experts, "topk": topk, "block": block, "map": kind, "has_slot_rows": tokens % 2 == 0}
    given |= {"has_num_tokens": num_tokens is not None, "columns": x.shape[1], **params}
    want = reference.sort_tokens(ids, weights, experts, block, num_tokens, expert_map)
    codes, scales = reference.quantise(x, given["scale_mode"])
    scales = reference.sort_scales(scales, want[0], want[3], 1, topk, given["layout"])

    found = [poison(*lists.shape, dtype=lists.dtype) for lists in want]
    found += [torch.full(ids.shape, 7, dtype=torch.int32)] if given["has_slot_rows"] else []
    found += [poison(*codes.shape), poison(*scales.shape)]
    optional = [] if num_tokens is None else [torch.tensor([num_tokens], dtype=torch.int32)]
    optional += [] if expert_map is None else [expert_map.view(torch.uint8) if kind == "mask" else expert_map]
    tiles = experts + tokens * -(-scales.shape[1] // given["groups"])
    operands = [ids, weights, *optional, (x, x.stride(0))]
    interpret("sort_quant", given, operands, found, tokens, tiles)

    used = int(want[3][0])
    assert torch.equal(found[3], want[3])
    for result, wanted, count in zip(found, want, (used, used, used // block), strict=False):
        assert torch.equal(result[:count], wanted[:count])
        assert bool((result.view(torch.int32)[count:] == -1).all())
    if given["has_slot_rows"]:
        assert torch.equal(found[4], slot_rows(want, block, ids.shape))
    payload = reference.defined_payload(want[0], want[3], 1, topk, tokens)
    assert torch.equal(found[-2][payload], codes[payload])
    assert bool((found[-2][~payload] == 0xFF).all())
    assert torch.equal(found[-1], torch.where(reference.defined_scales(want[3], scales.shape), scales, 0xFF))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def routed(tokens: int, topk: int, experts: int) -> Tensor:
    return torch.randint(experts, (tokens, topk), dtype=torch.int32)


def rows(tokens: int, columns: int = COLUMNS) -> Tensor:
    return torch.randn(tokens, columns).bfloat16()


@pytest.mark.parametrize(
    ("tokens", "topk", "experts", "block"),
    [(1, 1, 1, 8), (1, 4, 3, 16), (2, 3, 7, 8), (5, 1, 4, 32), (7, 8, 5, 8), (9, 5, 33, 8), (19, 2, 3, 80)],
)
def test_gives_the_bytes_of_sort_and_quantiser(interpret, tokens, topk, experts, block):
    """Two slots of a token may name one expert; k may be more than E; blocks are filled up, and the last 32 rows."""
    same_bytes(interpret, routed(tokens, topk, experts), experts, block, rows(tokens))


def test_takes_one_expert_for_all(interpret):
    same_bytes(interpret, torch.full((11, 2), 2, dtype=torch.int32), 4, 8, rows(11))


@pytest.mark.parametrize("live", [0, 1, 6, None])
def test_leaves_out_what_has_no_expert(interpret, live):
    """Ids of -1, tokens that are not live, and a token with no id at all: its payload is not written."""
    ids = routed(9, 3, 4)
    ids[torch.rand(ids.shape) < 0.3] = -1
    ids[4] = -1
    same_bytes(interpret, ids, 4, 8, rows(9), num_tokens=live)


@pytest.mark.parametrize(
    "expert_map",
    [torch.arange(7) % 3 == 1, torch.tensor([2, -1, 0, -1, 1, -1, 3], dtype=torch.int32)],
    ids=["mask", "index"],
)
def test_sorts_by_local_experts(interpret, expert_map):
    same_bytes(interpret, routed(6, 3, 7), 7, 8, rows(6), 5, expert_map)


@pytest.mark.parametrize(
    "params",
    [{"layout": "row_major"}, {"scale_mode": "ceil", "groups": 2}, {"rows": 1}],
    ids=lambda params: "-".join(map(str, params.values())),
)
def test_takes_other_layouts_modes_and_tiles(interpret, params):
    x = rows(4)
    x[1, :32], x[2, 40] = 0, torch.inf
    same_bytes(interpret, routed(4, 3, 5), 5, 8, x, **params)


def test_reads_rows_that_lie_apart(interpret):
    same_bytes(interpret, routed(3, 2, 4), 4, 8, rows(3, 4 * COLUMNS)[:, 1 : 1 + COLUMNS])
