"""Template router: to the bit what runtime/reference.py gives, interpreted and as PTX for sm_90."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx.machine import Machine
from ptx.memory import Memory
from torch import Tensor

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import ASSEMBLY
from moeloom.lowering.triton.tiles import SM_90
from moeloom.runtime import reference

TILE = next(dict(tile.params) for tile in SM_90 if tile.template == "router")
EXPERTS = 2
Case = tuple[dict, Tensor, list[Tensor]]


def case(columns: int, tokens: int, dtype: torch.dtype = torch.bfloat16, bias: bool = True, **tile: int) -> Case:
    """Params, x in a wider memory full of NaN, and the weights."""
    generator = torch.Generator().manual_seed(columns + tokens)
    x = torch.full((tokens, columns + 8), torch.nan, dtype=dtype)[:, :columns]
    x.copy_(torch.randn(tokens, columns, generator=generator))
    weights = [torch.randn(EXPERTS, columns, generator=generator).to(dtype)]
    weights += [torch.randn(EXPERTS, generator=generator).to(dtype)] if bias else []
    kind = "bf16" if dtype == torch.bfloat16 else "f16"
    return {"columns": columns, "experts": EXPERTS, "x": kind, "has_bias": bias, **TILE, **tile}, x, weights


CASES = {
    "gpt-oss": case(2880, 3),
    "one step": case(1024, 1, bias=False),
    "less than a step": case(96, 5, rows=4),
    "four steps": case(4096, 2, rows=1, num_warps=8),
    "f16": case(1056, 4, torch.float16),
}


def tiles(params: dict, x: Tensor) -> int:
    return -(-len(x) // params["rows"]) * EXPERTS


@pytest.mark.parametrize("name", CASES)
def test_reference_is_a_linear_layer(name):
    _, x, weights = CASES[name]
    want = torch.nn.functional.linear(x.double(), *(weight.double() for weight in weights))
    torch.testing.assert_close(reference.router(x, *weights).double(), want, rtol=2.0**-8, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_interpreted(interpret, name):
    """The interpreter truncates to bf16 where a GPU rounds to nearest even."""
    params, x, weights = CASES[name]
    found = torch.full((len(x), EXPERTS), torch.nan, dtype=x.dtype)
    interpret("router", params, [(x, x.stride(0)), *weights], [found], len(x), tiles(params, x))
    torch.testing.assert_close(found, reference.router(x, *weights), rtol=2.0**-7, atol=0)


@pytest.fixture(scope="module")
def assembly(code_cache) -> Callable[[dict], str]:
    def compiled(params: dict) -> str:
        kernels = {"router": {"template": "router", "params": params}}
        made = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)
        return Path(made["router"], ASSEMBLY).read_text()

    return compiled


@pytest.mark.parametrize("name", CASES)
def test_as_ptx(assembly, name):
    """The bits do not depend on the tile."""
    params, x, weights = CASES[name]
    want = reference.router(x, *weights)
    found = torch.full_like(want, torch.nan)
    memory = Memory()
    span = torch.as_strided(x, (x.stride(0) * len(x),), (1,))
    places = [memory.place(array(span)), x.stride(0), *(memory.place(array(w), constant=True) for w in weights)]
    out = memory.place(array(found), writable=True)
    machine = Machine(assembly(params), memory, np.full(16 << 10, 0xFF, np.uint8))
    machine.launch(tiles(params, x), [*places, out, len(x)], list(range(tiles(params, x)))[::-1])
    found.view(torch.uint8).copy_(torch.from_numpy(memory.read_back(out, array(found))))
    assert torch.equal(found.view(torch.int16), want.view(torch.int16))


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()
