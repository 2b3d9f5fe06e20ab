"""moeloom/peers.py, transformers_peer.py: transformers agrees with an artifact on its weights, or a reason is told."""

import dataclasses
import sys

import pytest
import torch

import moeloom
from moeloom import peers, transformers_peer
from moeloom.peers import NoPeer, PeerDisagrees
from moeloom.runtime.reference import dequantise
from moeloom.transformers_peer import IMPLEMENTATIONS

BLOCK = "model.layers.0.mlp"


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    """artifact(family) -> compiled with bf16 activations, weights quantised where they are not."""
    made = {}

    def compiled(family: str):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "a.moel"
            quantised = {} if family == "gpt_oss" else {"quantize_weights": "mxfp4"}
            moeloom.compile(checkpoint(family), made[family], activations="bf16", **quantised)
        return made[family]

    return compiled


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "deepseek_v3"])
def test_every_implementation_agrees(artifact, family):
    with moeloom.load(artifact(family), device="cpu") as executable:
        found, reasons = peers.find(executable, [BLOCK, "model.layers.1.mlp"])
        assert [peer.name for peer in found] == [f"transformers {name}" for name in IMPLEMENTATIONS] and not reasons
        assert all(peer.layers.keys() == {BLOCK, "model.layers.1.mlp"} for peer in found)
        errors = [peers.compare(peer, executable) for peer in found]
    assert max(errors) < 1e-2
    assert min(errors) > 0, "compared with itself"


def test_weights_are_those_of_the_checkpoint(artifact, tiny_checkpoint):
    """An oracle beside our own unpacking: the checkpoint's blocks, dequantised in its row order."""
    source = moeloom.import_torch(tiny_checkpoint).weights
    with moeloom.load(artifact("gpt_oss"), device="cpu") as executable:
        found = transformers_peer.state(executable, BLOCK, transposed=True)
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        blocks, scales = (source.get(f"{BLOCK}.{name}{part}") for part in ("_blocks", "_scales"))
        assert torch.equal(found[name], dequantise(blocks.flatten(-2), scales).bfloat16().transpose(1, 2))
    for name in ("experts.gate_up_proj_bias", "experts.down_proj_bias", "router.weight", "router.bias"):
        assert torch.equal(found[name].bfloat16(), source.get(f"{BLOCK}.{name}"))


def test_a_peer_that_disagrees_is_refused(artifact):
    with moeloom.load(artifact("gpt_oss"), device="cpu") as executable:
        peer = peers.find(executable, [BLOCK])[0][0]
        right = peer.layers[BLOCK]
        wrong = dataclasses.replace(peer, layers={BLOCK: lambda x: 1.05 * right(x)})
        with pytest.raises(PeerDisagrees, match=r"transformers eager: relative L2 at .* is 0\.0\d+, beyond 0\.01"):
            peers.compare(wrong, executable)


def test_a_peer_is_timed_on_every_layer(artifact, monkeypatch):
    monkeypatch.setattr("moeloom.measure.SHORTEST_SECONDS", 0.0)
    called = []
    with moeloom.load(artifact("gpt_oss"), device="cpu", threads=1) as executable:
        peer = dataclasses.replace(
            peers.find(executable, [BLOCK])[0][0],
            layers={
                BLOCK: lambda x: called.append((0, x.shape, torch.get_num_threads())),
                "model.layers.1.mlp": lambda x: called.append((1, x.shape, torch.get_num_threads())),
            },
        )
        before = torch.get_num_threads()
        assert peers.time(peer, executable, tokens=5, inputs=4) > 0
    assert torch.get_num_threads() == before
    assert set(called) == {(0, (5, 64), 1), (1, (5, 64), 1)}


def test_batched_mm_needs_memory_for_what_it_gathers(artifact, monkeypatch):
    with moeloom.load(artifact("gpt_oss"), device="cpu") as executable:
        found = {peer.name: peer for peer in peers.find(executable, [BLOCK])[0]}
    expert = 2 * 3 * 64 * 64
    monkeypatch.setattr(transformers_peer, "free_memory", lambda: 10 * 2 * expert / transformers_peer.MEMORY_SHARE)
    batched = found["transformers batched_mm"]
    assert batched.fits(10) and not batched.fits(11) and found["transformers eager"].fits(11)


@pytest.mark.parametrize(
    ("change", "entry", "reason"),
    [
        (lambda raw: {**raw, "model": None}, BLOCK, "compiled from no config.json"),
        (lambda raw: raw, f"{BLOCK}.experts", f"entry '{BLOCK}.experts' is no whole block"),
    ],
)
def test_reasons_for_no_peer(artifact, change, entry, reason):
    with moeloom.load(artifact("gpt_oss"), device="cpu") as executable:
        executable.manifest = dataclasses.replace(executable.manifest, raw=change(executable.manifest.raw))
        found, (why,) = peers.find(executable, [entry])
    assert not found and reason in why


def test_missing_library_and_memory(artifact, monkeypatch):
    with moeloom.load(artifact("gpt_oss"), device="cpu") as executable:
        monkeypatch.setattr(transformers_peer, "free_memory", lambda: 0)
        with pytest.raises(NoPeer, match=r"a layer in bf16 takes 0\.0 GiB"):
            transformers_peer.provide(executable, [BLOCK])
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert peers.find(executable, [BLOCK]) == ([], ["transformers is not installed"])
