"""The bytes of quantiser, scale sort and token sort on the GPU are those on the CPU, and those of the reference."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moeloom.check import UNDEFINED, experts_of
from moeloom.replay import Replay
from moeloom.runtime.executable import Executable, load

CODES = 0
LARGE = (100, 127, 256, 257, 1000, 1025, 4099)
SPECIAL = torch.tensor([0x0001, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x8000, 0x007F, 0x7F7F, 0x0080], dtype=torch.int32)
"""Of bf16: subnormals, infinities, NaN, -0, the largest and the least normal number."""


def random_x(generator: torch.Generator, m: int, columns: int) -> Tensor:
    """Log-normal rows; some of zeros, of any bits, of subnormals, and a few special values."""
    x = (torch.randn(m, columns, generator=generator) * torch.randn(m, 1, generator=generator).exp()).bfloat16()
    kind = torch.randint(6, (m,), generator=generator)
    bits = torch.randint(-(1 << 15), 1 << 15, (m, columns), generator=generator, dtype=torch.int16).view(torch.bfloat16)
    x = torch.where((kind == 0)[:, None], bits, x)
    x[kind == 1] = 0
    x[kind == 2] *= 2.0**-120
    places = torch.rand(m, columns, generator=generator) < 0.002
    special = SPECIAL[torch.randint(len(SPECIAL), (m, columns), generator=generator)]
    return torch.where(places, special.to(torch.int16).view(torch.bfloat16), x)


def random_ids(generator: torch.Generator, m: int, slots: int, experts: int) -> Tensor:
    """Any experts, some twice in a token; one slot in eight has none; sometimes all tokens on few experts."""
    few = int(torch.randint(1, experts + 1, (), generator=generator))
    ids = torch.randint(few, (m, slots), generator=generator, dtype=torch.int32)
    return torch.where(torch.rand(m, slots, generator=generator) < 0.125, -1, ids)


def defined(tensor: Tensor, wanted: Tensor, rows: int) -> Tensor:
    """The defined elements of a result whose reference is `wanted`, `rows` rows of the sorted list being in use."""
    if wanted.is_floating_point():
        return tensor[:rows]  # sorted weights
    return tensor.view(wanted.dtype).view(wanted.shape)[wanted != UNDEFINED[wanted.dtype]]


@pytest.fixture(scope="session")
def pair(site: Path) -> tuple[Executable, Executable]:
    return load(site, "cuda", poison=True), load(site, "cpu", poison=True)


def test_bytes_of_a_site(pair: tuple[Executable, Executable]) -> None:
    gpu, cpu = pair
    (name,) = gpu.entries
    (_, columns), (_, slots) = (gpu[name].program.inputs[i].tensor.shape for i in (0, 1))
    experts = experts_of(gpu, name)
    assert isinstance(columns, int) and isinstance(slots, int) and experts is not None
    for m in (*range(1, 65), *LARGE):
        generator = torch.Generator().manual_seed(m)
        x, ids = random_x(generator, m, columns), random_ids(generator, m, slots, experts)
        weights = torch.rand(m, slots, generator=generator)
        on_gpu = [tensor.cpu() for tensor in gpu[name](x.cuda(), ids.cuda(), weights.cuda())]
        on_cpu = [*cpu[name](x, ids, weights)]
        expected = Replay(cpu, name).run({"x": x, "ids": ids, "weights": weights})
        rows = int(expected[-1][0])
        for number, (one, other, wanted) in enumerate(zip(on_gpu, on_cpu, expected, strict=True)):
            if number == CODES:  # the payload of a token without an expert is undefined
                one, other, wanted = (codes[(ids >= 0).any(1)] for codes in (one, other, wanted))
            one, other = (defined(tensor, wanted, rows) for tensor in (one, other))
            assert torch.equal(one, other), f"result {number} differs from the CPU's at M = {m}"
            assert torch.equal(one, defined(wanted, wanted, rows)), f"result {number} is not the reference's at M = {m}"
