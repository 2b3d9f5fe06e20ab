"""The decode kernels for sm_90, whole: their PTX runs on the machine of ptx/, against the plain product in float64."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ptx.machine import Fault
from ptx.products import Call, ids_of, relative, run

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.build import ASSEMBLY

TOPK, TOKENS, WARPS = 2, 11, 4
BASE = {
    "topk": TOPK,
    "block": 8,
    "x": "bf16",
    "layout": "none",
    "has_bias": True,
    "has_weights": True,
    "num_stages": 1,
    "ring": 6,
    "maxnreg": 128,
    "programs": 3,
    "early": False,
    "paired": False,
    "quantise": "none",
    "routes": "none",
    "experts": 0,
    "num_warps": WARPS,
}
GATE_UP = BASE | {"hidden": 96, "intermediate": 72, "activation": "swiglu", "alpha": 1.702, "limit": 7.0}
DOWN = BASE | {"hidden": 144, "intermediate": 96, "splits": 1, "stream_warps": WARPS}
SHARED = GATE_UP | {"hidden": 2112, "intermediate": 104, "programs": 7}
PAIRED = {"block": 16, "paired": True, "programs": 4}
A4 = {"x": "f4E2M1FN", "layout": "tiled_32x8"}
PLAIN = {"has_bias": False, "has_weights": False}
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gate_up": ("decode_gate_up", GATE_UP),
    "gate_up of 2 records, silu, no bias": (
        "decode_gate_up",
        GATE_UP | PLAIN | {"hidden": 1088, "intermediate": 40, "activation": "silu", "programs": 2},
    ),
    "gate_up a4": ("decode_gate_up", GATE_UP | A4),
    "gate_up a4, row_major, gelu": ("decode_gate_up", GATE_UP | A4 | {"layout": "row_major", "activation": "gelu"}),
    "gate_up, more programs than units": ("decode_gate_up", GATE_UP | {"programs": 40, "hidden": 32}),
    "down": ("decode_down", DOWN),
    "down, 2 splits, no bias": ("decode_down", DOWN | PLAIN | {"intermediate": 1088, "splits": 2, "programs": 5}),
    "down a4": ("decode_down", DOWN | A4),
    "gate_up that quantises": ("decode_gate_up", GATE_UP | {"quantise": "even"}),
    "down that quantises, early, 2 splits": (
        "decode_down",
        DOWN | {"quantise": "even", "early": True, "intermediate": 1088, "splits": 2},
    ),
    "gate_up of 16 rows that quantises, 8 warps": (
        "decode_gate_up",
        GATE_UP | {"quantise": "even", "block": 16, "num_warps": 8, "hidden": 1088},
    ),
    "gate_up of 16 rows": ("decode_gate_up", GATE_UP | {"block": 16}),
    "gate_up of 3 records that two share": ("decode_gate_up", SHARED),
    "gate_up of few units of 3 records that two share": ("decode_gate_up", SHARED | {"programs": 40}),
    "gate_up of few units of 3 records that three share": ("decode_gate_up", SHARED | {"programs": 50, "early": True}),
    "gate_up of 3 records in 16 rows that two share": ("decode_gate_up", SHARED | {"block": 16, "programs": 5}),
    "gate_up of 16 rows, two programs a processor": ("decode_gate_up", GATE_UP | PAIRED),
    "gate_up of 16 rows, 3 records, two programs a processor": ("decode_gate_up", SHARED | PAIRED),
    "down of 16 rows, two programs a processor, early": (
        "decode_down",
        DOWN | PAIRED | {"hidden": 400, "early": True},
    ),
    "gate_up a4 of 16 rows, 2 records": (
        "decode_gate_up",
        GATE_UP | A4 | {"block": 16, "hidden": 1088, "num_warps": 8},
    ),
    "down of 16 rows, 2 splits": ("decode_down", DOWN | {"block": 16, "intermediate": 1088, "splits": 2}),
    "down of 16 rows, two tiles a program of three, 2 records": (
        "decode_down",
        DOWN | {"block": 16, "num_warps": 2 * WARPS, "intermediate": 1088, "programs": 5},
    ),
    "down a4 of 16 rows, two tiles a program, early": (
        "decode_down",
        DOWN | A4 | {"block": 16, "num_warps": 2 * WARPS, "hidden": 128, "early": True},
    ),
    "down a4 of 16 rows": ("decode_down", DOWN | A4 | {"block": 16}),
    "down a4, 2 splits": ("decode_down", DOWN | A4 | {"intermediate": 1088, "splits": 2, "hidden": 64}),
    "gate_up a4, early": ("decode_gate_up", GATE_UP | A4 | {"early": True}),
    "down, early": ("decode_down", DOWN | {"early": True}),
    "down a4 of 16 rows, early, 2 splits": (
        "decode_down",
        DOWN | A4 | {"early": True, "block": 16, "intermediate": 1088, "splits": 2, "programs": 40},
    ),
}


@pytest.fixture(scope="module")
def assembly(code_cache) -> Mapping[str, str]:
    kernels = {name: {"template": template, "params": params} for name, (template, params) in KERNELS.items()}
    compiled = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)
    return {name: Path(folder, ASSEMBLY).read_text() for name, folder in compiled.items()}


@pytest.mark.parametrize("name", KERNELS)
def test_equals_the_product(assembly, name):
    template, params = KERNELS[name]
    call = Call(template, params, TOKENS)
    found = run(template, params, assembly[name], call, lambda programs: list(range(programs)))
    limit = 3e-3 if call.stage == 1 else 1e-6  # h is rounded to bf16
    assert relative(found.double().sum(0), call.wanted()) < limit
    if "share" in name:
        return  # nobody waits for a program of a higher number
    backwards = run(template, params, assembly[name], call, lambda programs: list(range(programs))[::-1])
    assert torch.equal(found.view(torch.uint8), backwards.view(torch.uint8))


@pytest.mark.parametrize("processors", [1, 3, 4])
@pytest.mark.parametrize("name", [name for name, (_, params) in KERNELS.items() if params["paired"]])
def test_every_run_is_taken_wherever_programs_are(assembly, name, processors):
    """Programs alone on a processor, or more than two on one, one after another."""
    template, params = KERNELS[name]
    call = Call(template, params, TOKENS)
    found = run(template, params, assembly[name], call, lambda programs: [2, 0, 3, 1], processors)
    assert relative(found.double().sum(0), call.wanted()) < (3e-3 if call.stage == 1 else 1e-6)


def test_the_older_one_of_two_programs_gets_more(assembly):
    name = "gate_up of 16 rows, two programs a processor"
    template, params = KERNELS[name]
    call = Call(template, params, TOKENS)

    def written(*programs: int) -> int:
        """By these, of which 0 and 2 are on one processor."""
        return int((~run(template, params, assembly[name], call, lambda _: [*programs], left=True).isnan()).sum())

    alone = written(0)
    assert alone == written(2) > written(0, 2) - alone > 0


MOST = 20_000
"""Steps of a program below, three times what the longest takes: one of more waits for ever."""


@pytest.mark.parametrize(
    ("name", "working"),
    [
        ("gate_up of 3 records that two share", 7),
        ("gate_up of few units of 3 records that two share", 2 * 16),
        ("gate_up of few units of 3 records that three share", 3 * 16),
    ],
)
def test_nobody_waits_for_a_program_that_begins_later(assembly, name, working):
    """The first program, alone, ends; the last of those with work, alone, waits for one of a lower number; and they are
    all that it takes."""
    template, params = KERNELS[name]
    call = Call(template, params, TOKENS)
    run(template, params, assembly[name], call, lambda programs: [0], left=True, most_steps=MOST)
    with pytest.raises(Fault, match="does it end"):
        run(template, params, assembly[name], call, lambda _: [working - 1], most_steps=MOST)
    run(template, params, assembly[name], call, lambda _: list(range(working)), most_steps=MOST)


@pytest.mark.parametrize("missing", [0, 1, 30])
def test_every_program_left_over_has_part_of_a_unit(assembly, missing):
    name = "gate_up of few units of 3 records that three share"
    template, params = KERNELS[name]
    with pytest.raises(Fault, match="does it end"):
        run(
            template,
            params,
            assembly[name],
            Call(template, params, TOKENS),
            lambda _: [program for program in range(3 * 16) if program != missing],
            most_steps=MOST,
        )


@pytest.mark.parametrize("name", ["gate_up", "gate_up that quantises", "down that quantises, early, 2 splits"])
def test_blocks_of_one_row(assembly, name):
    """Beside a full one: all threads then move that row."""
    template, params = KERNELS[name]
    ids = torch.full((TOKENS, TOPK), -1, dtype=torch.int32)
    ids[:9, 0], ids[9], ids[10, 1] = 1, torch.tensor([2, 0]), 2  # 1, 9 and 2 rows of experts 0, 1 and 2
    call = Call(template, params, TOKENS, ids=ids)
    found = run(template, params, assembly[name], call, lambda programs: list(range(programs)))
    assert relative(found.double().sum(0), call.wanted()) < (3e-3 if call.stage == 1 else 1e-6)


@pytest.mark.parametrize("rows", [(11, 8, 3), (1, 12, 9), (9, 10, 0), (5, 8, 1), (0, 0, 9)], ids=str)
@pytest.mark.parametrize("name", [name for name, (_, params) in KERNELS.items() if params["block"] == 16])
def test_blocks_of_two_octets(assembly, name, rows):
    """With so many rows of each expert: an octet that is padding is not multiplied, and programs share the work so."""
    template, params = KERNELS[name]
    call = Call(template, params, TOKENS, ids=ids_of(rows, TOKENS))
    found = run(template, params, assembly[name], call, lambda programs: list(range(programs)))
    assert relative(found.double().sum(0), call.wanted()) < (3e-3 if call.stage == 1 else 1e-6)


SPECIAL = (torch.nan, torch.inf, 0.0, -0.0, 2.0**-126, 2.0**-130, 3.3895e38, 6.0, 2.5, 0.25)


@pytest.fixture(scope="module", params=["even", "rceil"])
def quantising(request, code_cache) -> tuple[str, Mapping[str, str]]:
    """A scale mode, and a kernel that takes codes, or quantises by it. The modes are one function, tested elsewhere."""
    kernels = {
        name: {"template": "decode_gate_up", "params": GATE_UP | own}
        for name, own in (("codes", A4), ("quantises", {"quantise": request.param}))
    }
    compiled = build.compile_kernels(kernels, ARCHITECTURES["sm_90"], code_cache, lambda *_: None)
    return request.param, {name: Path(folder, ASSEMBLY).read_text() for name, folder in compiled.items()}


def test_quantising_gives_what_codes_give(quantising):
    """To the bit, whatever is in x."""
    mode, texts = quantising
    found = []
    for name, own in (("codes", A4), ("quantises", {"quantise": mode})):
        params = GATE_UP | own
        call = Call("decode_gate_up", params, TOKENS, mode=mode)
        generator = torch.Generator().manual_seed(1)
        call.x.mul_(2.0 ** torch.randint(-12, 12, call.x.shape, generator=generator))
        for row, value in enumerate(SPECIAL):
            call.x[row, 3 * row] = value
        call.x[4, 32:64], call.x[10, 32:64] = 0.0, 2.0**-129
        call.quantise()
        found.append(run("decode_gate_up", params, texts[name], call, lambda programs: list(range(programs))))
    assert found[1].isfinite().any() and found[1][0, :TOPK].isnan().all()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, equal_nan=True)


def test_a_missing_barrier_is_a_race(assembly):
    """Without the barriers around the gather warps read what others have yet to write; the machine must see that."""
    template, params = KERNELS["gate_up"]
    broken = assembly["gate_up"].replace("bar.sync", "// bar.sync")
    with pytest.raises(Fault, match="since the last barrier"):
        run(template, params, broken, Call(template, params, TOKENS), lambda programs: list(range(programs)))


@pytest.mark.parametrize(
    ("name", "find", "instead", "message"),
    [
        ("down, early", r"ld\.global\.cg\.", "ld.global.", r"before griddepcontrol\.wait reads 4 bytes"),
        ("down, early", r"griddepcontrol\.\w+ *;", "", r"before griddepcontrol\.wait reads \d+ bytes|ends without"),
        ("gate_up", r"griddepcontrol\.wait *;", "", "lets the next launch start before it has waited itself"),
        ("gate_up", r"griddepcontrol\.\w+ *;", "", r"before griddepcontrol\.wait reads 4 bytes"),
    ],
)
def test_touching_too_early_what_the_launch_in_front_writes_is_seen(assembly, name, find, instead, message):
    template, params = KERNELS[name]
    broken = re.sub(find, instead, assembly[name])
    assert broken != assembly[name]
    with pytest.raises(Fault, match=message):
        run(template, params, broken, Call(template, params, TOKENS), lambda programs: list(range(programs)))


def test_an_early_list_that_the_launch_in_front_writes_is_seen(assembly):
    """The code of an early kernel where it must not be: behind the token sort itself."""
    template, params = KERNELS["gate_up a4, early"]
    code, call = assembly["gate_up a4, early"], Call(template, params, TOKENS)
    with pytest.raises(Fault, match=r"before griddepcontrol\.wait reads 4 bytes"):
        run(template, params | {"early": False}, code, call, lambda programs: list(range(programs)))


def test_a_program_without_units_waits_too(assembly):
    name = "down a4 of 16 rows, early, 2 splits"
    template, params = KERNELS[name]
    places = [
        found.span() for found in re.finditer(r"griddepcontrol\.wait(?s:.*?)launch_dependents *;", assembly[name])
    ]
    waiting, idle = (assembly[name][:start] + assembly[name][end:] for start, end in places)
    for broken, message in ((waiting, r"before griddepcontrol\.wait"), (idle, r"ends without griddepcontrol\.wait")):
        with pytest.raises(Fault, match=message):
            run(template, params, broken, Call(template, params, TOKENS), lambda programs: list(range(programs))[::-1])


def test_a_store_out_of_place_is_seen(assembly):
    template, params = KERNELS["down"]
    broken = re.sub(r"(st\.global\.b32 \[ %rd\d+ \+) 0", r"\1 4096", assembly["down"], count=1)
    assert broken != assembly["down"]
    with pytest.raises(Fault, match="writes 4 bytes"):
        run(template, params, broken, Call(template, params, TOKENS), lambda programs: list(range(programs)))
