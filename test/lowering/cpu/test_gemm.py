"""The expert products on the CPU, in every tier this machine has, against float64 arithmetic on dequantised weights."""

import ctypes
import functools
import mmap
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

from moeloom.lowering.cpu import compile as cpu
from moeloom.lowering.cpu.templates import TEMPLATES
from moeloom.lowering.cpu.tiers import BEST_FIRST, Tier
from moeloom.runtime.cpu import features

TIERS = [tier for tier in BEST_FIRST if features().issuperset(tier.features)]
every_tier = pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Case:
    """A layer of random experts. `byte` bounds the weights' scale bytes."""

    hidden: int = 96
    intermediate: int = 32
    experts: int = 3
    topk: int = 2
    tokens: int = 5
    block: int = 16
    activation: str = "silu"
    alpha: float = 1.702
    limit: float = 7.0
    x: str = "bf16"
    bias: bool = True
    weighted: str = "down"
    byte: tuple[int, int] = (118, 126)
    requantize: str = "none"

    def params(self, template: str) -> dict:
        return dict(
            hidden=self.hidden,
            intermediate=self.intermediate,
            topk=self.topk,
            block=self.block,
            activation=self.activation,
            alpha=self.alpha,
            limit=self.limit,
            x="bf16" if template == "down" else self.x,
            has_bias=self.bias,
            has_weights=self.weighted == template,
            requantize=self.requantize,
            routing_weight_stage=1 if self.weighted == "gate_up" else 2,
            has_gate_up_bias=self.bias,
            has_down_bias=self.bias,
        )


class Layer:
    """The tensors of a case: weights dequantised (float64) and packed, the sorted list, x in a poisoned surrounding."""

    def __init__(self, case: Case, seed: int = 0, ids: np.ndarray | None = None):
        self.case, rng = case, np.random.default_rng(seed)
        e, h, i, k, m = case.experts, case.hidden, case.intermediate, case.topk, case.tokens
        self.rows = m * k
        self.w1, self.p1, self.s1 = weights(rng, e, 2 * i, h, case.byte, gate_up_order(i))
        self.w2, self.p2, self.s2 = weights(rng, e, h, i, case.byte, np.arange(h))
        self.b1 = rng.standard_normal((e, 2 * i)).astype(np.float32)
        self.b2 = rng.standard_normal((e, h)).astype(np.float32)
        self.packed_b1 = np.ascontiguousarray(self.b1[:, gate_up_order(i)])
        self.ids = rng.integers(0, e, (m, k)) if ids is None else ids
        self.routing = rng.random((m, k)).astype(np.float32)
        # An odd stride and an odd start, with NaN in every element that is no row of x.
        self.stride = h + 3
        surrounding = torch.full((m * self.stride + 2,), -1, dtype=torch.int16).view(DTYPES[case.x])
        self.x = surrounding[1 : 1 + m * self.stride].view(m, self.stride)[:, :h]
        self.x.copy_(torch.from_numpy(rng.standard_normal((m, h))))
        self.sort()

    def sort(self) -> None:
        case, k = self.case, self.case.topk
        ids, routing, experts = [], [], []
        for expert in range(case.experts):
            live = [(t, s) for t in range(case.tokens) for s in range(k) if self.ids[t, s] == expert]
            padding = -len(live) % case.block
            ids += [s << 24 | t for t, s in live] + [k << 24 | 0xFFFFFF] * padding  # a row far from x
            routing += [self.routing[t, s] for t, s in live] + [0.0] * padding
            experts += [expert] * ((len(live) + padding) // case.block)
        self.num_valid = np.array([len(ids), case.tokens], np.int32)
        self.blocks = len(experts) + 1
        poison = [-1] * case.block
        self.sorted_ids = np.concatenate([np.array(ids, np.uint32).view(np.int32), np.array(poison, np.int32)])
        self.sorted_weights = np.array(routing + [np.nan] * case.block, np.float32)
        self.expert_ids = np.array([*experts, -1], np.int32)

    def gate_up(self, tier: Tier) -> torch.Tensor:
        """h [R, I] through the kernel."""
        case = self.case
        h = poisoned((self.rows, case.intermediate), torch.bfloat16)
        operands = [self.x, self.stride, self.sorted_ids, self.expert_ids, self.num_valid]
        operands += [self.sorted_weights] * (case.weighted == "gate_up") + [self.p1, self.s1]
        operands += [self.packed_b1] * case.bias + [h, case.tokens]
        run(tier, "gate_up", case, operands, self.blocks * case.intermediate // 16)
        return h

    def down(self, tier: Tier, h: torch.Tensor) -> torch.Tensor:
        """The rows [R, H] through the kernel."""
        case = self.case
        out = poisoned((self.rows, case.hidden), torch.float32)
        operands = [h, self.sorted_ids, self.expert_ids, self.num_valid]
        operands += [self.sorted_weights] * (case.weighted == "down") + [self.p2, self.s2]
        operands += [self.b2] * case.bias + [out, case.tokens]
        run(tier, "down", case, operands, self.blocks * case.hidden // 16)
        return out

    def one_stage(self, tier: Tier) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows [R, H] and the scratch h through the one kernel."""
        case = self.case
        out = poisoned((self.rows, case.hidden), torch.float32)
        h = poisoned((self.rows, case.intermediate), torch.bfloat16)
        operands = [self.x, self.stride, self.sorted_ids, self.expert_ids, self.num_valid, self.sorted_weights]
        operands += [self.p1, self.s1, *[self.packed_b1] * case.bias, self.p2, self.s2, *[self.b2] * case.bias]
        run(tier, "experts_one_stage", case, [*operands, out, h, case.tokens], self.blocks)
        return out, h

    def expected_h(self) -> np.ndarray:
        """float64, not rounded."""
        case, x = self.case, self.x.double().numpy()
        out = np.full((self.rows, case.intermediate), np.nan)
        for token, slot, expert in self.routed():
            product = self.w1[expert] @ x[token]
            if case.weighted == "gate_up":
                product = product * self.routing[token, slot]
            product = torch.from_numpy(product + self.b1[expert] * case.bias)
            gate, up = product[: case.intermediate], product[case.intermediate :]
            out[token * case.topk + slot] = activate(case, gate, up).numpy()
        return out

    def expected_rows(self, h: torch.Tensor) -> np.ndarray:
        case, h64 = self.case, h.double().numpy()
        out = np.full((self.rows, case.hidden), np.nan)
        for token, slot, expert in self.routed():
            row = self.w2[expert] @ h64[token * case.topk + slot] + self.b2[expert] * case.bias
            out[token * case.topk + slot] = row * (self.routing[token, slot] if case.weighted == "down" else 1)
        return out

    def routed(self) -> list[tuple[int, int, int]]:
        return [(t, s, int(e)) for (t, s), e in np.ndenumerate(self.ids) if e >= 0]


def activate(case: Case, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if case.activation == "silu":
        return torch.nn.functional.silu(gate) * up
    if case.activation == "swiglu":
        gate, up = gate.clamp(max=case.limit), up.clamp(-case.limit, case.limit)
        return (up + 1) * gate * torch.sigmoid(case.alpha * gate)
    approximate = {"gelu": "none", "gelu_tanh": "tanh"}[case.activation]
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


def gate_up_order(intermediate: int) -> np.ndarray:
    """Packed row -> row of the stacked [gate, up]: 16 gates, then the ups of the same outputs."""
    outputs = np.arange(intermediate).reshape(-1, 1, 16)
    return np.concatenate([outputs, outputs + intermediate], 1).reshape(-1)


def weights(rng, e: int, n: int, k: int, byte: tuple[int, int], order: np.ndarray):
    """Random [e, n, k] weights: float64 in plain row order; payload and scales packed `n16k32` with rows in `order`."""
    codes = rng.integers(0, 16, (e, n, k), dtype=np.uint8)
    scales = rng.integers(byte[0], byte[1] + 1, (e, n, k // 32), dtype=np.uint8)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    plain = values * np.repeat(scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64), 32, axis=2)
    return plain, pack_payload(codes[:, order]), pack_scales(scales[:, order])


def pack_payload(codes: np.ndarray) -> np.ndarray:
    """[E, N, K] codes -> bytes [E, N/16, K/32, 4, 16, 4]; within 8 columns nibbles are 0 2 4 6, then 1 3 5 7."""
    e, n, k = codes.shape
    tiles = codes.reshape(e, n // 16, 16, k // 32, 4, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return np.ascontiguousarray((tiles[..., ::2] | tiles[..., 1::2] << 4).transpose(0, 1, 3, 4, 2, 5))


def pack_scales(scales: np.ndarray) -> np.ndarray:
    """[E, N, K/32] -> [E, N/16, K/32, 16]."""
    e, n, groups = scales.shape
    return np.ascontiguousarray(scales.reshape(e, n // 16, 16, groups).swapaxes(2, 3))


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full((*shape[:-1], shape[-1] * dtype.itemsize), 0xFF, dtype=torch.uint8).view(dtype)


def library(tier: Tier, template: str, case: Case) -> ctypes.CDLL:
    params = case.params(template)
    if template == "down":
        params = {name: value for name, value in params.items() if name not in ("activation", "alpha", "limit")}
    return compiled(tier, template, tuple(sorted(params.items())))


@functools.cache
def compiled(tier: Tier, template: str, params: tuple) -> ctypes.CDLL:
    path = Path(tempfile.mkdtemp()) / "kernel.so"
    cpu.write_library({"kernel": (TEMPLATES[template], dict(params))}, tier, path)
    undefined = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
    assert set(re.findall(r" U (\w+)", undefined.stdout)) == {"sched_yield"}
    loaded = ctypes.CDLL(str(path))
    loaded.kernel.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    return loaded


def run(tier: Tier, template: str, case: Case, operands: list, tiles: int) -> None:
    slots = [
        v.data_ptr() if isinstance(v, torch.Tensor) else v.ctypes.data if isinstance(v, np.ndarray) else v
        for v in operands
    ]
    args = np.array(slots, np.int64)
    kernel = library(tier, template, case).kernel
    kernel(args.ctypes.data, 0, tiles)


def off(got: torch.Tensor, want: np.ndarray) -> float:
    """Relative L2; rows without an expert must be untouched (still poison)."""
    got = got.double().numpy()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    live = ~np.isnan(want)
    return float(np.linalg.norm(got[live] - want[live]) / np.linalg.norm(want[live]))


def check(case: Case, tier: Tier, **layer_options) -> None:
    layer = Layer(case, **layer_options)
    h = layer.gate_up(tier)
    assert off(h, layer.expected_h()) < 5e-3
    assert off(layer.down(tier, h), layer.expected_rows(h)) < 1e-5


# Each compiles once a tier, so each covers several things.
PLAIN = Case()
CASES = [
    PLAIN,
    Case(hidden=640, intermediate=96, topk=1, block=64, tokens=40, activation="swiglu", weighted="gate_up"),
    Case(hidden=32, experts=5, topk=16, block=128, activation="gelu", x="f16", weighted=""),
    Case(hidden=384, intermediate=640, topk=3, block=32, activation="gelu_tanh"),
]


@every_tier
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.activation}-{case.hidden}x{case.intermediate}")
def test_products(tier, case):
    check(case, tier)


@every_tier
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.activation)
def test_activations_to_the_last_place_of_bf16(tier, case):
    """With x = 0 the gates and ups are the biases, over the whole range that matters."""
    layer = Layer(replace(case, experts=40, tokens=40), ids=np.arange(40 * case.topk).reshape(40, -1) % 40)
    layer.x.zero_()
    rng = np.random.default_rng(1)
    layer.b1[:] = rng.uniform(-12, 12, layer.b1.shape)
    layer.packed_b1 = np.ascontiguousarray(layer.b1[:, gate_up_order(case.intermediate)])
    got, want = layer.gate_up(tier), torch.from_numpy(layer.expected_h())
    assert torch.allclose(got.double(), want, rtol=2.0**-7.9, atol=2e-5)
    above_tails = want.abs() > 0.05
    assert (got == want.bfloat16())[above_tails].double().mean() > 0.99


@every_tier
def test_any_number_of_rows_of_an_expert(tier):
    """Every size of token tile, full and not, and several of them in a block."""
    for tokens in (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 31, 33, 48, 64):
        check(replace(CASES[1], tokens=tokens, experts=1), tier)


@every_tier
def test_tokens_without_expert_get_no_row(tier):
    ids = np.array([[0, 2], [-1, 2], [-1, -1], [2, 2], [0, -1]])
    check(PLAIN, tier, ids=ids)


@pytest.mark.parametrize("tier", TIERS[:1], ids=lambda tier: tier.name)
def test_gpt_oss_width(tier):
    check(Case(hidden=2880, intermediate=288, experts=2, topk=4, block=32, activation="swiglu"), tier)


@every_tier
@pytest.mark.parametrize("flush", [False, True], ids=["", "flushed"])
@pytest.mark.parametrize(
    ("byte", "magnitude"), [((0, 0), 2.0**30), ((0, 3), 2.0**20), ((126, 130), 1.0), ((251, 254), 2.0**-30)]
)
def test_extreme_scales(tier, byte, magnitude, flush):
    """2^-127 is subnormal, 2^127 nearly overflows; neither costs precision, whatever the thread does to subnormals."""
    layer = Layer(replace(PLAIN, byte=byte))
    layer.b2 *= 0
    h = (torch.randn(layer.rows, PLAIN.intermediate, generator=torch.Generator().manual_seed(0)) * magnitude).bfloat16()
    assert torch.set_flush_denormal(flush)
    try:
        rows = layer.down(tier, h)
    finally:
        torch.set_flush_denormal(False)
    assert off(rows, layer.expected_rows(h)) < 1e-5


@every_tier
@pytest.mark.parametrize("exponent", [-104, -60, 60, 120])
def test_any_magnitude_of_x(tier, exponent):
    """The scales bring the result back to where f32 is precise."""
    layer = Layer(replace(PLAIN, byte=(127 - exponent, 127 - exponent)))
    layer.b2 *= 0
    h = torch.randn(layer.rows, PLAIN.intermediate, generator=torch.Generator().manual_seed(0)).double()
    h = (h * 2.0**exponent).bfloat16()
    assert off(layer.down(tier, h), layer.expected_rows(h)) < 1e-5


@every_tier
def test_a_wide_range_within_a_group_of_x(tier):
    """What is far below the greatest value of its group may lose bits, but not more than 2^-20 of that value."""
    layer = Layer(replace(PLAIN, intermediate=96, byte=(127, 127), bias=False, weighted=""))
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-30, 1, (layer.rows, 96), generator=generator)
    h = (torch.randn(layer.rows, 96, generator=generator) * 2.0**exponents).bfloat16()
    difference = np.abs(layer.down(tier, h).double().numpy() - layer.expected_rows(h))
    greatest = h.double().abs().reshape(layer.rows, 3, 32).amax(2).numpy()
    experts = layer.ids.reshape(-1)
    magnitudes = np.abs(layer.w2).reshape(*layer.w2.shape[:2], 3, 32).sum(3)[experts]
    assert (difference <= 2.0**-20 * np.einsum("rng,rg->rn", magnitudes, greatest)).all()


@every_tier
def test_nan_and_inf_in_x_stay_in_their_row(tier):
    layer = Layer(PLAIN)
    h = torch.randn(layer.rows, PLAIN.intermediate, generator=torch.Generator().manual_seed(0)).bfloat16()
    clean = layer.down(tier, h)
    h[3, 5], h[4, 7], h[5, 9] = float("nan"), float("inf"), -float("inf")
    with np.errstate(invalid="ignore"):
        got, want = layer.down(tier, h), layer.expected_rows(h)
    assert np.array_equal(np.isnan(want), torch.isnan(got).numpy())
    assert np.array_equal(want[4:6], got[4:6].double().numpy(), equal_nan=True)
    others = [row for row in range(layer.rows) if row not in (3, 4, 5)]
    assert torch.equal(got[others], clean[others])


@every_tier
def test_scale_255_is_nan_in_its_row_only(tier):
    layer = Layer(PLAIN)
    h = torch.ones(layer.rows, PLAIN.intermediate, dtype=torch.bfloat16)
    want = layer.expected_rows(h)
    layer.s2[:, 1, 0, 3] = 255
    want[:, 19] = np.nan
    assert off(layer.down(tier, h), want) < 1e-5


@every_tier
def test_rows_of_x_more_than_2_31_elements_apart(tier):
    layer = Layer(replace(PLAIN, tokens=2))
    near = layer.gate_up(tier)
    layer.stride = (1 << 31) + 1
    memory = mmap.mmap(-1, 2 * (layer.stride + PLAIN.hidden), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    far = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided((2, PLAIN.hidden), (layer.stride, 1))
    layer.x = far.copy_(layer.x)
    assert torch.equal(layer.gate_up(tier), near)


@every_tier
def test_one_stage_equals_two(tier):
    layer = Layer(PLAIN)
    rows, scratch = layer.one_stage(tier)
    h = layer.gate_up(tier)
    assert torch.equal(scratch, h)
    assert torch.equal(rows, layer.down(tier, h))


@every_tier
def test_one_stage_requantises_like_torchao(tier):
    """Without biases, and with the routing weight in stage 1."""
    case = Case(intermediate=96, requantize="rceil", weighted="gate_up", bias=False)
    layer = Layer(case)
    rows, scratch = layer.one_stage(tier)
    h = layer.gate_up(tier)
    assert off(h, layer.expected_h()) < 5e-3
    want = requantised(h, case.requantize)
    assert torch.equal(scratch, want)
    assert off(rows, layer.expected_rows(want)) < 1e-5


def requantised(h: torch.Tensor, mode: str) -> torch.Tensor:
    """h through MXFP4 and back by torchao."""
    rounding = ScaleCalculationMode(mode)
    scale, payload = to_mx(h, torch.float4_e2m1fn_x2, 32, rounding)
    return to_dtype(payload, scale, torch.float4_e2m1fn_x2, 32, h.dtype)
