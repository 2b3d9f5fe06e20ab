"""The decode kernels for sm_90, whole: their PTX runs on the machine of ptx/, against the plain product in float64."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ptx.machine import Fault, Machine
from ptx.memory import Memory
from torch import Tensor

from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.compile import ASSEMBLY
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.runtime import reference
from moeloom.runtime.pack_stream import pack_stream

EXPERTS, TOPK, TOKENS, WARPS = 3, 2, 11, 4
SHARED_BYTES = 64 << 10
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
    "num_warps": WARPS,
}
CONSTANT, LISTS = ("weight", "bias"), ("sorted_ids", "expert_ids", "num_valid", "sorted_weights")
"""Operands that no launch writes, and the token sort's, which `early` kernels may read before they wait."""
GATE_UP = BASE | {"hidden": 96, "intermediate": 72, "activation": "swiglu", "alpha": 1.702, "limit": 7.0}
DOWN = BASE | {"hidden": 144, "intermediate": 96, "splits": 1}
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
    "gate_up of 16 rows": ("decode_gate_up", GATE_UP | {"block": 16}),
    "gate_up a4 of 16 rows, 2 records": (
        "decode_gate_up",
        GATE_UP | A4 | {"block": 16, "hidden": 1088, "num_warps": 8},
    ),
    "down of 16 rows, 2 splits": ("decode_down", DOWN | {"block": 16, "intermediate": 1088, "splits": 2}),
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
def assembly(tmp_path_factory) -> Mapping[str, str]:
    kernels = {name: {"template": template, "params": params} for name, (template, params) in KERNELS.items()}
    compiled = build.compile_kernels(
        kernels, ARCHITECTURES["sm_90"], tmp_path_factory.mktemp("cache"), lambda *_: None, {}
    )
    return {name: Path(folders[16], ASSEMBLY).read_text() for name, folders in compiled.items()}


class Call:
    """Random operands of a kernel: what no live row names is NaN (0xFF), and so is what lies around the buffers."""

    def __init__(self, template: str, params: Mapping[str, Any]) -> None:
        self.params, self.stage = params, 1 if template == "decode_gate_up" else 2
        torch.manual_seed(0)
        ids = torch.randint(EXPERTS, (TOKENS, TOPK), dtype=torch.int32)
        ids[3] = -1
        self.ids, self.shares = ids, torch.rand(TOKENS, TOPK) + 0.5
        self.sort = reference.sort_tokens(ids, self.shares, EXPERTS, params["block"])
        self.columns = params["hidden"] if self.stage == 1 else params["intermediate"]
        outputs = 2 * params["intermediate"] if self.stage == 1 else params["hidden"]
        self.weight = torch.randint(256, (EXPERTS, outputs, self.columns // 2), dtype=torch.uint8)
        self.scales = torch.randint(119, 127, (EXPERTS, outputs, self.columns // 32), dtype=torch.uint8)
        self.bias = torch.randn(EXPERTS, outputs)
        rows = TOKENS if self.stage == 1 else TOKENS * TOPK
        self.x = torch.randn(rows, self.columns).bfloat16()
        sorted_ids, _, _, num_valid = self.sort
        self.named = reference.defined_payload(sorted_ids, num_valid, self.stage, TOPK, rows)
        self.codes, self.x_scales = reference.quantise(self.x, "even")

    def given(self) -> dict[str, Tensor | int]:
        """Arguments by name."""
        sorted_ids, sorted_weights, expert_ids, num_valid = self.sort
        used = int(num_valid[0])
        order = "gate_up_concatenated" if self.stage == 1 else "plain"
        packed = [
            pack_stream(w, s, order, self.params["num_warps"]) for w, s in zip(self.weight, self.scales, strict=True)
        ]
        if self.params["x"] == "bf16":
            x = self.x.clone()
            x[~self.named] = torch.nan
            activations = {"x": x}
        else:
            codes = self.codes.clone()
            codes[~self.named] = 0xFF
            sorted_scales = reference.sort_scales(
                self.x_scales, sorted_ids, num_valid, self.stage, TOPK, self.params["layout"]
            )
            activations = {"x": codes, "x_scales": sorted_scales}
        return activations | {
            "x_stride": activations["x"].stride(0),
            "sorted_ids": beyond(sorted_ids, used),
            "expert_ids": beyond(expert_ids, used // self.params["block"]),
            "num_valid": num_valid,
            "sorted_weights": beyond(sorted_weights, used),
            "weight": torch.stack(packed),
            "bias": self.bias,
        }

    def sums(self) -> Tensor:
        """float64 [TOKENS, TOPK, outputs] before bias and routing weight; NaN where a slot has no expert."""
        values = self.x.double() if self.params["x"] == "bf16" else reference.dequantise(self.codes, self.x_scales)
        weight = reference.dequantise(self.weight, self.scales)
        out = torch.full((TOKENS, TOPK, weight.shape[1]), torch.nan, dtype=torch.float64)
        for token, slot in (self.ids >= 0).nonzero().tolist():
            row = token if self.stage == 1 else token * TOPK + slot
            out[token, slot] = weight[self.ids[token, slot]] @ values[row]
        return out

    def wanted(self) -> Tensor:
        """What the kernel is to write, summed over splits: h [R, I] or rows [R, H]; NaN where nothing is."""
        sums, bias = self.sums(), self.bias.double()[self.ids.clamp(min=0).long()]
        shares = self.shares.double()[..., None] if self.params["has_weights"] else 1.0
        bias = bias if self.params["has_bias"] else torch.zeros(())
        if self.stage == 2:
            return ((sums + bias) * shares).flatten(0, 1)
        gate, up = (sums * shares + bias).chunk(2, -1)
        options = (self.params[name] for name in ("activation", "alpha", "limit"))
        return reference.activate(gate, up, *options).flatten(0, 1)


def beyond(values: Tensor, used: int) -> Tensor:
    """What no consumer reads, as poison."""
    out = values.clone()
    out[used:] = -1 if values.dtype == torch.int32 else torch.nan
    return out


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def run(template: str, params: Mapping[str, Any], text: str, call: Call, order: Callable[[int], list[int]]) -> Tensor:
    """What the kernel writes into memory full of NaN."""
    rows = TOKENS * TOPK
    kind, columns = (torch.bfloat16, params["intermediate"]) if call.stage == 1 else (torch.float32, params["hidden"])
    out = torch.full((params.get("splits", 1), rows, columns), torch.nan, dtype=kind)
    memory, arguments, given = Memory(), [], call.given()
    for name, _ in TEMPLATES[template].arguments(params)[:-1]:
        value = given[name]
        given_early = {"constant": name in CONSTANT, "old": params["early"] and name in LISTS}
        arguments.append(value if isinstance(value, int) else memory.place(array(value), **given_early))
    result = memory.place(array(out), writable=True)
    machine = Machine(text, memory, np.full(SHARED_BYTES, 0xFF, np.uint8))
    machine.launch(params["programs"], [*arguments, result, TOKENS], order(params["programs"]))
    return torch.from_numpy(memory.read_back(result, array(out))).view(kind).view(out.shape)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative L2; the same rows must be missing."""
    assert torch.equal(found.isnan(), wanted.isnan())
    assert wanted.isfinite().any()
    return float((found - wanted).nan_to_num().norm() / wanted.nan_to_num().norm())


@pytest.mark.parametrize("name", KERNELS)
def test_equals_the_product(assembly, name):
    template, params = KERNELS[name]
    call = Call(template, params)
    found = run(template, params, assembly[name], call, lambda programs: list(range(programs)))
    limit = 3e-3 if call.stage == 1 else 1e-6  # h is rounded to bf16
    assert relative(found.double().sum(0), call.wanted()) < limit
    backwards = run(template, params, assembly[name], call, lambda programs: list(range(programs))[::-1])
    assert torch.equal(found.view(torch.uint8), backwards.view(torch.uint8))


def test_a_missing_barrier_is_a_race(assembly):
    """Without the barriers around the gather warps read what others have yet to write; the machine must see that."""
    template, params = KERNELS["gate_up"]
    broken = assembly["gate_up"].replace("bar.sync", "// bar.sync")
    with pytest.raises(Fault, match="since the last barrier"):
        run(template, params, broken, Call(template, params), lambda programs: list(range(programs)))


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
        run(template, params, broken, Call(template, params), lambda programs: list(range(programs)))


def test_an_early_list_that_the_launch_in_front_writes_is_seen(assembly):
    """The code of an early kernel where it must not be: behind the token sort itself."""
    template, params = KERNELS["gate_up a4, early"]
    code, call = assembly["gate_up a4, early"], Call(template, params)
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
            run(template, params, broken, Call(template, params), lambda programs: list(range(programs))[::-1])


def test_a_store_out_of_place_is_seen(assembly):
    template, params = KERNELS["down"]
    broken = re.sub(r"(st\.global\.b32 \[ %rd\d+ \+) 0", r"\1 4096", assembly["down"], count=1)
    assert broken != assembly["down"]
    with pytest.raises(Fault, match="writes 4 bytes"):
        run(template, params, broken, Call(template, params), lambda programs: list(range(programs)))
