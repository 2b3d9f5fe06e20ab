"""The decode kernels for CDNA GPUs, judged by their code and run by an interpreter of it: nothing here was timed."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moeloom.lowering.jobs import CompileError
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES, SIMDS
from moeloom.lowering.triton.assembly import instructions, matrix_loop
from moeloom.lowering.triton.build import ASSEMBLY, FACTS
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.runtime import reference
from moeloom.runtime.pack_mfma import pack_mfma

TARGETS = ("gfx950", "gfx942")
GPT_OSS = {
    "hidden": 2880,
    "intermediate": 2880,
    "topk": 4,
    "block": 16,
    "x": "bf16",
    "layout": "none",
    "has_bias": True,
    "has_weights": False,
    "activation": "swiglu",
    "alpha": 1.702,
    "limit": 7.0,
    "requantize": "none",
    "num_stages": 1,
    "ring": 3,
    "waves": 2,
    "programs": 2048,
    "num_warps": 1,
}
DOWN = GPT_OSS | {"has_weights": True, "splits": 1}
A4 = {"x": "f4E2M1FN", "layout": "tiled_32x8"}
KERNELS = {
    "gate_up": ("decode_mfma_gate_up", GPT_OSS),
    "gate_up_a4": ("decode_mfma_gate_up", GPT_OSS | A4),
    "down": ("decode_mfma_down", DOWN),
}
EXPERTS, TOPK, TOKENS, PROGRAMS = 3, 2, 21, 3
SMALL = {"topk": TOPK, "programs": PROGRAMS, "ring": 2}
"""Four steps and a quarter of K, of gate_up two tiles and a quarter of outputs, of down a tile and a quarter; a program
takes units of several blocks."""
RUN = {
    "run_gate_up": ("decode_mfma_gate_up", GPT_OSS | SMALL | {"hidden": 544, "intermediate": 72, "has_weights": True}),
    "run_gate_up_a4": ("decode_mfma_gate_up", GPT_OSS | SMALL | A4 | {"hidden": 544, "intermediate": 72}),
    "run_down": ("decode_mfma_down", DOWN | SMALL | {"hidden": 80, "intermediate": 544, "splits": 2}),
    "run_down_a4": ("decode_mfma_down", DOWN | SMALL | A4 | {"hidden": 80, "intermediate": 544, "layout": "row_major"}),
}
STEP_BYTES = 4096  # of payload
MATRIX = {
    ("gfx950", "bf16"): ("v_mfma_f32_16x16x32_bf16", 16),
    ("gfx950", "f4E2M1FN"): ("v_mfma_scale_f32_16x16x128_f8f6f4", 4),
    ("gfx942", "bf16"): ("v_mfma_f32_16x16x16_bf16", 32),
    ("gfx942", "f4E2M1FN"): ("v_mfma_f32_16x16x16_bf16", 32),
}
"""The instruction of a target and a form of x, and how many of them are a step."""
MOST_INSTRUCTIONS = {
    ("gfx950", "bf16"): 14,
    ("gfx950", "f4E2M1FN"): 4,
    ("gfx942", "bf16"): 47,
    ("gfx942", "f4E2M1FN"): 54,
}
"""A wave, for 512 bytes of codes. docs/amd.md has the figures."""


@pytest.fixture(scope="module", params=TARGETS)
def target(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def compiled(target, code_cache) -> dict[str, Path]:
    architecture = ARCHITECTURES[target]
    programs = {"programs": architecture.processors * SIMDS * GPT_OSS["waves"]}
    whole = {name: (template, params | programs) for name, (template, params) in KERNELS.items()}
    wanted = (whole | RUN).items()
    kernels = {name: {"template": template, "params": params} for name, (template, params) in wanted}
    return build.compile_kernels(kernels, architecture, code_cache, lambda *_: None)


@pytest.fixture(scope="module")
def wave():
    """amdgcn_wave.py, which lies beside this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield import_module("amdgcn_wave")


def all_facts(compiled: dict[str, Path]) -> list[tuple[str, dict]]:
    return [(name, json.loads((folder / FACTS).read_text())) for name, folder in compiled.items()]


def test_keeps_everything_in_registers(compiled):
    for name, facts in all_facts(compiled):
        assert (facts["spills"], facts["scalar_spills"], facts["stack"], facts["shared"]) == (0, 0, 0, 0), name
        assert facts["registers"] <= 256, name
        assert facts["occupancy"] >= GPT_OSS["waves"], name
        assert facts["threads"] == 64, name


@pytest.mark.parametrize("name", KERNELS)
def test_multiplies_what_it_loaded(compiled, target, name):
    """By the narrowest MFMA that there is, and by no other; nothing goes through LDS or from lane to lane."""
    found = instructions((compiled[name] / ASSEMBLY).read_text())
    assert {each for each in found if each.startswith("v_mfma")} == {MATRIX[target, KERNELS[name][1]["x"]][0]}
    assert not [each for each in found if each.startswith("ds_") or "dpp" in each or "permlane" in each]


@pytest.mark.parametrize("name", KERNELS)
def test_takes_few_instructions(compiled, target, name):
    loop = matrix_loop((compiled[name] / ASSEMBLY).read_text())
    form = target, KERNELS[name][1]["x"]
    instruction, each = MATRIX[form]
    count = sum(line.startswith(instruction) for line in loop)
    assert count == GPT_OSS["ring"] * each
    assert len(loop) * 512 / (GPT_OSS["ring"] * STEP_BYTES) <= MOST_INSTRUCTIONS[form]
    assert not [line for line in loop if line.startswith(("v_mov", "v_accvgpr", "scratch", "v_readlane"))]


@pytest.mark.parametrize(
    ("name", "label"), [("gate_up", "gate_up A16"), ("gate_up_a4", "gate_up A4"), ("down", "down A16")]
)
def test_the_page_has_its_figures(compiled, target, name, label):
    """docs/amd.md: `python benchmarks/decode_mfma_code.py` prints the table anew."""
    page = (Path(__file__).parents[3] / "docs/amd.md").read_text()
    (row,) = (line.split(" | ") for line in page.splitlines() if line.startswith(f"| {target} | {label} |"))
    facts = json.loads((compiled[name] / FACTS).read_text())
    cost = len(matrix_loop((compiled[name] / ASSEMBLY).read_text())) * 512 / (GPT_OSS["ring"] * STEP_BYTES)
    assert row[2:5] == [str(facts["registers"]), str(facts["occupancy"]), f"{cost:.1f}"]


@pytest.mark.parametrize("name", KERNELS)
def test_loads_run_far_ahead(compiled, name):
    """Codes and x by 16 bytes a lane; while one load is waited for, half of the ring's are under way."""
    loop = matrix_loop((compiled[name] / ASSEMBLY).read_text())
    quantised = KERNELS[name][1]["x"] == "f4E2M1FN"
    loads = [line.partition(" ")[0] for line in loop if "_load_" in line]
    wide = {"buffer_load_dwordx4": 4, "global_load_dwordx4": 1 if quantised else 4}
    narrow = {"buffer_load_dword": 1, **({"global_load_ubyte": 1} if quantised else {})}  # scales
    assert {each: loads.count(each) / GPT_OSS["ring"] for each in set(loads)} == wide | narrow
    waits = [int(line.partition("vmcnt(")[2].partition(")")[0]) for line in loop if "vmcnt" in line]
    assert min(waits) >= len(loads) / 2


def mx(*shape: int) -> tuple[Tensor, Tensor]:
    """Codes and scales so near to one another that sums in f32 are exact."""
    *rows, columns = shape
    codes = torch.randint(256, (*rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(120, 124, (*rows, columns // 32), dtype=torch.uint8)


class Case:
    """Operands of a kernel, poison where nothing is defined, and what it must compute."""

    def __init__(self, params: dict, stage: int) -> None:
        torch.manual_seed(0)
        self.params, self.stage = params, stage
        self.columns = params["hidden"] if stage == 1 else params["intermediate"]
        self.outputs = 2 * params["intermediate"] if stage == 1 else params["hidden"]
        ids = torch.randint(EXPERTS, (TOKENS, TOPK), dtype=torch.int32)
        ids[0] = -1
        self.sort = reference.sort_tokens(ids, torch.randint(1, 5, (TOKENS, TOPK)).float(), EXPERTS, params["block"])
        self.codes, self.scales = mx(EXPERTS, self.outputs, self.columns)
        self.bias = torch.randint(-8, 9, (EXPERTS, self.outputs)).float()
        rows = TOKENS if stage == 1 else TOKENS * TOPK
        named = reference.defined_payload(self.sort[0], self.sort[3], stage, TOPK, rows)
        if params["x"] == "bf16":
            self.values = torch.randint(-8, 9, (rows, self.columns)).double()
            if stage == 2:
                self.values[5, -1] = torch.inf  # which columns past the last one must not repeat, even times zero
            self.x = self.values.bfloat16()
            self.x[~named] = torch.nan
            self.x_scales = []
        else:
            self.x, scales = mx(rows, self.columns)
            self.values = reference.dequantise(self.x, scales).double()
            self.x[~named] = 0xFF
            sids, nv = self.sort[0], self.sort[3]
            self.x_scales = [reference.sort_scales(scales, sids, nv, stage, TOPK, params["layout"])]

    def operands(self) -> list[Tensor | int]:
        order = "plain" if self.stage == 2 else "gate_up_concatenated"
        streams = [pack_mfma(codes, scales, order) for codes, scales in zip(self.codes, self.scales, strict=True)]
        stride = [self.x.stride(0)] if self.stage == 1 else []
        shares = [self.sort[1]] if self.params["has_weights"] else []
        sids, _, eids, nv = self.sort
        return [self.x, *stride, *self.x_scales, sids, eids, nv, *shares, torch.stack(streams), self.bias]

    def rows(self) -> list[tuple[int, Tensor]]:
        """(row token*k+slot, the sums with bias and weight) of every live sorted row."""
        sids, shares, eids, nv = self.sort
        weight = reference.dequantise(self.codes.flatten(0, 1), self.scales.flatten(0, 1)).double()
        weight = weight.view(EXPERTS, self.outputs, self.columns)
        found = []
        for place in range(int(nv[0])):
            entry = int(sids[place]) & 0xFFFFFFFF
            slot, token = entry >> 24, entry & 0xFFFFFF
            if slot == TOPK:
                continue
            expert, row = int(eids[place // self.params["block"]]), token * TOPK + slot
            sums = weight[expert] @ self.values[token if self.stage == 1 else row]
            share = float(shares[place]) if self.params["has_weights"] else 1.0
            bias = self.bias[expert].double()
            found.append((row, sums * share + bias if self.stage == 1 else (sums + bias) * share))
        return found


def run(wave, folder: Path, operands: list[Tensor | int], out: np.ndarray) -> np.ndarray:
    """`out` as the programs of a kernel leave it."""
    memory = wave.Memory()
    arguments = np.zeros(32, np.uint64)
    for number, operand in enumerate(operands):
        if isinstance(operand, Tensor):
            flat = operand.contiguous()
            operand = memory.place((flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy())
        arguments[number] = operand
    arguments[len(operands)], arguments[len(operands) + 1] = memory.place(out), TOKENS
    interpreter = wave.Wave((folder / ASSEMBLY).read_text(), memory)
    for program in range(PROGRAMS):
        interpreter.run(arguments, program)
    return memory.read(int(arguments[len(operands)]), out)


@pytest.mark.parametrize("name", ["run_down", "run_down_a4"])
def test_down_computes_exactly(compiled, wave, name):
    params = RUN[name][1]
    case = Case(params, 2)
    out = np.full((params["splits"], TOKENS * TOPK, params["hidden"]), np.nan, np.float32)
    found = run(wave, compiled[name], case.operands(), out)
    wanted = np.full(out.shape[1:], np.nan)
    for row, sums in case.rows():
        wanted[row] = sums
    assert np.isfinite(wanted).mean() > 0.9
    assert np.array_equal(found.astype(np.float64).sum(0), wanted, equal_nan=True)


@pytest.mark.parametrize("name", ["run_gate_up", "run_gate_up_a4"])
def test_gate_up_computes(compiled, wave, name):
    params = RUN[name][1]
    case, outputs = Case(params, 1), params["intermediate"]
    found = run(wave, compiled[name], case.operands(), np.zeros((TOKENS * TOPK, outputs), np.uint16))
    found = torch.from_numpy(found.view(np.int16)).view(torch.bfloat16).double()
    wanted = torch.zeros_like(found)
    for row, sums in case.rows():
        gate, up = sums[:outputs].clamp(max=params["limit"]), sums[outputs:].clamp(-params["limit"], params["limit"])
        wanted[row] = (up + 1) * gate * torch.sigmoid(params["alpha"] * gate)
    assert wanted.count_nonzero() > 0.9 * wanted.numel()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-6)


LOAD = "s_load_dwordx2 s[4:5], s[0:1], 0x0\nv_mov_b32_e32 v1, 0\nglobal_load_dword v2, v1, s[4:5]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LOAD}\nv_mov_b32_e32 v3, v2", "v2 is read while a load of it is under way"),
        (f"{LOAD} offset:4096", "outside of all buffers"),
        ("v_mov_b32_e32 v4, v0\nv_mfma_f32_16x16x16_bf16 v[8:11], v[4:5], v[6:7], 0", "is not there yet"),
    ],
)
def test_the_interpreter_refuses_what_hardware_gets_wrong(wave, text, message):
    memory = wave.Memory()
    arguments = np.array([memory.place(np.zeros(16, np.uint32))], np.uint64)
    interpreter = wave.Wave(f".amdhsa_user_sgpr_count 4\n{text}\ns_endpgm\n", memory)
    with pytest.raises(AssertionError, match=message):
        interpreter.run(arguments, 0)


def test_the_stream_is_one_operand():
    types = dict(TEMPLATES["decode_mfma_gate_up"].arguments(GPT_OSS))
    assert types["weight"] == "*i32"
    assert list(types) == [
        "x", "x_stride", "sorted_ids", "expert_ids", "num_valid", "weight", "bias", "h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "changed", "message"),
    [
        ("decode_mfma_gate_up", {"block": 8}, "sort blocks of 16 rows"),
        ("decode_mfma_gate_up", {"x": "f16"}, "not of 16 rows of f16: use gate_up and down"),
        ("decode_mfma_down", {"splits": 3, "intermediate": 512}, "4 steps of weights cannot be split 3 times"),
    ],
)
def test_refuses_what_it_cannot_do(template, changed, message):
    with pytest.raises(CompileError, match=message):
        TEMPLATES[template].constants(DOWN | changed)
