"""The prefill kernels for sm_90, judged by their code. benchmarks/prefill_products.py runs them on a GPU."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import triton

from moeloom.lowering.jobs import CompileError
from moeloom.lowering.targets import TARGETS
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import CODE, FACTS
from moeloom.lowering.triton.decode_launches import programs_by_registers
from moeloom.lowering.triton.templates import TEMPLATES

SM_90 = ARCHITECTURES["sm_90"]
DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
GPT_OSS = {
    "hidden": 2880,
    "intermediate": 2880,
    "topk": 4,
    "x": "bf16",
    "has_bias": True,
    "has_weights": False,
    "stream_warps": 8,
    "activation": "swiglu",
    "alpha": 1.7020000219345093,  # 1.702 as f32: the very kernels of a layer
    "limit": 7.0,
}
DOWN = {name: value for name, value in GPT_OSS.items() if name not in ("activation", "alpha", "limit")}
DOWN |= {"has_weights": True, "stream_warps": 4}
CHUNKS = 15  # a record of 2880 columns
PRODUCTS = 4  # a chunk
LENGTHS = {64: (64, 32), 128: (128, 64), 144: (144, 112, 80, 64, 48, 32)}
"""Rows that are multiplied of a block."""
KNOWN_SPILLS = {"down_144": 8}
"""Bytes, for what ends a unit."""


def kernel(product: str, block: int, **changed: int) -> dict:
    """With the table's tile, and as many programs as registers allow."""
    tile = TARGETS["sm_90"].tile(f"prefill_{product}", block=block)
    programs = SM_90.processors * programs_by_registers(SM_90, tile["maxnreg"], tile["num_warps"])
    sizes = GPT_OSS if product == "gate_up" else DOWN
    params = {**sizes, "block": block, "programs": programs, **tile, **changed}
    return {"template": f"prefill_{product}", "params": params}


KERNELS = {
    **{f"gate_up_{block}": kernel("gate_up", block) for block in (32, 64, 128, 144)},
    **{f"down_{block}": kernel("down", block) for block in (32, 64, 128, 144)},
    "gate_up_8": kernel("gate_up", 8),
    # Records of 11 chunks: steps of one.
    "down_of_11": kernel("down", 64, intermediate=1408),
}
TABLE = tuple(name for name in KERNELS if name != "down_of_11")


@pytest.fixture(scope="module")
def compiled(code_cache) -> dict[str, Path]:
    return build.compile_kernels(KERNELS, SM_90, code_cache, lambda *_: None)


@pytest.fixture(scope="module")
def records(compiled) -> dict[str, dict[int, list[str]]]:
    """The machine code of each kernel from the first product of a record to its last, by the tokens of a product: where
    blocks are multiplied as long as what is in them, there is a loop for each length."""
    return {name: loops(instructions(folder)) for name, folder in compiled.items()}


def instructions(folder: Path) -> list[str]:
    """The machine code in order."""
    listing = subprocess.run([DISASSEMBLER, "-c", folder / CODE], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^ +/\*[0-9a-f]{4,}\*/ +([^;]+);", listing, re.MULTILINE)


def loops(code: list[str]) -> dict[int, list[str]]:
    places: dict[int, list[int]] = {}
    for place, text in enumerate(code):
        if product := re.search(r"HGMMA\.64x(\d+)x16", text):
            places.setdefault(int(product[1]), []).append(place)
    return {tokens: code[found[0] : found[-1] + 1] for tokens, found in places.items()}


def tokens_of(name: str) -> set[int]:
    """The tokens of the products that a kernel must have."""
    params = KERNELS[name]["params"]
    return set(LENGTHS[params["block"]]) if params["ordered"] else {params["block"]}


@pytest.mark.parametrize("name", KERNELS)
def test_keeps_its_products_in_registers(compiled, records, name):
    """What is spilled is not touched between products."""
    facts = json.loads((compiled[name] / FACTS).read_text())
    assert facts["registers"] <= 128
    assert facts["spills"] <= KNOWN_SPILLS.get(name, 0)
    for loop in records[name].values():
        assert not [text for text in loop if re.match(r"(@!?U?P\d )?(STL|LDL)", text)]


@pytest.mark.parametrize("name", TABLE)
def test_multiplies_a_record_out_of_registers(compiled, records, name):
    facts = json.loads((compiled[name] / FACTS).read_text())
    instruction = "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16"
    assert facts["matrix"] == {instruction.format(tokens): PRODUCTS * CHUNKS for tokens in tokens_of(name)}
    assert records[name].keys() == tokens_of(name)
    for loop in records[name].values():
        products = [text for text in loop if "HGMMA" in text]
        assert len(products) == PRODUCTS * CHUNKS
        # Sums, weights in registers, and a matrix in shared memory by its descriptor.
        assert all(re.search(r"HGMMA\S+ R\d+, R\d+, gdesc\[UR\d+\]", text) for text in products)


@pytest.mark.parametrize("name", KERNELS)
def test_products_are_not_waited_for_one_by_one(records, name):
    """Where ptxas cannot tell that registers are free it puts an ARRIVE and a DEPBAR around each HGMMA."""
    for tokens, loop in records[name].items():
        products = sum("HGMMA" in text for text in loop)
        waits = [text for text in loop if "WARPGROUP" in text]
        # Where a step is one chunk, and products of two are under way, a step waits once more.
        steps_wait = name == "down_of_11" or (KERNELS[name]["params"]["step"] == 64 and tokens <= 64)
        # Beside 72 sums a chunk is widened in halves.
        expected = 4 if tokens > 128 else 3 if steps_wait else 2
        assert len(waits) <= expected * (products // PRODUCTS) + 1


@pytest.mark.parametrize("name", KERNELS)
def test_weights_come_by_sixteen_bytes(records, name):
    for loop in records[name].values():
        loads = [text for text in loop if re.match(r"(@!?U?P\d )?LDG", text)]
        wide = [text for text in loads if re.search(r"LDG\S*\.128 ", text)]
        chunks = sum("HGMMA" in text for text in loop) // PRODUCTS
        assert len(wide) >= chunks - 2  # some come before the first product
        assert not [text for text in loads if re.search(r"LDG\S*\.U8|LDG\S*\.U16", text)]


@pytest.mark.parametrize("name", KERNELS)
def test_two_programs_fit_an_sm(compiled, name):
    """But for blocks of 144 rows, of which one program has all registers."""
    facts, params = json.loads((compiled[name] / FACTS).read_text()), KERNELS[name]["params"]
    one = params["block"] == 144
    if one:
        assert params["maxnreg"] * 32 * params["num_warps"] == 65536
    assert (1 if one else 2) * (facts["shared"] + 1024) <= 228 * 1024


@pytest.mark.parametrize("template", ["prefill_gate_up", "prefill_down"])
def test_the_stream_is_one_operand(template):
    params = KERNELS[f"{template.removeprefix('prefill_')}_64"]["params"]
    types = dict(TEMPLATES[template].arguments(params))
    assert types["weight"] == "*i32"
    first = ["x", "x_stride"] if template == "prefill_gate_up" else ["x"]
    shares = ["sorted_weights"] if template == "prefill_down" else []
    lists = ["sorted_ids", "expert_ids", "num_valid", *shares]
    assert list(types) == [*first, *lists, "weight", "bias", "h" if template == "prefill_gate_up" else "out"]


@pytest.mark.parametrize("changed", [{"num_warps": 1}, {"steps": 3}])
@pytest.mark.parametrize("template", ["prefill_gate_up", "prefill_down"])
def test_refuses_too_few_threads_and_odd_rings(template, changed):
    params = KERNELS[f"{template.removeprefix('prefill_')}_64"]["params"] | changed
    line = f"not {params['num_warps']} warps for 64 rows and {params['steps']} steps"
    with pytest.raises(CompileError, match=line):
        TEMPLATES[template].constants(params)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": "f16"}, "not of 64 rows of f16"),
        ({"block": 24}, "not of 24 rows of bf16"),
        ({"x": "f4E2M1FN"}, "f4E2M1FN"),
    ],
)
@pytest.mark.parametrize("template", ["prefill_gate_up", "prefill_down"])
def test_refuses_what_it_cannot_do(template, changed, message):
    params = KERNELS[f"{template.removeprefix('prefill_')}_64"]["params"] | changed
    with pytest.raises(
        CompileError, match="take sort blocks of 8, 16, 32, 64, 128, 144 rows of bf16, not of"
    ) as refusal:
        TEMPLATES[template].constants(params)
    assert re.search(message, str(refusal.value)) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("template", ["prefill_gate_up", "prefill_down"])
def test_refuses_to_order_more_than_it_can_count(template):
    params = KERNELS[f"{template.removeprefix('prefill_')}_144"]["params"]
    assert TEMPLATES[template].constants(params | {"ordered": 8191})["ORDERED"] == 8191
    with pytest.raises(CompileError, match="up to 8191 sort blocks in order, not 8192: set ordered lower"):
        TEMPLATES[template].constants(params | {"ordered": 8192})
