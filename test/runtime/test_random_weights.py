"""runtime/random_weights.py: the stream stated again in Python's own integers, known answers, and sane numbers."""

import hashlib

import pytest
import torch
from torch import Tensor

from moeloom.runtime import random_weights
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.program import Shaped
from moeloom.runtime.random_weights import RandomWeights, logical, random_bytes
from moeloom.runtime.reference import dequantise, quantise

E, N, K = 4, 64, 2880
CPU = torch.device("cpu")


def recipe(kind: str, **more: str) -> dict:
    return {"kind": kind, "sources": ["w"], "rows": "plain", "quantize": "none", "order": "nk", **more}


def source(seed: int = 1, **tensors: tuple[str, tuple[int, ...], dict]) -> RandomWeights:
    return RandomWeights(seed, {name: logical(Shaped(dtype, shape), r) for name, (dtype, shape, r) in tensors.items()})


def every_kind(seed: int = 1) -> RandomWeights:
    return source(
        seed,
        blocks=("uint8", (E, N, K // 32, 16), recipe("payload")),
        scales=("uint8", (E, N, K // 32), recipe("scales")),
        bias=("bfloat16", (E, N), recipe("bias")),
        experts=("bfloat16", (E, N, K), recipe("payload", quantize="even")),
        turned=("float16", (E, K, N), recipe("scales", quantize="even", order="kn")),
        router=("bfloat16", (E, K), recipe("as_is")),
        correction=("float32", (E,), recipe("as_is")),
    )


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def word(key: str, i: int) -> int:
    """Word `i` of a stream, in integers of any size."""
    sha = hashlib.sha256(key.encode()).digest()
    first, second = int.from_bytes(sha[:4], "little"), int.from_bytes(sha[4:8], "little")
    x = i ^ first
    x ^= x >> 16
    x = (x * 0x21F0AAAD % 2**32) ^ second
    x ^= x >> 15
    x = x * 0x735A2D97 % 2**32
    return x ^ x >> 15


@pytest.mark.parametrize("count", [0, 1, 4, 1023])
def test_bytes_are_those_of_the_definition(count: int) -> None:
    wanted = b"".join(word("7:w:3", i).to_bytes(4, "little") for i in range(-(-count // 4)))[:count]
    assert bytes(random_bytes("7:w:3", count, CPU).tolist()) == wanted


# No platform, release of torch or change of ours may drift from these.
KNOWN = {
    "blocks": "f804dfdaef5a06d3",
    "scales": "29d3b677ad89169f",
    "bias": "f235052fb6e79004",
    "experts": "fb33c23ed6159f36",
    "turned": "f46cb4056abcbd8f",
    "router": "57a6ca07625de200",
    "correction": "0aa12a332f754802",
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    assert digest(every_kind().get(name)) == KNOWN[name]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = random_bytes("a", 999, CPU)
    monkeypatch.setitem(random_weights.CHUNK_WORDS, "cpu", chunk)
    assert torch.equal(random_bytes("a", 999, CPU), wanted)


def test_experts_in_any_order_are_the_whole() -> None:
    made = every_kind()
    for name in ("blocks", "scales", "bias", "experts", "turned"):
        parts = {e: made.expert(name, e) for e in (2, 0, 3, 1)}
        assert torch.equal(made.get(name), torch.stack([parts[e] for e in range(E)]))


def test_seed_name_and_expert_each_give_other_bytes() -> None:
    two = source(blocks=("uint8", (E, 512), recipe("payload")), other=("uint8", (E, 512), recipe("payload")))
    streams = [
        *two.get("blocks"),
        *two.get("other"),
        *source(2, blocks=("uint8", (E, 512), recipe("payload"))).get("blocks"),
    ]
    for number, one in enumerate(streams):
        for other in streams[:number]:
            assert (one == other).sum() < 16  # two in 512 agree by chance


def test_payload_bytes_are_even() -> None:
    counts = torch.bincount(every_kind().get("blocks").flatten().int(), minlength=256).double()
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 330.5  # chi-squared of 255 degrees, 0.1 %


def test_neighbouring_words_are_not_correlated() -> None:
    values = random_bytes("a", 1 << 20, CPU).double() - 127.5
    for distance in (1, 2, 4, 8, 1024):
        assert (values[distance:] * values[:-distance]).mean().abs() / values.var() < 5e-3


@pytest.mark.parametrize("name", ["blocks", "experts", "turned", "router"])
def test_products_are_of_order_one(name: str) -> None:
    made = every_kind()
    matrix = made.get(name).double()
    if name == "blocks":
        matrix = dequantise(made.get(name).flatten(-2), made.get("scales"))
    if name == "turned":
        matrix = matrix.transpose(1, 2)
    out = matrix @ torch.randn(K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert 0.5 < out.std() < 2 and out.mean().abs() < 0.2


def test_floats_are_exact_and_biases_small() -> None:
    made = every_kind()
    for name, bits in (("bias", 11), ("correction", 11), ("experts", 13), ("turned", 13), ("router", 13)):
        whole = made.get(name).double() * 2**bits
        assert torch.equal(whole, whole.round()) and whole.abs().max() <= 255 and torch.all(whole % 2 == 1)
    assert made.get("bias").abs().max() < 0.125


def test_experts_survive_quantising() -> None:
    made = every_kind().get("experts")[0]
    codes, scales = quantise(made, "even")
    error = (dequantise(codes, scales) - made.double()).norm() / made.double().norm()
    assert error < 0.2 and scales.min() > 0


def test_unknown_name_is_none_and_other_dtypes_are_refused() -> None:
    assert every_kind().get("nothing") is None
    with pytest.raises(ArtifactError, match=r"weight 'w' is int32 \(4\); random weights are bytes or floats"):
        source(w=("int32", (4,), recipe("as_is"))).get("w")
