"""The prefill kernels for sm_90, whole: their PTX runs on the machine of ptx/, against the plain product in float64."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ptx.machine import Fault
from ptx.products import Call, ids_of, relative, run

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import ASSEMBLY, FACTS

TOKENS = 40
BASE = {
    "topk": 2,
    "block": 8,
    "x": "bf16",
    "has_bias": True,
    "has_weights": True,
    "num_stages": 1,
    "ring": 4,
    "step": 192,
    "steps": 4,
    "ordered": 0,
    "maxnreg": 128,
    "programs": 3,
    "num_warps": 8,
}
# A block has one unit, and more than three have an expert.
GATE_UP = BASE | {
    "hidden": 96, "intermediate": 64, "activation": "swiglu", "alpha": 1.702, "limit": 7.0, "stream_warps": 8,
}  # fmt: skip
# Two units, the second half empty: 9 fragments in a stream of 12.
DOWN = BASE | {"hidden": 144, "intermediate": 96, "stream_warps": 4}
PLAIN = {"has_bias": False, "has_weights": False}
B128 = {"block": 128, "ring": 3, "step": 64}
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gate_up": ("prefill_gate_up", GATE_UP),
    "gate_up of 16 rows, 2 units a block, k = 3": (
        "prefill_gate_up",
        GATE_UP | {"block": 16, "hidden": 160, "intermediate": 96, "topk": 3, "programs": 5, "has_weights": False},
    ),
    "gate_up of 32 rows, 2 records, silu, plain": (
        "prefill_gate_up",
        GATE_UP | PLAIN | {"block": 32, "hidden": 1088, "activation": "silu", "programs": 2},
    ),
    "gate_up of 64 rows, k = 1, gelu": (
        "prefill_gate_up",
        GATE_UP | {"block": 64, "hidden": 160, "intermediate": 96, "topk": 1, "activation": "gelu", "has_bias": False},
    ),
    "gate_up of 64 rows, 16 warps": (
        "prefill_gate_up",
        GATE_UP | {"block": 64, "hidden": 1088, "intermediate": 96, "num_warps": 16, "ring": 3, "has_weights": False},
    ),
    "gate_up of 128 rows": ("prefill_gate_up", GATE_UP | B128 | {"hidden": 160, "programs": 2}),
    "gate_up, more programs than units": ("prefill_gate_up", GATE_UP | {"programs": 40, "hidden": 32}),
    "down": ("prefill_down", DOWN),
    "down of 16 rows, 3 records of 11 chunks": ("prefill_down", DOWN | {"block": 16, "intermediate": 2112}),
    "down of 32 rows, k = 1, plain": (
        "prefill_down",
        DOWN | PLAIN | {"block": 32, "hidden": 64, "topk": 1, "intermediate": 160, "programs": 2},
    ),
    "down of 64 rows, 2 records, k = 3": (
        "prefill_down",
        DOWN | {"block": 64, "intermediate": 1088, "topk": 3, "has_bias": False},
    ),
    "down of 128 rows, 2 records": ("prefill_down", DOWN | B128 | {"intermediate": 1088, "has_weights": False}),
    "down of 128 rows, more programs than units": ("prefill_down", DOWN | B128 | {"programs": 9}),
}
# The third pass of copies is 16 rows.
B144 = {"block": 144, "ring": 2, "short_ring": 4, "num_warps": 16, "ordered": 32, "programs": 2}
MORE_THAN_THREADS = "down of 8 rows in order"
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gate_up of 16 rows in order": ("prefill_gate_up", GATE_UP | {"block": 16, "hidden": 160, "ordered": 64}),
    "gate_up of 16 rows in order, 16 warps, 2 units a block": (
        "prefill_gate_up",
        GATE_UP | {"block": 16, "intermediate": 160, "ordered": 32, "num_warps": 16, "programs": 2},
    ),
    "down of 32 rows in order, 3 records of 11 chunks": (
        "prefill_down",
        DOWN | {"block": 32, "intermediate": 2112, "ordered": 32, "programs": 2},
    ),
    "down of 16 rows in order, more programs than units": (
        "prefill_down",
        DOWN | {"block": 16, "ordered": 32, "programs": 40},
    ),
    MORE_THAN_THREADS: ("prefill_down", DOWN | {"hidden": 64, "num_warps": 4, "ordered": 256}),
    "down, more blocks than are ordered": ("prefill_down", DOWN | {"block": 16, "ordered": 2}),
}
ORDERED_64 = "gate_up of 64 rows in order"
LENGTHS: dict[str, tuple[str, dict[str, Any]]] = {
    ORDERED_64: ("prefill_gate_up", GATE_UP | {"block": 64, "hidden": 160, "ordered": 64}),
    "gate_up of 144 rows in order, 2 units a block": ("prefill_gate_up", GATE_UP | B144 | {"intermediate": 160}),
    "gate_up of 144 rows in order, 2 records": ("prefill_gate_up", GATE_UP | B144 | {"hidden": 1088}),
    "down of 144 rows in order, 3 records of 11 chunks": ("prefill_down", DOWN | B144 | {"intermediate": 2112}),
    "down of 144 rows in order, more programs than units": ("prefill_down", DOWN | B144 | {"programs": 40}),
    "down of 128 rows, more blocks than are ordered": ("prefill_down", DOWN | B128 | {"ordered": 2}),
}
KERNELS |= WHOLE | LENGTHS


@dataclass(frozen=True)
class Code:
    """PTX, and the bytes of shared memory that a launch gives it: the machine has no more."""

    text: str
    shared: int


def code_of(folder: Path) -> Code:
    return Code(Path(folder, ASSEMBLY).read_text(), json.loads(Path(folder, FACTS).read_text())["shared"])


@pytest.fixture(scope="module")
def assembly(code_cache) -> Mapping[str, Code]:
    kernels = {name: {"template": template, "params": params} for name, (template, params) in KERNELS.items()}
    compiled = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)
    return {name: code_of(folder) for name, folder in compiled.items()}


def forwards(programs: int) -> list[int]:
    return list(range(programs))


def backwards(programs: int) -> list[int]:
    return list(range(programs))[::-1]


@pytest.mark.parametrize("name", KERNELS)
def test_equals_the_product(assembly, name):
    template, params = KERNELS[name]
    call, code = Call(template, params, TOKENS), assembly[name]
    found = run(template, params, code.text, call, forwards, shared=code.shared)
    limit = 3e-3 if call.stage == 1 else 1e-6  # h is rounded to bf16
    assert relative(found.double().sum(0), call.wanted()) < limit
    other = run(template, params, code.text, call, backwards, shared=code.shared)
    assert torch.equal(found.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("rows", [(25, 33, 8), (1, 40, 9), (8, 3, 1), (16, 9, 32)], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_blocks_in_order(assembly, name, rows):
    """Blocks with so many rows of each expert, of a length that is multiplied whole."""
    template, params = KERNELS[name]
    call = Call(template, params, TOKENS, ids=ids_of(rows, TOKENS))
    found = run(template, params, assembly[name].text, call, forwards, shared=assembly[name].shared)
    assert relative(found.double().sum(0), call.wanted()) < (3e-3 if call.stage == 1 else 1e-6)


def test_more_blocks_than_threads_in_order(assembly):
    """A thread counts and places several of them."""
    template, params = KERNELS[MORE_THAN_THREADS]
    call, code = Call(template, params, 560, ids=ids_of((560, 33, 500), 560)), assembly[MORE_THAN_THREADS]
    found = run(template, params, code.text, call, forwards, shared=code.shared)
    assert relative(found.double().sum(0), call.wanted()) < 1e-6


ROWS = [(170, 33, 64), (1, 97, 129), (200, 3, 48), (65, 80, 160), (128, 32, 96)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("name", LENGTHS)
def test_blocks_of_every_length(assembly, name, rows):
    """Blocks with so many rows of each expert, in any order."""
    template, params = KERNELS[name]
    call = Call(template, params, 200, ids=ids_of(rows, 200))
    found = run(template, params, assembly[name].text, call, forwards, shared=assembly[name].shared)
    assert relative(found.double().sum(0), call.wanted()) < (3e-3 if call.stage == 1 else 1e-6)


@pytest.mark.parametrize(
    ("name", "find", "instead", "message"),
    [
        ("gate_up", r"bar\.sync[^;]*;", "", "wrote since the last barrier"),
        ("down of 64 rows, 2 records, k = 3", r"bar\.sync[^;]*;", "", "since the last barrier"),
        ("gate_up", r"fence\.proxy\.async[^;]*;", "", r"without a fence\.proxy\.async"),
        # AHEAD copies instead of one less.
        ("gate_up of 128 rows", r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "a copy has yet to write"),
        ("down", r"cp\.async\.wait_group 0;", "cp.async.wait_group 1;", "a copy has yet to write"),
        ("gate_up", r"wgmma\.fence[^;]*;", "", r"written since the last wgmma\.fence"),
        ("gate_up", r"wgmma\.wait_group\.sync\.aligned 0;", "", "reads .*, which a product has yet to write"),
        ("down", r"(wgmma\.commit_group[^;]*;)", r"\1 mov.b32 w0, 0;", "writes w0.*, which a product still takes"),
        # The order of the blocks, which other threads have written.
        (ORDERED_64, r"(st\.shared\.b32 .*\n(?s:.*?))bar\.sync[^;]*;", r"\1", "since the last barrier"),
        ("gate_up of 128 rows", r"wgmma\.commit_group[^;]*;", "", "writes what a product still reads"),
        ("down of 64 rows, 2 records, k = 3", r"(wgmma\.wait_group[^;]*) 1;", r"\1 3;", "a product still reads"),
        # A step of one chunk: what is copied to is what the step before the last one has read.
        (
            "down of 16 rows, 3 records of 11 chunks",
            r"wgmma\.wait_group\.sync\.aligned 1;(?=\s+cp\.async\.wait_group)",
            "",
            "writes what a product still reads",
        ),
    ],
)  # fmt: skip
def test_what_goes_on_is_not_touched(assembly, name, find, instead, message):
    """Without one of its waits, fences or barriers a kernel would be wrong at times; the machine must see that."""
    template, params = KERNELS[name]
    code = assembly[name]
    broken = re.sub(find, instead, code.text)
    assert broken != code.text
    with pytest.raises(Fault, match=message):
        run(template, params, broken, Call(template, params, TOKENS), forwards, shared=code.shared)


@pytest.mark.parametrize(
    ("find", "instead"),
    [
        (r"shl\.b32 m, (\w+), 6;", r"shl.b32 m, \1, 5;"),  # the magnitudes of a pair of codes
        (r"0x4141", "0x4242"),  # the scales of a row's other group
        (r"add\.u32 low, matrix, 2;", r"add.u32 low, matrix, 4;"),  # 16 columns of x
    ],
)
def test_a_wrong_place_is_a_wrong_product(assembly, find, instead):
    template, params = KERNELS["gate_up"]
    code, call = assembly["gate_up"], Call(template, params, TOKENS)
    broken = re.sub(find, instead, code.text)
    assert broken != code.text
    found = run(template, params, broken, call, forwards, shared=code.shared)
    assert relative(found.double().sum(0), call.wanted()) > 0.1
