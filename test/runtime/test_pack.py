"""runtime/pack.py: the bytes of docs/program.md, stated again one element at a time."""

from functools import partial

import pytest
import torch

from moeloom.runtime import pack as packing
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.pack_mfma import pack_mfma
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.reference import quantise

EXPERTS, ROWS, COLUMNS = 3, 64, 96
ORDERS = ("plain", "gate_up_interleaved", "gate_up_concatenated")


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


def source_row(order: str, tile: int, lane: int) -> int:
    """Which row of the checkpoint lane `lane` of tile `tile` holds."""
    if order == "plain":
        return tile * 16 + lane
    output, up = (tile // 2) * 16 + lane, tile % 2
    return output * 2 + up if order == "gate_up_interleaved" else up * (ROWS // 2) + output


def recipe(kind: str, rows: str, *sources: str, **more: str) -> dict:
    return {"kind": kind, "sources": list(sources), "rows": rows, "quantize": "none", "order": "nk", **more}


def packed(r: dict, source: dict, **options) -> torch.Tensor:
    return torch.stack(list(packing.pack(r, source, **options)))


@pytest.mark.parametrize("order", ORDERS)
def test_payload_bytes(order: str) -> None:
    blocks = random_bytes(EXPERTS, ROWS, COLUMNS // 32, 16)
    out = packed(recipe("payload", order, "w"), {"w": blocks})
    assert out.shape == (EXPERTS, ROWS // 16, COLUMNS // 32, 4, 16, 4)
    codes = torch.stack([blocks & 15, blocks >> 4], -1).view(EXPERTS, ROWS, COLUMNS)
    halves = out.contiguous().view(torch.int16).int() & 0xFFFF
    for tile in range(ROWS // 16):
        for lane in range(16):
            row = codes[:, source_row(order, tile, lane)].int().view(EXPERTS, COLUMNS // 32, 4, 8)
            for i in range(4):
                pair = (halves[:, tile, :, :, lane] >> 4 * i) & 15
                assert torch.equal(pair, row[..., 2 * i : 2 * i + 2])


@pytest.mark.parametrize("order", ORDERS)
def test_scale_and_bias_order(order: str) -> None:
    scales, bias = random_bytes(EXPERTS, ROWS, COLUMNS // 32), torch.randn(EXPERTS, ROWS).bfloat16()
    out = packed(recipe("scales", order, "s"), {"s": scales})
    flat = packed(recipe("bias", order, "b"), {"b": bias})
    assert out.shape == (EXPERTS, ROWS // 16, COLUMNS // 32, 16) and flat.dtype == torch.float32
    for tile in range(ROWS // 16):
        for lane in range(16):
            row = source_row(order, tile, lane)
            assert torch.equal(out[:, tile, :, lane], scales[:, row])
            assert torch.equal(flat[:, tile * 16 + lane], bias[:, row].float())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["payload", "scales", "bias"])
def test_unpack_is_the_inverse(kind: str, order: str) -> None:
    width = {"payload": (COLUMNS // 2,), "scales": (COLUMNS // 32,), "bias": ()}[kind]
    tensor = torch.randn(EXPERTS, ROWS) if kind == "bias" else random_bytes(EXPERTS, ROWS, *width)
    r = recipe(kind, order, "w")
    assert torch.equal(packing.unpack(r, packed(r, {"w": tensor})), tensor)


@pytest.mark.parametrize("order", ORDERS)
def test_row_major_has_gate_rows_first(order: str) -> None:
    """As the checkpoint has them, but all gate rows stand before all up rows; and back."""
    half = ROWS // 2
    wide = {"payload": random_bytes(EXPERTS, ROWS, COLUMNS // 2), "scales": random_bytes(EXPERTS, ROWS, COLUMNS // 32)}
    for kind, tensor in (wide | {"bias": torch.randn(EXPERTS, ROWS)}).items():
        r = recipe(kind, order, "w", layout="row_major")
        out = packed(r, {"w": tensor})
        assert out.shape == tensor.shape
        for row in range(ROWS):
            source = row if order != "gate_up_interleaved" else 2 * (row % half) + row // half
            assert torch.equal(out[:, row], tensor[:, source])
        assert torch.equal(packing.unpack(r, out), tensor)


@pytest.mark.parametrize("layout", ["stream", "mfma_stream"])
@pytest.mark.parametrize("order", ORDERS)
def test_stream_holds_payload_and_scales(order: str, layout: str) -> None:
    """As its packer makes it of each expert; a quantising recipe makes the same of the quantiser's own output."""
    weight = torch.randn(EXPERTS, ROWS, COLUMNS).bfloat16()
    codes, scales = (torch.stack(parts) for parts in zip(*(quantise(one, "even") for one in weight), strict=True))
    r = recipe("stream", order, "w", "s", layout=layout) | {"warps": 2, "count": ROWS, "columns": COLUMNS}
    pack_one = partial(pack_stream, warps=2) if layout == "stream" else pack_mfma
    want = torch.stack([pack_one(c, s, order) for c, s in zip(codes, scales, strict=True)])
    for one, *parts in zip(want, codes, scales, strict=True):
        assert all(map(torch.equal, packing.unpack_expert_stream(r, one), parts))
    blocks = codes.view(EXPERTS, ROWS, COLUMNS // 32, 16)
    assert torch.equal(packed(r, {"w": blocks, "s": scales}), want)
    quantising = r | {"sources": ["w"], "quantize": "even"}
    assert torch.equal(packed(quantising, {"w": weight}), want)
    turned = quantising | {"order": "kn"}
    assert torch.equal(packed(turned, {"w": weight.transpose(1, 2).contiguous()}), want)


def test_pattern_stacks_gate_over_up() -> None:
    parts = {f"{e}.{n}": random_bytes(ROWS // 2, COLUMNS // 2) for e in range(EXPERTS) for n in ("gate", "up")}
    stacked = torch.stack([torch.cat([parts[f"{e}.gate"], parts[f"{e}.up"]]) for e in range(EXPERTS)])
    found = packed(
        recipe("payload", "gate_up_concatenated", "{e}.gate", "{e}.up"),
        {f"l.{n}": t for n, t in parts.items()},
        prefix="l.",
    )
    assert torch.equal(found, packed(recipe("payload", "gate_up_concatenated", "w"), {"w": stacked}))


@pytest.mark.parametrize("mode", ["even", "rceil"])
@pytest.mark.parametrize("order", ["nk", "kn"])
def test_quantising_recipe(order: str, mode: str) -> None:
    weight = torch.randn(EXPERTS, ROWS, COLUMNS).bfloat16()
    source = {"w": weight if order == "nk" else weight.transpose(1, 2).contiguous()}
    options = {"quantize": mode, "order": order}
    memo: packing.Memo = {}
    payload = packed(recipe("payload", "plain", "w", **options), source, memo=memo)
    kept = packed(recipe("scales", "plain", "w", **options), {}, memo=memo)
    alone = packed(recipe("scales", "plain", "w", **options), source)
    want = [quantise(one, mode) for one in weight]
    assert torch.equal(payload, torch.stack([packing.pack_payload(codes, "plain") for codes, _ in want]))
    assert torch.equal(kept, torch.stack([packing.pack_scales(scales, "plain") for _, scales in want]))
    assert torch.equal(alone, kept) and not memo


def test_as_is_is_untouched() -> None:
    router = torch.randn(8, 32)
    assert torch.equal(next(packing.pack(recipe("as_is", "plain", "r"), {"r": router})), router)


def test_refusals() -> None:
    with pytest.raises(ArtifactError, match=r"no tensor 'layer\.w'"):
        packed(recipe("payload", "plain", "w"), {}, prefix="layer.")
    with pytest.raises(ArtifactError, match="40 rows"):
        packed(recipe("payload", "plain", "w"), {"w": random_bytes(1, 40, 16)})
    with pytest.raises(ArtifactError, match="--quantize-weights mxfp4"):
        packed(recipe("payload", "plain", "w"), {"w": torch.zeros(1, 32, 32)})


def test_unaligned_source_bytes() -> None:
    raw = random_bytes(1 + EXPERTS * ROWS * COLUMNS // 2)
    unaligned = raw[1:].view(EXPERTS, ROWS, COLUMNS // 2)
    r = recipe("payload", "plain", "w")
    assert torch.equal(packed(r, {"w": unaligned}), packed(r, {"w": unaligned.clone()}))
