"""Whole GPU programs on the CPU: the runtime binds and launches as on a GPU, Triton's interpreter runs the kernels."""

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import moeloom
from moeloom.check import TOLERANCE, check, inputs_of, relative_l2
from moeloom.lowering.triton.template import Template
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.lowering.triton.tiles import program_groups
from moeloom.replay import Replay
from moeloom.runtime import gpu
from moeloom.runtime.artifact import read
from moeloom.runtime.bind import bind
from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Alternatives, Step
from moeloom.runtime.target import Target
from moeloom.switches import forced
from moeloom.tools.describe import describe

TARGET = "sm_90"
DTYPES = {
    "*bf16": torch.bfloat16,
    "*fp16": torch.float16,
    "*fp32": torch.float32,
    "*i32": torch.int32,
    "*i1": torch.bool,
    "*u8": torch.uint8,
}


class Interpreted(gpu.Driver):
    """A driver whose code objects are the templates they were compiled from, and whose memory is the host's.

    `launched` are the kernels in order. What their code assumes of their arguments must hold.
    """

    def __init__(self, target: Target):
        self.torch_device = torch.device("cpu")
        self.launched: list[str] = []
        self._codes = {code.sha256: (name, code) for name, code in target.codes.items()}
        self._target, self._functions = target, list(self._codes.values())

    def load(self, content: bytes, what: str) -> int:
        return self._functions.index(self._codes[hashlib.sha256(content).hexdigest()])

    def function(self, module: int, symbol: str, shared: int) -> int:
        assert self._functions[module][1].symbol == symbol
        return module

    def enter_thread(self) -> None:
        """Nothing: the host needs no context."""

    def error(self, code: int) -> str:
        return f"error {code}"

    def launch(self, function: int, *rest: Any) -> int:
        x, y, z, threads, _, _, shared, _, addresses, _ = rest
        name, code = self._functions[function]
        assert (y, z, threads, shared) == (1, 1, code.threads, code.shared)
        kernel = self._target.kernels[name]
        types = [*kernel["arguments"], "i32", *["*"] * code.scratch]
        values = [_value(kind, address) for kind, address in zip(types, addresses, strict=True)]
        count = len(kernel["arguments"])
        assert not any(values[count + 1 :])
        template, params = TEMPLATES[kernel["template"]], kernel["params"]
        if kernel["template"] == "quant_sort_sm_90":
            template, params, x = _interpretable(params, values[count], x)
        names = [argument for argument, _ in template.arguments(params)]
        arguments = dict(zip(names, values[:count], strict=True)) | {"M": values[count], "TARGET": ""}
        words = [ctypes.c_int64.from_address(address).value for address in addresses[:count]]
        assert not any(word % multiple for word, multiple in zip(words, code.divisible, strict=True))
        self.launched.append(name)
        template.function[(x, 1, 1)](**arguments, **template.constants(params))
        return 0

    def current(self) -> AbstractContextManager:
        return nullcontext()

    def stream(self) -> Any:
        return SimpleNamespace(cuda_stream=0)

    def capturing(self) -> bool:
        return False

    def synchronise(self) -> None:
        pass

    def seconds(self, launch: Callable[[], None]) -> float:
        launch()
        return 0.0


def _interpretable(params: Mapping[str, Any], m: int, programs: int) -> tuple[Template, Mapping[str, Any], int]:
    """quant_sort, of the same arguments, for its sm_90 sibling, which test_byte_kernels_run.py runs as PTX."""
    params = {**params, "rows": 1, "groups": 4, "slots": triton.next_power_of_2(params["topk"])}
    template = TEMPLATES["quant_sort"]
    width, rows = template.constants(params)["WIDTH"], m * (1 if params["stage"] == 1 else params["topk"])
    assert programs == triton.cdiv(rows * width, program_groups(params))
    return template, params, rows * triton.cdiv(width, params["groups"])


def _value(kind: str, address: int) -> Any:
    """The argument at `address`, as the interpreter takes it: a number, or a tensor that begins where it points."""
    if kind == "i32":
        return ctypes.c_int32.from_address(address).value
    word = ctypes.c_int64.from_address(address).value
    if not kind.startswith("*") or word == 0:
        return word
    dtype = DTYPES[kind]
    return torch.frombuffer((ctypes.c_uint8 * dtype.itemsize).from_address(word), dtype=dtype)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Executable, Interpreted]]:
    """interpreted(artifact, target) -> its GPU target as an executable, and the driver that runs it."""

    def opened(path: Path, name: str = TARGET) -> tuple[Executable, Interpreted]:
        monkeypatch.setattr(gpu, "_modules", {})
        manifest = read(path)
        target = manifest.targets[name]
        driver = Interpreted(target)
        device = gpu.Gpu(driver, target)
        return Executable(manifest, target, device, bind(manifest, name), poison=True), driver

    return opened


@pytest.fixture(scope="module")
def compiled(checkpoint: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """compiled(family, **options) -> an artifact for the CPU and a GPU, made once."""
    made: dict[tuple, Path] = {}

    def artifact(family: str, target: str = TARGET, **options: Any) -> Path:
        key = (family, target, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("gpu") / "a.moel"
            # Gluon kernels, which multiply streams, cannot be interpreted.
            options = {"weight_layout": "row_major"} | options
            moeloom.compile(checkpoint(family), made[key], targets=["cpu", target], **options)
        return made[key]

    return artifact


@pytest.fixture(autouse=True)
def unwatched_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter computes integers twice, to see that none overflows: where kernels are tested alone, not here."""
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))


@pytest.fixture(autouse=True)
def rounded_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts f32 off to bf16; a GPU rounds to the nearest. Quantised afterwards, that is other codes."""
    convert = interpreter._convert_float

    def rounded(given: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(given, source, target, mode)
        values = torch.from_numpy(np.ascontiguousarray(given).view(np.float32))
        return values.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(given.shape)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def test_two_stages(interpreted: Callable, compiled: Callable) -> None:
    """The fused and the split program against the reference and each other, bytes included."""
    exe, _ = interpreted(compiled("gpt_oss", activations="mxfp4"))
    figures = list(check(exe, exe.entries[:1], [3]))
    assert [figure.compared for figure in figures] == ["reference", "fused and split"]
    assert all(figure.passed for figure in figures)


def test_one_stage(interpreted: Callable, compiled: Callable) -> None:
    exe, driver = interpreted(compiled("gpt_oss", activations="bf16", stages=1))
    assert [figure.passed for figure in check(exe, exe.entries[:1], [1])] == [True]
    assert driver.launched.count("experts_one_stage_0") == 1


def test_many_tokens_read_streams(interpreted: Callable, compiled: Callable) -> None:
    """Beyond the decode kernels' range; the reference unpacks the same streams."""
    exe, driver = interpreted(compiled("gpt_oss", "gfx950", activations="bf16", weight_layout="stream"), "gfx950")
    entry = exe[exe.entries[0]]
    (limit,) = plan_limits(entry.program.steps)
    figures = list(check(exe, [entry.name], [limit + 1]))
    assert [figure.value for figure in figures if not figure.passed] == []
    assert {"gate_up_0", "down_0"} <= set(driver.launched)
    assert "decode_mfma_gate_up_0" in {launch.kernel for launch in entry.launches(limit)}


@pytest.mark.parametrize(("activations", "weight_layout"), [("mxfp4", "auto"), ("bf16", "stream")])
def test_each_plan_of_streams_has_its_products(
    interpreted: Callable, compiled: Callable, activations: str, weight_layout: str
) -> None:
    """Launches alone: the products cannot be interpreted. Prefill products take x rounded, or codes expanded."""
    artifact = compiled("gpt_oss", TARGET, activations=activations, weight_layout=weight_layout)
    exe, _ = interpreted(artifact)
    entry, kernels = exe[exe.entries[0]], exe.manifest.targets[TARGET].kernels
    limits = plan_limits(entry.program.steps)
    blocks = []
    for tokens in (*limits, limits[-1] + 1):
        launched = [kernels[launch.kernel] for launch in entry.launches(tokens)]
        (gate_up,) = [kernel for kernel in launched if kernel["template"].endswith("gate_up")]
        (down,) = [kernel for kernel in launched if kernel["template"].endswith("down")]
        block, form = gate_up["params"]["block"], "prefill" if gate_up["params"]["block"] > 16 else "decode"
        assert (gate_up["template"], down["template"]) == (f"{form}_gate_up", f"{form}_down")
        rounded = [kernel["params"]["columns"] for kernel in launched if kernel["template"] == "fake_quant"]
        given = gate_up["params"]["hidden"], gate_up["params"]["intermediate"]
        assert rounded == ([*given] if activations == "mxfp4" and form == "prefill" else [])
        assert not {kernel["template"] for kernel in launched} & {"quant", "quant_sort", "sort_scales", "expand"}
        blocks.append(block)
    assert blocks == [8, 16, 32, 144]
    (target,) = describe(exe.manifest, (), TARGET)["targets"]
    (described,) = [program for program in target["programs"] if entry.name in program["entries"]]
    rounding = {kernels[name]["template"] for name in described["rounding"]}
    products = {"decode_routed_gate_up", "decode_gate_up", "decode_down"}
    assert rounding == (products | {"fake_quant"} if activations == "mxfp4" else set())
    prequantised = [name for name in exe.entries if name.endswith("experts_prequantised")]
    assert bool(prequantised) == (activations == "mxfp4")
    for name in prequantised:
        templates = [kernels[launch.kernel]["template"] for launch in exe[name].launches(limits[-1] + 1)]
        behind = templates[templates.index("sort_scales") :]
        assert behind == ["sort_scales", "expand", "prefill_gate_up", "fake_quant", "prefill_down", "combine"]


def plan_limits(steps: Sequence[Step]) -> list[int]:
    """The largest M of each plan but the last, fewest tokens first."""
    plans = [step for step in steps if isinstance(step, Alternatives) and step.choice == "tokens"]
    return [limit for step in plans for limit in (step.max_m, *plan_limits(step.second))]


def test_prequantised_entry(interpreted: Callable, compiled: Callable) -> None:
    """Traced, so that what ran is also seen to be what inspect says."""
    exe, driver = interpreted(compiled("gpt_oss", activations="mxfp4"))
    (name,) = [entry for entry in exe.entries if entry.endswith("layers.1.mlp.experts_prequantised")]
    inputs = inputs_of(exe, name, 2, 0)
    found, ran = exe[name].trace(**inputs)
    assert relative_l2(found, *Replay(exe, name).run(inputs)) < TOLERANCE
    assert [(r.kernel, r.tiles) for r in ran] == [(s.kernel, s.tiles) for s in exe[name].launches(2)]
    assert driver.launched == [r.kernel for r in ran]


def test_any_stride_and_alignment(interpreted: Callable, compiled: Callable) -> None:
    exe, _ = interpreted(compiled("gpt_oss", activations="mxfp4"))
    entry, m = exe[exe.entries[0]], 2
    x = inputs_of(exe, entry.name, m, 0)["x"]
    wide = torch.full((m * (x.shape[1] + 7) + 1,), torch.nan, dtype=x.dtype)
    odd = wide[1:].view(m, -1)[:, 3 : 3 + x.shape[1]]
    odd.copy_(x)
    out = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype)[1:].view(x.shape)
    wanted = entry(x)
    assert entry(odd, out=out) is out and torch.equal(out, wanted)


def test_padded_tokens(interpreted: Callable, compiled: Callable) -> None:
    """Rows beyond num_tokens give 0, and the others what they give alone."""
    exe, _ = interpreted(compiled("gpt_oss", activations="mxfp4"))
    entry, m, live = exe[exe.entries[0]], 3, 2
    x = inputs_of(exe, entry.name, m, 0)["x"]
    wanted = entry(x[:live])
    x[live:] = torch.nan
    found = entry(x, num_tokens=torch.tensor([live], dtype=torch.int32))
    assert torch.equal(found[:live], wanted) and not found[live:].any()


def test_phases_of_the_token_sort(interpreted: Callable, compiled: Callable) -> None:
    """Only the plan for many tokens has both forms; where the sort is one launch, the quantiser of stage 1 is in it."""
    exe, driver = interpreted(compiled("gpt_oss", activations="mxfp4"))
    single = forced(exe, "second", lambda step: step.choice == "tokens")
    phased = forced(single, "second", lambda step: "token sort's launch" in step.reason)
    name = exe.entries[0]
    inputs = inputs_of(exe, name, 3, 0)
    wanted = single[name](**inputs)
    driver.launched.clear()
    assert torch.equal(phased[name](**inputs), wanted)
    launched = {kernel.rsplit("_", 1)[0] for kernel in driver.launched}
    assert "sort_scatter" in launched and not launched & {"sort_tokens", "sort_quant"}
    replays = Replay(single, name), Replay(phased, name)
    assert replays[0].touched_bytes(inputs) == replays[1].touched_bytes(inputs) > 0
    assert torch.equal(*replays[0].run(inputs), *replays[1].run(inputs))
