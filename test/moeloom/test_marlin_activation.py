"""moeloom/marlin_activation.py, interpreted, against the reference."""

import pytest
import torch

from moeloom.marlin_activation import activate
from moeloom.runtime import reference


@pytest.mark.parametrize("activation", ["swiglu", "silu"])
def test_is_the_contracts(activation):
    halves = (4 * torch.randn(3, 2 * 1100)).bfloat16()
    hidden = torch.full((3, 1100), torch.nan).bfloat16()
    activate(halves, hidden, activation == "swiglu", 1.702, 7.0)
    gate, up = halves.double()[:, 0::2], halves.double()[:, 1::2]
    wanted = reference.activate(gate, up, activation, 1.702, 7.0)
    torch.testing.assert_close(hidden.double(), wanted, rtol=2**-7, atol=1e-6)
