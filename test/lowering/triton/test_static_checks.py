"""Every kernel of a gpt-oss-120b layer on every GPU target, judged by its code: no GPU is needed.

The layer is compiled as users compile it: with both activations, in one stage and in two, all branches.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from itertools import product

import pytest

import moeloom
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import ASSEMBLY, CODE
from moeloom.lowering.triton.templates import TEMPLATES

TARGETS = ("gfx950", "gfx942", "sm_90")
PREFILL = ("prefill_gate_up", "prefill_down")
PRODUCTS = ("gate_up", "down", "experts_one_stage", *PREFILL)
STREAMING = ("quant", "quant_sort", "quant_sort_sm_90", "combine", "expand", "fake_quant", *PRODUCTS)
MOST_ROWS = {"decode_gate_up": 8, "decode_down": 8, **dict.fromkeys(PREFILL, 32)}
"""Rows of a block beside which a kernel has registers for all it holds."""
KIB = 1024
OWN = {
    "gfx950": (),
    "gfx942": (),
    "sm_90": (
        "decode_gate_up",
        "decode_routed_gate_up",
        "decode_down",
        *PREFILL,
        "expand",
        "fake_quant",
        "quant_sort_sm_90",
        "router",
        "route_sort",
    ),
}
"""Kernels that not every target has, of the layout of weights that is taken where none is asked for; the others are in
test_decode_mfma.py."""
WITHOUT = {"gfx950": (), "gfx942": (), "sm_90": ("quant_sort",)}
"""Kernels of the others that it has for f16 alone."""
SM_REGISTERS, SM_SHARED = 64 * KIB, 228 * KIB  # of an SM of compute capability 9.0


@pytest.fixture(scope="module")
def layers(make_checkpoint, code_cache, tmp_path_factory) -> dict[tuple, dict]:
    """(activations, stages) -> the manifest's targets."""
    sizes = {"layers": 1, "hidden": 2880, "intermediate": 2880, "experts": 128, "topk": 4, "vocab": 64}
    heads = {"attention_heads": 2, "key_value_heads": 2, "head_dim": 32, "seed": 0}
    folder = tmp_path_factory.mktemp("layer")
    config = folder / "config.json"
    config.write_text(json.dumps(make_checkpoint.gpt_oss_config(make_checkpoint.Sizes(**sizes, **heads))))
    made = {}
    for activations, stages in product(("mxfp4", "bf16"), (2, 1)):
        path = folder / f"{activations}-{stages}.moel"
        options = {"activations": activations, "stages": stages, "weights": "none", "cache": code_cache}
        moeloom.compile(config, path, targets=TARGETS, **options)
        made[activations, stages] = json.loads((path / "manifest.json").read_text())["targets"]
    # The portable products, which sm_90 takes for weights as they are alone.
    for activations in ("mxfp4", "bf16"):
        path = folder / f"{activations}-rows.moel"
        options = {"activations": activations, "weight_layout": "row_major", "weights": "none"}
        moeloom.compile(config, path, targets=["sm_90"], stages=2, cache=code_cache, **options)
        made[activations, "row_major 2"] = json.loads((path / "manifest.json").read_text())["targets"]
    return made


def codes(layers: dict, target: str, templates: tuple[str, ...] = ()) -> Iterator[tuple[str, dict, dict]]:
    """(a name for messages, the kernel, its code) of all kernels, or of those made from `templates`."""
    for (activations, stages), targets in layers.items():
        for name, kernel in targets.get(target, {"kernels": {}})["kernels"].items():
            if not templates or kernel["template"] in templates:
                yield f"{name} {activations} {stages} stages", kernel, kernel["code"]


@pytest.mark.parametrize("target", TARGETS)
def test_takes_every_template_from_a_layer(layers, target):
    """So that nothing below holds of nothing."""
    found = {kernel["template"] for _, kernel, _ in codes(layers, target)}
    some = ("decode_", "prefill_", "router", "route_sort", "expand", "fake_quant", "quant_sort_sm_90", *WITHOUT[target])
    assert found == {name for name in TEMPLATES if name in OWN[target] or not name.startswith(some)}


@pytest.mark.parametrize("target", TARGETS)
def test_keeps_everything_in_registers(layers, target):
    """But for words of a unit in the decode kernels of 16 rows and prefill kernels of 64 or more: test_decode.py and
    test_prefill.py see that products hardly touch them."""
    found = [
        (name, code)
        for name, kernel, code in codes(layers, target)
        if kernel["params"].get("block", 0) <= MOST_ROWS.get(kernel["template"], math.inf)
    ]
    spilling = {name: code["spills"] for name, code in found if code["spills"]}
    private = {name: code["stack"] for name, code in found if code["stack"]}
    assert spilling == private == {}


def test_launches_that_overlap_say_so(layers):
    for target in TARGETS:
        assert {code["dependent"] for _, _, code in codes(layers, target)} == {target == "sm_90"}


COUNTERS = r"\b(red\.global\.gpu\.relaxed\.max\.s32|atom\.global\.gpu\.relaxed\.add\.u32)"


def test_waits_for_the_launch_in_front(layers, code_cache):
    """At the very start; an early kernel has read its list and begun with its weights, and waits on all its ways."""
    made = {code["sha256"] for _, _, code in codes(layers, "sm_90")}
    kept = {hashlib.sha256((path / CODE).read_bytes()).hexdigest(): path for path in code_cache.glob("*.cubin")}
    texts = [(kept[code] / ASSEMBLY).read_text() for code in made]
    for text in texts:
        start = text.index(".reqntid")
        before, after = text[start : text.index("griddepcontrol.wait")], text[text.index("griddepcontrol.wait") :]
        assert "griddepcontrol.launch_dependents" not in before
        # Of two programs on an SM each takes its place by counters, which no launch right in front uses.
        counted = re.sub(COUNTERS, "", before) if re.search(r"\.entry decode_(gate_up|down)_kernel", text) else before
        assert not re.search(r"\b(st\.global|atom|red\.|ret;)", counted)
        reads = re.findall(r"\bld\.global\S*|\bcp\.async\S*|\bbra\b", before)
        early = [read for read in reads if ".cg." in read or "evict_first" in read or read == "bra"]
        assert reads == early
        # A program without units branches off before, to a wait of its own; not so where only x is gathered before.
        leaves = "bra" in reads and ".entry decode_routed_gate_up" not in text
        assert len(re.findall(r"griddepcontrol\.wait", text)) == (2 if leaves else 1)
        assert "st.global" in after


@pytest.mark.parametrize("target", ["gfx950", "gfx942"])
def test_keeps_scalars_in_scalar_registers(layers, target):
    spilling = {name: code["scalar_spills"] for name, _, code in codes(layers, target) if code["scalar_spills"]}
    assert spilling == {}


@pytest.mark.parametrize("target", ["gfx950", "gfx942"])
def test_leaves_room_for_two_waves_a_simd(layers, target):
    crowded = {name: code["occupancy"] for name, _, code in codes(layers, target) if code["occupancy"] < 2}
    assert crowded == {}


def test_leaves_room_for_eight_warps_an_sm(layers):
    """Two to each of its schedulers."""
    for name, _, code in codes(layers, "sm_90"):
        by_registers = SM_REGISTERS // (code["registers"] * code["threads"])
        by_shared = SM_SHARED // (code["shared"] + KIB)
        assert min(by_registers, by_shared) * code["threads"] >= 8 * 32, name


@pytest.mark.parametrize("target", TARGETS)
def test_fits_the_hardware(layers, target):
    for name, _, code in codes(layers, target):
        assert code["shared"] <= ARCHITECTURES[target].shared_limit, name
        assert code["threads"] <= 1024, name


@pytest.mark.parametrize("target", TARGETS)
def test_streams_sixteen_bytes_a_load(layers, target):
    streams = [(name, code) for name, _, code in codes(layers, target, STREAMING)]
    assert [name for name, code in streams if not code["wide_loads"]] == []


def multiplies(layers: dict, target: str, quantised: bool) -> dict[str, list[str]]:
    """The matrix instructions of every product of A4 (quantised) or A16."""
    return {
        name: list(code["matrix"])
        for name, kernel, code in codes(layers, target, PRODUCTS)
        if (kernel["params"]["x"] == "f4E2M1FN") == quantised
    }


@pytest.mark.parametrize(
    ("target", "quantised", "instruction"),
    [
        ("gfx950", True, "v_mfma_scale_f32_"),
        ("gfx950", False, "v_mfma_f32_"),
        ("gfx942", True, "v_mfma_f32_"),
        ("gfx942", False, "v_mfma_f32_"),
        ("sm_90", True, ("wgmma.mma_async", "mma.sync")),
        ("sm_90", False, "wgmma.mma_async"),
    ],
)
def test_multiplies_on_matrix_units(layers, target, quantised, instruction):
    found = multiplies(layers, target, quantised)
    assert found
    for name, instructions in found.items():
        assert instructions, name
        assert all(each.startswith(instruction) for each in instructions), (name, instructions)
