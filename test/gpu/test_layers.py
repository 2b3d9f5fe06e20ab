"""Rounds of calls and other libraries' layers on a GPU: PYTHONPATH names the libraries' folder, if any."""

import pytest
import torch

from moeloom import peers, timing
from moeloom.check import inputs_of
from moeloom.runtime.executable import Executable


def test_a_round_replays_what_was_called(gpu: Executable, layer: str) -> None:
    turns = timing.turns(gpu, [layer], 5, 3)
    wanted = [gpu[layer](**inputs) for _, inputs in turns]
    outputs = [torch.full_like(tensor, torch.nan) for tensor in wanted]
    calls = [lambda i=i, o=o: gpu[layer](**i, out=o) for (_, i), o in zip(turns, outputs, strict=True)]
    repeated = timing.Round(calls, gpu.device)
    for tensor in outputs:
        tensor.fill_(torch.nan)
    assert all(seconds > 0 for seconds in repeated.times(2))
    assert all(torch.equal(one, other) for one, other in zip(outputs, wanted, strict=True))


@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_peers_agree(gpu: Executable, layer: str, tokens: int) -> None:
    found, reasons = peers.find(gpu, [layer])
    limit = peers.TOLERANCE[gpu.manifest.raw["options"]["activations"]]
    x = inputs_of(gpu, layer, tokens, 0)["x"]
    errors = {peer.name: peers.distance(peer, gpu, layer, x) for peer in found}
    assert all(error <= limit for error in errors.values()), errors
    assert found or reasons
