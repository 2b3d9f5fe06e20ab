"""Random shapes and routings against the float64 reference: about 1000 cases, over sizes that divide nothing."""

from pathlib import Path

import pytest
import torch

from moeloom.check import TOLERANCE, experts_of, inputs_of, relative_l2
from moeloom.replay import Replay
from moeloom.runtime.executable import Executable, load

CASES = 60
"""Of each artifact."""
LARGEST = (8, 64, 300, 2000)


@pytest.fixture(scope="session")
def fuzzed(odd: Path) -> Executable:
    return load(odd, "cuda", poison=True)


def test_random_calls(fuzzed: Executable) -> None:
    name = f"{fuzzed.entries[0]}.experts"
    experts = experts_of(fuzzed, name)
    assert experts is not None
    reference = Replay(fuzzed, name)
    worst = 0.0
    for case in range(CASES):
        generator = torch.Generator().manual_seed(case)
        m = int(torch.randint(1, LARGEST[case % len(LARGEST)], (), generator=generator))
        inputs = inputs_of(fuzzed, name, m, case)
        slots = inputs["ids"].shape[1]
        few = int(torch.randint(1, experts + 1, (), generator=generator))
        ids = torch.randint(few, (m, slots), generator=generator, dtype=torch.int32)
        dropped = torch.rand(m, slots, generator=generator) < (0.0, 0.1, 0.9)[case % 3]
        inputs["ids"] = torch.where(dropped, -1, ids).cuda()
        inputs["x"][dropped.all(1).cuda()] = torch.nan  # tokens without an expert are not read
        found = fuzzed[name](**inputs)
        (expected,) = reference.run(inputs)
        assert not found[dropped.all(1).cuda()].any()
        worst = max(worst, relative_l2(found, expected))
    assert worst <= TOLERANCE
