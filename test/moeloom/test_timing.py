"""moeloom/timing.py on a CPU."""

import time

import torch

import moeloom
from moeloom import timing


def test_a_round_is_every_call_in_order(tiny_artifact):
    with moeloom.load(tiny_artifact, device="cpu", threads=1) as executable:
        called: list[int] = []
        calls = timing.Round([lambda n=n: called.append(n) for n in range(3)], executable.device)
        assert called == [0, 1, 2] and len(calls) == 3  # once when it is made
        calls.once()
        assert called == 2 * [0, 1, 2]
        assert len(calls.times(4)) == 4 and called == 6 * [0, 1, 2]


def test_times_are_of_one_call(tiny_artifact):
    with moeloom.load(tiny_artifact, device="cpu", threads=1) as executable:
        calls = timing.Round([lambda: time.sleep(0.01)] * 2, executable.device)
        assert min(calls.times(2)) >= 0.01 and timing.burst(calls, 3) >= 0.01


def test_sustained_is_the_second_half():
    class Slowing(timing.Round):
        def __init__(self):
            self.made = 0

        def times(self, count):
            self.made += 1
            time.sleep(0.01)
            return [float(self.made)] * count

    calls = Slowing()
    found = timing.sustained(calls, 0.1)
    assert 0.65 * calls.made < found <= calls.made


def test_layers_and_inputs_take_turns(tiny_artifact):
    with moeloom.load(tiny_artifact, device="cpu", threads=1) as executable:
        names = ["model.layers.0.mlp", "model.layers.1.mlp"]
        turns = timing.turns(executable, names, 3, 5, routing="uniform")
        assert [name for name, _ in turns] == [*names, *names, names[0]]
        xs = [inputs["x"] for _, inputs in turns]
        assert len({tuple(x.flatten().tolist()) for x in xs}) == 5
        call, count = timing.timed(timing.calls(executable, turns), executable.device)
        assert count == 1 and torch.equal(call(6), executable[names[1]](xs[1]))
        before = torch.get_num_threads()
        with timing.torch_threads(executable.device):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before
