"""The decode kernels for sm_90, judged by their code. benchmarks/decode_products.py runs them on a GPU."""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import triton

from moeloom.lowering.jobs import CompileError
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import CODE, FACTS
from moeloom.lowering.triton.templates import TEMPLATES

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
SM = 132
GPT_OSS = {
    "hidden": 2880,
    "intermediate": 2880,
    "topk": 4,
    "block": 8,
    "x": "bf16",
    "layout": "none",
    "has_bias": True,
    "has_weights": False,
    "activation": "swiglu",
    "alpha": 1.702,
    "limit": 7.0,
    "requantize": "none",
    "num_stages": 1,
    "ring": 8,
    "maxnreg": 128,
    "programs": 2 * SM,
    "num_warps": 8,
    "early": False,
    "paired": False,
    "quantise": "none",
    "routes": "none",
    "experts": 0,
}
DOWN = GPT_OSS | {"has_weights": True, "num_warps": 4, "stream_warps": 4, "programs": 4 * SM, "early": True}
WIDE = DOWN | {"block": 16, "splits": 1, "num_warps": 8, "programs": 2 * SM, "paired": True}
A4 = {"x": "f4E2M1FN", "layout": "tiled_32x8", "early": True}
CHUNKS = 15  # a record of 2880 columns
MMAS = 4  # a chunk
KERNELS = {
    "gate_up": ("decode_gate_up", GPT_OSS),
    "gate_up_a4": ("decode_gate_up", GPT_OSS | A4),
    "gate_up_quantises": ("decode_gate_up", GPT_OSS | {"quantise": "even"}),
    "gate_up_16_quantises": ("decode_gate_up", GPT_OSS | {"quantise": "even", "block": 16, "paired": True}),
    "down_quantises": ("decode_down", DOWN | {"splits": 3, "quantise": "even"}),
    "down": ("decode_down", DOWN | {"splits": 1}),
    "down_split": ("decode_down", DOWN | {"splits": 3}),
    "down_a4": ("decode_down", DOWN | A4 | {"splits": 3}),
    "gate_up_16": ("decode_gate_up", GPT_OSS | {"block": 16, "paired": True}),
    "gate_up_16_shared": ("decode_gate_up", GPT_OSS | {"block": 16}),
    "gate_up_16_a4": ("decode_gate_up", GPT_OSS | A4 | {"block": 16}),
    "down_16": ("decode_down", WIDE),
    "down_16_a4": ("decode_down", WIDE | A4),
    "down_16_quantises": ("decode_down", WIDE | {"quantise": "even"}),
    "small": ("decode_gate_up", GPT_OSS | {"hidden": 96, "intermediate": 32, "num_warps": 4, "has_bias": False}),
}
STREAMING = tuple(name for name in KERNELS if name != "small")


@pytest.fixture(scope="module")
def compiled(code_cache) -> dict[str, Path]:
    kernels = {name: {"template": template, "params": params} for name, (template, params) in KERNELS.items()}
    return build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)


@cache
def instructions(folder: Path) -> list[str]:
    """The machine code in order, not to be changed."""
    listing = subprocess.run([DISASSEMBLER, "-c", folder / CODE], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^ +/\*[0-9a-f]{4,}\*/ +([^;]+);", listing, re.MULTILINE)


def record_loops(code: list[str]) -> list[tuple[int, list[str]]]:
    """Octets and instructions of each loop over records, or over units of one record: from the first MMA to its jump.
    A block of two octets has a loop for those whose second octet is padding too."""
    products = [place for place, text in enumerate(code) if text.startswith("HMMA")]
    loops = []
    while products:
        end = next(place for place in range(products[0], len(code)) if "BRA" in code[place])
        octets, rest = divmod(sum(place < end for place in products), CHUNKS * MMAS)
        assert rest == 0
        loops.append((octets, code[products[0] : end]))
        products = [place for place in products if place > end]
    return sorted(loops, key=lambda loop: loop[0])


@pytest.mark.parametrize("name", [name for name, (_, params) in KERNELS.items() if params["block"] == 8])
def test_keeps_everything_in_registers(compiled, name):
    facts = json.loads((compiled[name] / FACTS).read_text())
    assert (facts["spills"], facts["stack"]) == (0, 0)
    assert facts["registers"] <= 128
    assert not [text for text in instructions(compiled[name]) if text.startswith(("LDL", "STL"))]


@pytest.mark.parametrize("name", [name for name, (_, params) in KERNELS.items() if params["block"] > 8])
def test_keeps_its_products_in_registers(compiled, name):
    """Several octets fill the registers of two programs an SM: what these spill, words of a unit, they do not touch
    between products."""
    facts = json.loads((compiled[name] / FACTS).read_text())
    assert facts["registers"] <= 128 and facts["spills"] <= 40
    for _, loop in record_loops(instructions(compiled[name])):
        assert not [text for text in loop if text.startswith(("LDL", "STL"))]


@pytest.mark.parametrize("name", STREAMING)
def test_multiplies_a_chunk_in_few_instructions(compiled, name):
    loops = record_loops(instructions(compiled[name]))
    assert [octets for octets, _ in loops] == list(range(1, KERNELS[name][1]["block"] // 8 + 1))
    for octets, loop in loops:
        assert sum(text.startswith("HMMA.16816.F32.BF16") for text in loop) == CHUNKS * MMAS * octets
        work = [
            text
            for text in loop
            if text.startswith(("LOP3", "IMAD.SHL", "SHF", "LDSM", "SHFL", "HMMA", "HMUL2", "FFMA"))
        ]
        # 9 for a fragment of 8 weights, four times, and their scales; an octet more: 2 LDSM, 4 HMMA.
        assert len(work) <= (62 if octets == 1 else 59 + 6 * octets) * CHUNKS


@pytest.mark.parametrize("name", STREAMING)
def test_weights_are_under_way_before_an_early_kernel_waits(compiled, name):
    code, (_, params) = instructions(compiled[name]), KERNELS[name]
    waits = [place for place, text in enumerate(code) if "ACQBULK" in text]
    loads = [place for place, text in enumerate(code) if re.match(r"(@!?P\d )?LDG\S*\.128 ", text)]
    before = [sum(place < wait for place in loads) for wait in waits]
    # A program without units waits in a place of its own.
    assert params["ring"] in before and len(before) == 2 if params["early"] else before == [0]


def first_use(loop: list[str], load: int) -> Iterator[str]:
    """The instructions between a load and the first that reads what it brings."""
    register = int(re.search(r"R(\d+)", loop[load])[1])
    brought = re.compile(rf"\b(?:{'|'.join(f'R{register + i}' for i in range(4))})\b")
    for text in loop[load + 1 :]:
        if brought.search(text.partition(",")[2]):
            return
        yield text


@pytest.mark.parametrize("name", STREAMING)
def test_loads_run_far_ahead(compiled, name):
    """Wide loads, and at least five chunks of products between a load and its use: ptxas must not sink them. In a loop
    for half-empty blocks, whose products are fewer, more than four."""
    for octets, loop in record_loops(instructions(compiled[name])):
        loads = [place for place, text in enumerate(loop) if re.match(r"LDG\S*\.128 ", text)]
        assert len(loads) >= CHUNKS - 2  # some come before the first product
        for load in loads[: CHUNKS - 8]:
            ahead = sum(text.startswith("HMMA") for text in first_use(loop, load))
            assert ahead >= 4 * MMAS * octets + (4 if octets == KERNELS[name][1]["block"] // 8 else 1)


def test_the_stream_is_one_operand():
    types = dict(TEMPLATES["decode_gate_up"].arguments(GPT_OSS))
    assert types["weight"] == "*i32"
    assert "weight_scales" not in types
    assert list(types) == [
        "x", "x_stride", "sorted_ids", "expert_ids", "num_valid", "weight", "bias", "exchange", "h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "changed", "message"),
    [
        ("decode_gate_up", {"block": 32}, "sort blocks of 8 or 16 rows"),
        ("decode_gate_up", {"x": "f16"}, "not of 8 rows of f16: use gate_up and down"),
        ("decode_down", {"splits": 2}, "3 records of weights cannot be split 2 times"),
        ("decode_down", {"splits": 1, "num_warps": 6}, "6 warps do not share out tiles of 4 fragments"),
    ],
)
def test_refuses_what_it_cannot_do(template, changed, message):
    with pytest.raises(CompileError, match=message):
        TEMPLATES[template].constants(DOWN | changed)
