"""moeloom/routing.py: every distribution is what it says, and x steers a real router there."""

import pytest
import torch

import moeloom
from moeloom import routing
from moeloom.replay import Replay
from moeloom.runtime.errors import LaunchError

BLOCK = "model.layers.0.mlp"
EXPERTS, TOPK, TOKENS = 16, 4, 20000


def chosen(distribution: str, topk: int = TOPK, layer: str = BLOCK, seed: int = 0) -> torch.Tensor:
    return routing.logits(distribution, TOKENS, EXPERTS, topk, layer, seed).topk(topk).indices


def chi_square(counts: torch.Tensor, weights: torch.Tensor) -> float:
    wanted = weights / weights.sum() * counts.sum()
    return float(((counts - wanted) ** 2 / wanted).sum())


def test_uniform_draws_every_expert_as_often():
    counts = chosen("uniform").flatten().bincount(minlength=EXPERTS).double()
    assert chi_square(counts, torch.ones(EXPERTS)) < 40  # 15 degrees of freedom


def test_zipf_draws_the_expert_of_rank_r_in_proportion_to_1_r():
    best = chosen("zipf")[:, 0].bincount(minlength=EXPERTS).double()
    weights = 1 / torch.arange(1, EXPERTS + 1)
    order = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(routing.zlib.crc32(BLOCK.encode())))
    assert chi_square(best, weights[order]) < 40 < chi_square(best, weights)
    assert chi_square(best, torch.ones(EXPERTS)) > 1000


def test_one_set_is_one_set_and_the_layers_own():
    sets = {layer: chosen("one_set", layer=layer).sort(1).values for layer in ("a", "b")}
    assert all((found == found[0]).all() for found in sets.values())
    assert not torch.equal(sets["a"][0], sets["b"][0])
    assert chosen("one_set")[:, 0].unique().numel() == TOPK  # which of them comes first is the token's own


def test_neighbours_share_topics():
    found = torch.nn.functional.one_hot(chosen("topics"), EXPERTS).sum(1).double()
    near = (found[0::2] * found[1::2]).sum(1).mean()
    far = (found[: TOKENS // 2] * found[TOKENS // 2 :]).sum(1).mean()
    by_chance = TOPK * TOPK / EXPERTS
    assert near > 1.3 * far and far > 1.05 * by_chance  # a run has a topic; the layer has favourites


@pytest.mark.parametrize("distribution", routing.DRAWS)
def test_the_same_seed_the_same_tokens(distribution):
    one, same, other = (chosen(distribution, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    """artifact(family) -> compiled for the CPU with bf16 activations."""

    def compiled(family: str):
        path = tmp_path_factory.mktemp(family) / "a.moel"
        quantised = {} if family == "gpt_oss" else {"quantize_weights": "mxfp4"}
        moeloom.compile(checkpoint(family), path, activations="bf16", **quantised)
        return path

    return compiled


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])  # with a bias and without
def test_x_sends_tokens_where_the_distribution_says(artifact, family):
    with moeloom.load(artifact(family), device="cpu") as executable:
        router = routing.router_of(executable, BLOCK)
        experts, topk = router.weight.shape[0], router.params["topk"]
        for distribution in routing.DRAWS:
            x = routing.routed_inputs(executable, BLOCK, 64, distribution, 5)["x"]
            wanted = routing.logits(distribution, 64, experts, topk, BLOCK, 5)
            assert x.dtype == torch.bfloat16
            torch.testing.assert_close(router.logits(x).double(), wanted, rtol=0.01, atol=0.15)
            best = wanted.topk(topk + 1).values
            clear = best[:, topk - 1] - best[:, topk] > 0.5
            found, meant = (logits.topk(topk).indices.sort(1).values for logits in (router.logits(x).float(), wanted))
            assert clear.any() and torch.equal(found[clear], meant[clear])
        inputs = routing.routed_inputs(executable, BLOCK, 60, "one_set", 0)
        counts = Replay(executable, BLOCK).tokens_by_expert(inputs)
        assert counts.sum() == 60 * topk and (counts > 0).sum() == topk and counts.max() == 60


def test_routers_that_cannot_be_steered(artifact):
    with moeloom.load(artifact("deepseek_v3"), device="cpu") as executable:
        with pytest.raises(LaunchError, match="has no router that is a product of x"):
            routing.routed_inputs(executable, BLOCK, 4, "zipf", 0)
        with pytest.raises(LaunchError, match="has no router"):
            routing.routed_inputs(executable, f"{BLOCK}.experts", 4, "zipf", 0)
        assert "x" in routing.routed_inputs(executable, BLOCK, 4, "natural", 0)
    router = routing.Router(torch.randn(8, 4), None, {})
    with pytest.raises(LaunchError, match="8 experts and 4 columns"):
        routing.steer(torch.randn(2, 4), router, torch.randn(2, 8))
    with pytest.raises(LaunchError, match="depend on one another"):
        routing.steer(torch.randn(2, 4), routing.Router(torch.ones(2, 4), None, {}), torch.randn(2, 2))
