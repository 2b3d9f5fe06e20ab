"""gate_up and down against the reference, section 5 of the contract."""

import pytest
import torch
from torch import Tensor

from moeloom.runtime import reference

EXPERTS, TOPK, TOKENS, HIDDEN, INTERMEDIATE = 4, 2, 9, 96, 96
TILE = {"block_n": 64, "block_k": 64}  # neither divides the sizes
TOLERANCE = 1e-2  # the interpreter truncates f32 to bf16
ACTIVATIONS = ("silu", "swiglu", "gelu", "gelu_tanh")


def mx_weight(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Codes u8 [E, rows, columns/2] and scales u8 [E, rows, columns/32]."""
    codes = torch.randint(256, (EXPERTS, rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(118, 123, (EXPERTS, rows, columns // 32), dtype=torch.uint8)


class Routed:
    """Random ids sorted into blocks, everything undefined poisoned, as `reference.sort_tokens` leaves it."""

    def __init__(self, block: int, tokens: int = TOKENS, topk: int = TOPK) -> None:
        ids = torch.randint(EXPERTS - 1, (tokens, topk), dtype=torch.int32)  # the last expert has no token
        ids[0] = -1
        self.sort = reference.sort_tokens(ids, torch.rand(tokens, topk) + 0.5, EXPERTS, block)
        self.ids, self.weights, self.expert_ids, self.num_valid = self.sort
        self.valid, self.block, self.tokens, self.topk = int(self.num_valid[0]), block, tokens, topk
        self.blocks = len(self.expert_ids)

    def rows(self, stage: int) -> list[tuple[int, int, int, float]]:
        """(source row of the stage, routed row, expert, routing weight) of each live sorted row."""
        source, routed = (reference.source_rows(self.ids, self.num_valid, s, self.topk).tolist() for s in (stage, 2))
        return [
            (source[r], routed[r], int(self.expert_ids[r // self.block]), float(self.weights[r]))
            for r in range(self.valid)
            if routed[r] >= 0
        ]

    def listed(self, has_weights: bool) -> list[Tensor]:
        return [self.ids, self.expert_ids, self.num_valid, *([self.weights] if has_weights else [])]

    def params(self, x: str, layout: str = "none") -> dict:
        sizes = {"hidden": HIDDEN, "intermediate": INTERMEDIATE, "topk": self.topk, "block": self.block}
        return {**sizes, "x": x, "layout": layout, **TILE}


def activations(routed: Routed, stage: int, columns: int, x: str, layout: str = "none"):
    """Operands, and the values float64 they stand for; rows no live sorted row names are NaN (0xFF)."""
    rows = routed.tokens if stage == 1 else routed.tokens * routed.topk
    named = reference.defined_payload(routed.ids, routed.num_valid, stage, routed.topk, rows)
    values = torch.randn(rows, columns).to(torch.float16 if x == "f16" else torch.bfloat16)
    if x != "f4E2M1FN":
        values[~named] = torch.nan
        return [values], values.double()
    codes, scales = reference.quantise(values, "even")
    codes[~named] = 0xFF
    placed = reference.sort_scales(scales, routed.ids, routed.num_valid, stage, routed.topk, layout)
    return [codes, placed], reference.dequantise(codes, scales)


def strided(x: list[Tensor]) -> list[Tensor | tuple[Tensor, int]]:
    """The first operand with its row stride, in rows that are farther apart than long."""
    wide = torch.full((x[0].shape[0], x[0].shape[1] + 3), 0xFF, dtype=torch.uint8)
    wide = wide if x[0].dtype == torch.uint8 else torch.full_like(wide, torch.nan, dtype=x[0].dtype)
    wide[:, : x[0].shape[1]] = x[0]
    return [(wide, wide.stride(0)), *x[1:]]


def gate_up_rows(routed: Routed, x: Tensor, weight, bias, has_weights: bool, **activation) -> Tensor:
    """h bf16 [R, I]; rows without a live sorted row stay NaN."""
    wanted = torch.full((routed.tokens * routed.topk, INTERMEDIATE), torch.nan, dtype=torch.bfloat16)
    matrices = reference.dequantise(*weight)
    for source, row, expert, share in routed.rows(1):
        both = matrices[expert] @ x[source] * (share if has_weights else 1)
        both = both + bias[expert].double() if bias is not None else both
        wanted[row] = reference.activate(*both.chunk(2), **activation).bfloat16()
    return wanted


def assert_same_rows(found: Tensor, wanted: Tensor, relative_l2) -> None:
    """Live rows agree, and no other row was written."""
    untouched = wanted.isnan().all(-1)
    assert found[untouched].isnan().all()
    assert relative_l2(found[~untouched], wanted[~untouched]) < TOLERANCE


CASES = [
    pytest.param("bf16", "none", 16, "swiglu", True, False, id="bf16"),
    pytest.param("f16", "none", 16, "silu", False, False, id="f16"),
    pytest.param("bf16", "none", 32, "gelu", True, True, id="weights in stage 1"),
    pytest.param("f4E2M1FN", "tiled_32x8", 16, "gelu_tanh", False, False, id="tiled codes"),
    pytest.param("f4E2M1FN", "tiled_32x8", 32, "swiglu", True, True, id="tiled codes, 32 rows"),
    pytest.param("f4E2M1FN", "row_major", 16, "swiglu", True, False, id="row-major codes"),
]


@pytest.mark.parametrize("target", ["", "sm_90"])
@pytest.mark.parametrize(("x", "layout", "block", "name", "has_bias", "has_weights"), CASES)
def test_gate_up(interpret, relative_l2, x, layout, block, name, has_bias, has_weights, target):
    torch.manual_seed(0)
    routed = Routed(block)
    operands, values = activations(routed, 1, HIDDEN, x, layout)
    weight = mx_weight(2 * INTERMEDIATE, HIDDEN)
    bias = torch.randn(EXPERTS, 2 * INTERMEDIATE) if has_bias else None
    activation = {"activation": name, "alpha": 1.702, "limit": 3.0}
    params = routed.params(x, layout) | activation | {"has_bias": has_bias, "has_weights": has_weights}
    wanted = gate_up_rows(routed, values, weight, bias, has_weights, **activation)
    h = torch.full_like(wanted, torch.nan)
    given = [*strided(operands), *routed.listed(has_weights), *weight, *([bias] if has_bias else [])]
    tiles = routed.blocks * -(-INTERMEDIATE // TILE["block_n"])
    interpret("gate_up", params | {"requantize": "none"}, given, [h], routed.tokens, tiles, target)
    assert_same_rows(h, wanted, relative_l2)


def test_f16_rows_lose_no_bits(interpret, relative_l2):
    """Sums whose high parts cancel: all that is left is what bf16 could not hold."""
    torch.manual_seed(3)
    routed = Routed(16)
    x = torch.tensor([1 + 2**-9, -1.0], dtype=torch.float16).repeat(routed.tokens, HIDDEN // 2)
    codes, scales = mx_weight(2 * INTERMEDIATE, HIDDEN)
    weight = torch.full_like(codes, 0x22), torch.full_like(scales, 127)  # ones
    activation = {"activation": "silu", "alpha": 0.0, "limit": 0.0}
    params = routed.params("f16") | activation | {"has_bias": False, "has_weights": False, "requantize": "none"}
    wanted = gate_up_rows(routed, x.double(), weight, None, False, **activation)
    h = torch.full_like(wanted, torch.nan)
    tiles = routed.blocks * -(-INTERMEDIATE // TILE["block_n"])
    interpret("gate_up", params, [(x, HIDDEN), *routed.listed(False), *weight], [h], routed.tokens, tiles)
    assert_same_rows(h, wanted, relative_l2)


@pytest.mark.parametrize("layout", ["tiled_32x8", "row_major"])
@pytest.mark.parametrize(("block", "mode"), [(16, "even"), (32, "rceil")])
def test_requantised_gate_up(interpret, block, mode, layout):
    """Byte for byte what quantising h and sorting its scales gives, padding included."""
    torch.manual_seed(2)
    routed = Routed(block)
    assert routed.valid % 32 == block % 32, "the last 16 rows of the scales must be padding in one case"
    operands, _ = activations(routed, 1, HIDDEN, "f4E2M1FN", layout)
    given = [*strided(operands), *routed.listed(False), *mx_weight(2 * INTERMEDIATE, HIDDEN)]
    params = routed.params("f4E2M1FN", layout) | {"has_bias": False, "has_weights": False}
    params |= {"activation": "silu", "alpha": 0.0, "limit": 0.0}
    tiles = routed.blocks * -(-INTERMEDIATE // TILE["block_n"])
    rows = routed.tokens * routed.topk
    h = torch.full((rows, INTERMEDIATE), torch.nan, dtype=torch.bfloat16)
    interpret("gate_up", params | {"requantize": "none"}, given, [h], routed.tokens, tiles)

    wanted, row_scales = reference.quantise(h, mode)
    wanted_scales = reference.sort_scales(row_scales, routed.ids, routed.num_valid, 2, routed.topk, layout)
    codes, scales = torch.full_like(wanted, 0xFF), torch.full_like(wanted_scales, 0xFF)
    interpret("gate_up", params | {"requantize": mode}, given, [codes, scales], routed.tokens, tiles)
    named = reference.defined_payload(routed.ids, routed.num_valid, 2, routed.topk, rows)
    assert torch.equal(codes[named], wanted[named])
    assert (codes[~named] == 0xFF).all()
    assert torch.equal(scales, wanted_scales)


@pytest.mark.parametrize(("splits", "target"), [(1, ""), (2, "sm_90"), (4, "")])
@pytest.mark.parametrize(
    ("x", "layout", "block", "has_bias", "has_weights"),
    [
        pytest.param("bf16", "none", 16, True, True, id="bf16"),
        pytest.param("bf16", "none", 32, False, False, id="bare"),
        pytest.param("f4E2M1FN", "tiled_32x8", 16, True, True, id="tiled codes"),
        pytest.param("f4E2M1FN", "row_major", 32, False, True, id="row-major codes"),
    ],
)
def test_down(interpret, relative_l2, x, layout, block, has_bias, has_weights, splits, target):
    """The partial sums add up; 4 splits of 3 steps over K include an empty one."""
    torch.manual_seed(1)
    routed = Routed(block)
    operands, values = activations(routed, 2, INTERMEDIATE, x, layout)
    weight = mx_weight(HIDDEN, INTERMEDIATE)
    bias = torch.randn(EXPERTS, HIDDEN) if has_bias else None
    wanted = torch.full((routed.tokens * routed.topk, HIDDEN), torch.nan)
    matrices = reference.dequantise(*weight)
    for source, row, expert, share in routed.rows(2):
        y = matrices[expert] @ values[source]
        y = y + bias[expert].double() if bias is not None else y
        wanted[row] = (y * share if has_weights else y).float()
    params = routed.params(x, layout) | {"has_bias": has_bias, "has_weights": has_weights, "splits": splits}
    out = torch.full((splits, *wanted.shape), torch.nan)
    given = [*operands, *routed.listed(has_weights), *weight, *([bias] if has_bias else [])]
    tiles = routed.blocks * -(-HIDDEN // TILE["block_n"]) * splits
    interpret("down", params | {"block_k": 32}, given, [out], routed.tokens, tiles, target)
    assert_same_rows(out.sum(0), wanted, relative_l2)
