"""Random weights without a file: each byte a pure function of seed, tensor name, expert and place.

Counter-based: word i of a tensor mixes i with a key of (seed, name, expert), in 64-bit integers that never overflow.
Floats are whole numbers times a power of two, exact in every dtype. So a CPU and a GPU make the same bytes, in any
order. Values are sized so that outputs stay about as large as inputs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.program import Shaped
from moeloom.runtime.reference import GROUP, SCALE_BIAS

MASK = 0xFFFFFFFF
FIRST_FACTOR, SECOND_FACTOR = 0x21F0AAAD, 0x735A2D97  # below 2^31: a product with 32 bits stays within an i64
WORD_BYTES = 4
CHUNK_WORDS = {"cpu": 32767}  # i64 a step: in the second-level cache, and below what torch hands to its threads, which
# would meet after each of these short operations; on a busy machine that cost 25 times the work
DEVICE_CHUNK_WORDS = 1 << 24
SCALE_CHOICES = 4  # scale bytes of a tensor: a base, and the three above it
BIAS_SHIFT = 11  # biases lie within +-255 / 2^11


@dataclass(frozen=True)
class Logical:
    """A checkpoint's tensor as a program takes it. `kind` as in a pack recipe, "matrix" for one yet to be quantised.

    `contracted` is K, the length of the sums that its elements take part in.
    """

    tensor: Shaped
    kind: str
    contracted: int

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts experts."""
        return self.kind != "as_is"


def logical(tensor: Shaped, recipe: Mapping) -> Logical:
    """What a pack recipe says about its source."""
    shape = tensor.at(0)
    kind = "matrix" if recipe.get("quantize", "none") != "none" else recipe["kind"]
    if kind == "scales":
        return Logical(tensor, kind, shape[-1] * GROUP)
    return Logical(tensor, kind, shape[-2] if recipe.get("order") == "kn" and kind == "matrix" else shape[-1])


class RandomWeights:
    """The tensors of `seed` by full name, made on `device` when they are asked for; a source for `runtime.pack`."""

    def __init__(self, seed: int, tensors: Mapping[str, Logical], device: str | torch.device = "cpu"):
        self.seed, self.tensors, self.device = seed, tensors, torch.device(device)

    def get(self, name: str) -> Tensor | None:
        """The whole tensor; None for a name that no program has."""
        if name not in self.tensors:
            return None
        about = self.tensors[name]
        shape = about.tensor.at(0)
        if not about.stacked:
            return self._make(name, 0, shape)
        return torch.stack([self._make(name, e, shape[1:]) for e in range(shape[0])])

    def expert(self, name: str, number: int) -> Tensor:
        """`get(name)[number]`, without the other experts."""
        return self._make(name, number, self.tensors[name].tensor.at(0)[1:])

    def _make(self, name: str, expert: int, shape: tuple[int, ...]) -> Tensor:
        about = self.tensors[name]
        made = random_bytes(f"{self.seed}:{name}:{expert}", prod(shape), self.device).view(shape)
        dtype = about.tensor.storage
        if about.kind == "scales":
            return made.bitwise_and_(SCALE_CHOICES - 1).add_(scale_base(about.contracted))
        if dtype == torch.uint8:
            return made
        if not dtype.is_floating_point:
            raise ArtifactError(f"weight {name!r} is {about.tensor}; random weights are bytes or floats, give a file")
        small = about.kind == "bias" or len(about.tensor.shape) == 1
        shift = BIAS_SHIFT if small else matrix_shift(about.contracted)
        return made.to(torch.float32).mul_(2).sub_(255).mul_(2.0**-shift).to(dtype)


def scale_base(contracted: int) -> int:
    """The least e8m0 byte for codes drawn evenly (rms 2.9) in sums of `contracted`: values of rms about 1/sqrt(K)."""
    return SCALE_BIAS - SCALE_CHOICES - _half_bits(contracted)


def matrix_shift(contracted: int) -> int:
    """s such that odd numbers within +-255 (rms 148) times 2^-s have an rms of about 1/sqrt(K)."""
    return 7 + _half_bits(contracted)


def _half_bits(number: int) -> int:
    """log2(sqrt(number)) rounded up, in integers."""
    return ((number - 1).bit_length() + 1) // 2


def random_bytes(key: str, count: int, device: torch.device) -> Tensor:
    """u8 [count] of the stream named `key`."""
    digest = hashlib.sha256(key.encode()).digest()
    first, second = (int.from_bytes(digest[at : at + WORD_BYTES], "little") for at in (0, WORD_BYTES))
    words = -(-count // WORD_BYTES)
    if words > MASK:
        raise ArtifactError(f"random weights of {count} bytes in one piece; a stream has {WORD_BYTES * MASK}")
    out = torch.empty(words, dtype=torch.int32, device=device)
    step = CHUNK_WORDS.get(device.type, DEVICE_CHUNK_WORDS)
    for start in range(0, words, step):
        end = min(start + step, words)
        out[start:end] = _mix(torch.arange(start, end, device=device), first, second)
    return out.view(torch.uint8)[:count]


def _mix(counter: Tensor, first: int, second: int) -> Tensor:
    """32 random bits in the low half of each i64 of `counter`, which it overwrites: two rounds of multiply and xor."""
    x = counter.bitwise_xor_(first)
    x ^= x >> 16
    x.mul_(FIRST_FACTOR).bitwise_and_(MASK).bitwise_xor_(second)
    x ^= x >> 15
    x.mul_(SECOND_FACTOR).bitwise_and_(MASK)
    return x.bitwise_xor_(x >> 15)
