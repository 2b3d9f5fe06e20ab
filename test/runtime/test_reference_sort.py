"""runtime/reference.py, sections 2 and 3 of the contract, against loops over single tokens, slots and bytes."""

import pytest
import torch
from transformers import DeepseekV3Config, GptOssConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from moeloom.runtime import reference


def random_ids(tokens: int, topk: int, experts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts, (tokens, topk), generator=generator, dtype=torch.int32)
    return ids, torch.rand(tokens, topk, generator=generator)


CASES = [  # tokens, topk, experts, block, live, map
    (1, 4, 8, 32, None, None),
    (17, 4, 8, 16, None, None),
    (40, 2, 3, 32, 11, None),
    (9, 9, 4, 64, 0, None),
    (5, 200, 2, 16, 4, None),
    (33, 4, 6, 16, 30, torch.tensor([True, False, True, True, False, True])),
    (33, 4, 6, 16, None, torch.tensor([2, -1, 0, 1, -1, 3], dtype=torch.int32)),
    (0, 4, 8, 32, None, None),
    (12, 1, 1, 128, None, None),
    (6, 2, 3, 16, 9, None),
    (6, 2, 3, 16, -1, None),
]


@pytest.mark.parametrize("case", CASES)
def test_sort_tokens(case: tuple) -> None:
    tokens, topk, experts, block, live, expert_map = case
    ids, weights = random_ids(tokens, topk, experts)
    sorted_ids, sorted_weights, expert_ids, num_valid = reference.sort_tokens(
        ids, weights, experts, block, live, expert_map
    )
    capacity = tokens * topk + experts * block - min(topk, experts)
    count = tokens if live is None else min(max(live, 0), tokens)
    assert len(sorted_ids) == len(sorted_weights) == capacity and len(expert_ids) == -(-capacity // block)

    groups: dict[int, list] = {}
    for token in range(count):
        for slot in range(topk):
            expert = int(ids[token, slot])
            if expert < 0:
                continue
            if expert_map is not None and expert_map.dtype == torch.bool:
                expert = int(expert_map[:expert].sum()) if expert_map[expert] else -1
            elif expert_map is not None:
                expert = int(expert_map[expert])
            if expert >= 0:
                groups.setdefault(expert, []).append((slot << 24 | token, float(weights[token, slot])))
    rows, blocks = [], []
    for expert in sorted(groups):
        padding = -len(groups[expert]) % block
        rows += groups[expert] + [(topk << 24 | count, 0.0)] * padding
        blocks += [expert] * ((len(groups[expert]) + padding) // block)
    assert num_valid.tolist() == [len(rows), count]
    assert (sorted_ids[: len(rows)].long() & 0xFFFFFFFF).tolist() == [row[0] for row in rows]
    torch.testing.assert_close(sorted_weights[: len(rows)], torch.tensor([row[1] for row in rows]), rtol=0, atol=0)
    assert expert_ids[: len(blocks)].tolist() == blocks


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("columns", [1, 8, 20, 90])
@pytest.mark.parametrize("live", [None, 5])
def test_sort_scales(columns: int, stage: int, live: int | None) -> None:
    tokens, topk, experts, block = 11, 3, 5, 16
    ids, weights = random_ids(tokens, topk, experts, columns)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, weights, experts, block, live)
    source = torch.randint(0, 255, (tokens * (topk if stage == 2 else 1), columns), dtype=torch.uint8)
    tiled = reference.sort_scales(source, sorted_ids, num_valid, stage, topk)
    plain = reference.sort_scales(source, sorted_ids, num_valid, stage, topk, "row_major")
    padded = -(-columns // 8) * 8
    height = -(-len(sorted_ids) // 32) * 32
    assert tiled.shape == (height, padded) and plain.shape == (height, columns)
    used = -(-int(num_valid[0]) // 32) * 32
    flat = tiled.flatten()
    for r in range(used):
        slot, token = int(sorted_ids[r]) >> 24, int(sorted_ids[r]) & 0xFFFFFF
        named = r < int(num_valid[0]) and slot != topk
        for c in range(padded):
            at = r // 32 * 32 * padded + c // 8 * 256 + c % 4 * 64 + r % 16 * 4 + c % 8 // 4 * 2 + r % 32 // 16
            row = token if stage == 1 else token * topk + slot
            want = int(source[row, c]) if named and c < columns else 0
            assert int(flat[at]) == want and (c >= columns or int(plain[r, c]) == want)
    mask = reference.defined_scales(num_valid, (height, padded))
    assert int(mask.sum()) == used * padded and bool((tiled[~mask] == 0xFF).all())


def test_defined_payload() -> None:
    ids = torch.tensor([[0, 1], [-1, 0], [1, 1]], dtype=torch.int32)
    sorted_ids, _, _, num_valid = reference.sort_tokens(ids, torch.ones(3, 2), 2, 16, num_tokens=2)
    assert reference.defined_payload(sorted_ids, num_valid, 1, 2, 3).tolist() == [True, True, False]
    assert reference.defined_payload(sorted_ids, num_valid, 2, 2, 6).tolist() == [True, True, False, True, False, False]


def routed(router: torch.nn.Module, hidden: int, experts: int) -> tuple:
    """Logits, weights and ids of a transformers router with random parameters, slots by descending logit."""
    generator = torch.Generator().manual_seed(7)
    for tensor in (*router.parameters(), *router.buffers()):
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.3
    logits, weights, ids = router(torch.randn(64, hidden, generator=generator))
    return logits, weights, ids


def by_id(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The choice as a dense matrix: routers return slots in other orders."""
    return torch.zeros(len(ids), int(ids.max()) + 1).scatter_(1, ids.long(), weights.float())


def test_route_softmax_after() -> None:
    router = GptOssTopKRouter(GptOssConfig(hidden_size=32, num_local_experts=16, num_experts_per_tok=4))
    logits, weights, ids = routed(router, 32, 16)
    found_weights, found_ids = reference.route(logits, 4, "softmax_after_topk")
    assert torch.equal(found_ids, ids.int())
    torch.testing.assert_close(found_weights, weights)


@pytest.mark.parametrize("renormalise", [False, True])
def test_route_softmax_before(renormalise: bool) -> None:
    config = Qwen3MoeConfig(hidden_size=32, num_experts=16, num_experts_per_tok=4, norm_topk_prob=renormalise)
    logits, weights, ids = routed(Qwen3MoeTopKRouter(config), 32, 16)
    found_weights, found_ids = reference.route(logits, 4, "softmax_before_topk", renormalise=renormalise)
    assert torch.equal(found_ids, ids.int())
    torch.testing.assert_close(found_weights, weights)


def test_route_sigmoid_with_groups() -> None:
    config = DeepseekV3Config(hidden_size=32, n_routed_experts=16, num_local_experts=16, n_group=4, topk_group=2)
    config.num_experts_per_tok, config.norm_topk_prob, config.routed_scaling_factor = 3, True, 2.5
    router = DeepseekV3TopkRouter(config)
    logits, weights, ids = routed(router, 32, 16)
    options = {"renormalise": True, "scale": 2.5, "groups": 4, "top_groups": 2}
    found = reference.route(logits, 3, "sigmoid", correction_bias=router.e_score_correction_bias, **options)
    torch.testing.assert_close(by_id(*found), by_id(weights, ids))


def test_route_ties_go_to_the_lowest_expert() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 1.0], [0.0, -0.0, 0.0, 0.0, 0.0]]).bfloat16()
    for score in ("softmax_after_topk", "softmax_before_topk", "sigmoid"):
        assert reference.route(logits, 4, score)[1].tolist() == [[1, 2, 3, 0], [0, 1, 2, 3]]


def test_route_beyond_the_live_tokens() -> None:
    weights, ids = reference.route(torch.randn(4, 8), 2, num_tokens=3)
    assert ids[3].tolist() == [-1, -1] and weights[3].tolist() == [0, 0] and bool((ids[:3] >= 0).all())
