"""What the peers for GPUs decide without one: which blocks they can stand beside, and why not."""

import sys

import pytest
import torch

import moeloom
from moeloom import marlin_peer, peers, triton_kernels_peer
from moeloom.expert_weights import Product
from moeloom.marlin_peer import block_rows, sorted_rows
from moeloom.peers import NoPeer, linear_softmax_router, without_close_experts
from moeloom.runtime.reference import activate

BLOCK = "model.layers.0.mlp"


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe", "mixtral", "deepseek_v3"])
def test_blocks_that_they_can_be(checkpoint, tmp_path, family):
    quantised = {} if family == "gpt_oss" else {"quantize_weights": "mxfp4"}
    moeloom.compile(checkpoint(family), tmp_path / "a.moel", activations="bf16", **quantised)
    with moeloom.load(tmp_path / "a.moel", device="cpu") as executable:
        if family == "deepseek_v3":
            with pytest.raises(NoPeer, match=f"Any: entry '{BLOCK}' has no router that is a product of x"):
                linear_softmax_router(executable, BLOCK, "Any")
            return
        assert linear_softmax_router(executable, BLOCK, "Any").is_softmax
        with pytest.raises(NoPeer, match=r"experts' has no router"):
            linear_softmax_router(executable, f"{BLOCK}.experts", "Any")


def test_close_experts_are_left_out(tiny_artifact):
    with moeloom.load(tiny_artifact, device="cpu") as executable:
        router = linear_softmax_router(executable, BLOCK, "Any")
        x = torch.randn(200, 64).bfloat16()
        best = router.logits(x).float().topk(3).values
        kept = without_close_experts(router, x)
        assert 100 < kept.sum() < 200
        assert (best[kept, 1] > best[kept, 2]).all() and ((best[~kept, 1] - best[~kept, 2]) < 0.1).all()


def test_libraries_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_kernels", None)
    with pytest.raises(NoPeer, match="triton_kernels cannot be imported: ModuleNotFoundError"):
        triton_kernels_peer.imported()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(NoPeer, match=r"no _moe_C\.abi3\.so of vLLM"):
        marlin_peer.loaded()


def test_a_library_that_cannot_be_loaded(monkeypatch, tmp_path):
    (tmp_path / marlin_peer.LIBRARY).write_text("no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NoPeer, match="Marlin cannot be loaded: OSError"):
        marlin_peer.loaded()


def test_silu_is_swiglu_with_one_less():
    gate, up = torch.randn(2, 5, 8, dtype=torch.float64)
    bias = triton_kernels_peer.up_minus_one(Product(torch.zeros(1, 16, 16), torch.zeros(0), None))
    gate_bias, up_bias = bias[0, 0::2].double(), bias[0, 1::2].double()
    found = activate(gate + gate_bias, up + up_bias, "swiglu", 1.0, triton_kernels_peer.NO_LIMIT)
    torch.testing.assert_close(found, activate(gate, up, "silu", 1.0, 0.0))


def test_sort_blocks_are_vllms():
    assert [block_rows(m * 4 / 128) for m in (1, 128, 256, 1024, 4096)] == [8, 8, 16, 48, 64]
    assert sorted_rows(4, 128, 8) == 32 and sorted_rows(512, 128, 8) == 512 + 128 * 7


def test_providers_by_device():
    assert {provide.__module__ for provide in peers.providers("cuda")} == {
        "moeloom.triton_kernels_peer",
        "moeloom.marlin_peer",
    }
