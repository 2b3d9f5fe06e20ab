"""The PTX of a chunk, run by a small interpreter on 32 lanes, against the plain product of what was packed."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from moeloom.lowering.triton.decode_chunk import SUM_SCALE, chunk_assembly
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.reference import dequantise
from moeloom.runtime.stream import MOST_CHUNKS, Stream

LANES = np.arange(32)
PRESCALE = 2.0**32  # of x in shared memory


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.uint32)


def halves(register: np.ndarray) -> np.ndarray:
    """float64 [32, 2]: the two bf16 of a register."""
    return np.stack([floats(register << np.uint32(16)), floats(register & np.uint32(0xFFFF0000))], axis=1)


class Warp:
    """32 lanes that execute PTX one instruction at a time. Registers are u32 [32]; `shared` is u32 words."""

    def __init__(self, operands: list[np.ndarray], shared: np.ndarray) -> None:
        self.registers = {f"${number}": np.asarray(value, np.uint32) for number, value in enumerate(operands)}
        self.shared = shared

    def run(self, assembly: str) -> None:
        for line in assembly.strip("{}\n\t").splitlines():
            name, _, rest = line.strip().rstrip(";").partition(" ")
            if name.startswith((".reg", "bar.warp.sync")):
                continue
            getattr(self, "_" + name.split(".")[0])(*re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", rest))

    def _value(self, operand: str) -> np.ndarray:
        if operand in self.registers:
            return self.registers[operand]
        number = int(operand[2:], 16) if operand.startswith("0f") else int(operand, 0)
        return np.full(32, number, np.uint32)

    def _several(self, operand: str) -> list[np.ndarray]:
        return [self._value(name) for name in operand.strip("{}").split(", ")]

    def _set(self, names: str, values: Callable[[int], np.ndarray]) -> None:
        for number, name in enumerate(names.strip("{}").split(", ")):
            self.registers[name] = values(number).astype(np.uint32)

    def _mov(self, to, value):
        self.registers[to] = self._value(value).copy()

    def _shl(self, to, value, by):
        self.registers[to] = self._value(value) << self._value(by)

    def _shr(self, to, value, by):
        self.registers[to] = self._value(value) >> self._value(by)

    def _and(self, to, a, b):
        self.registers[to] = self._value(a) & self._value(b)

    def _lop3(self, to, a, b, c, table):
        assert int(table, 0) == 0xF0 & 0xCC | 0xAA
        self.registers[to] = self._value(a) & self._value(b) | self._value(c)

    def _shfl(self, to, value, source, clamp, members):
        assert int(clamp, 0) == (32 - 4) << 8 | 31 and int(members, 0) == 0xFFFFFFFF
        self.registers[to] = self._value(value)[LANES // 4 * 4 + int(source)]

    def _fma(self, to, a, b, c):
        product = floats(self._value(a)) * floats(self._value(b)) + floats(self._value(c))
        self.registers[to] = bits(product)

    def _ldmatrix(self, to, place):
        base, _, offset = place.strip("[]").partition(" + ")
        address = self._value(base) + np.uint32(int(offset))
        # Lane 8i + j gives row j of matrix i; lane 4r + c gets word c of row r of each.
        self._set(to, lambda i: self.shared[address[8 * i + LANES // 4] // 4 + LANES % 4])

    def _mma(self, d, a, b, c):
        """m16n8k16 by the PTX ISA: a1, a3 are 8 rows down, a2, a3 8 columns right; b1 is 8 columns of K on."""
        rows, columns = LANES // 4, LANES % 4 * 2
        left, right, sums = np.full((16, 16), np.nan), np.full((16, 8), np.nan), np.full((16, 8), np.nan)
        for half in (0, 1):
            for i, register in enumerate(self._several(a)):
                left[rows + 8 * (i % 2), columns + 8 * (i // 2) + half] = halves(register)[:, half]
            for i, register in enumerate(self._several(b)):
                right[columns + 8 * i + half, rows] = halves(register)[:, half]
        for i, register in enumerate(self._several(c)):
            sums[rows + 8 * (i // 2), columns + i % 2] = floats(register)
        result = left @ right + sums
        self._set(d, lambda i: bits(result[rows + 8 * (i // 2), columns + i % 2]))


def x_words(x: np.ndarray) -> np.ndarray:
    """Shared memory: bf16 [K / 8][8 tokens][8 columns] of x [8, K], times 2^32."""
    pieces = torch.from_numpy(x * PRESCALE).bfloat16().view(8, -1, 8).transpose(0, 1).contiguous()
    return pieces.view(torch.int32).numpy().view(np.uint32).flatten()


def product(codes: torch.Tensor, scales: torch.Tensor, x: np.ndarray) -> np.ndarray:
    """[16, 8] by the chunks' PTX."""
    stream = Stream(16, 2 * codes.shape[1], 1)
    packed = pack_stream(codes, scales, "plain", 1)[0, 0, :, 0].contiguous().view(torch.int32).numpy().view(np.uint32)
    sums = [np.zeros(32, np.uint32)] * 4
    for chunk in range(stream.chunks):
        words, spread = packed[1 + chunk].reshape(32, 4).T, packed[0].reshape(32, 4).T
        warp = Warp([*sums, *sums, *words, *spread, LANES * 16], x_words(x))
        for output in range(4):  # tied to the sums before
            warp.registers[f"${output}"] = sums[output].copy()
        warp.run(chunk_assembly(chunk))
        sums = [warp.registers[f"${output}"] for output in range(4)]
    found = np.zeros((16, 8))
    for i in range(4):
        found[LANES // 4 + 8 * (i // 2), LANES % 4 * 2 + i % 2] = floats(sums[i]) * SUM_SCALE.value
    return found


@pytest.mark.parametrize("chunks", [1, MOST_CHUNKS])
def test_multiplies_what_was_packed(chunks):
    columns = 64 * chunks
    codes = torch.randint(256, (16, columns // 2), dtype=torch.uint8)
    scales = torch.randint(120, 134, (16, columns // 32), dtype=torch.uint8)
    x = np.random.default_rng(chunks).integers(-8, 9, (8, columns)).astype(np.float64)
    wanted = dequantise(codes, scales).double().numpy() @ x.T
    assert np.array_equal(product(codes, scales, x), wanted)  # small integers: no sum is rounded


def test_every_code_at_the_ends_of_the_scales():
    codes = (torch.arange(32) * 17 % 256).to(torch.uint8).repeat(16, 1)
    scales = torch.tensor([64, 190], dtype=torch.uint8).repeat(16, 1)
    x = np.zeros((8, 64))
    x[0, :32] = 1
    x[1, 32:] = 1
    found = product(codes, scales, x)
    assert np.array_equal(found, dequantise(codes, scales).double().numpy() @ x.T)


def test_sees_one_swapped_nibble():
    codes, scales = torch.zeros(16, 32, dtype=torch.uint8), torch.full((16, 2), 127, dtype=torch.uint8)
    codes[9, 3] = 0x21
    x = np.arange(8 * 64, dtype=np.float64).reshape(8, 64) % 7
    swapped = codes.clone()
    swapped[9, 3] = 0x12
    assert np.array_equal(product(codes, scales, x), dequantise(codes, scales).double().numpy() @ x.T)
    assert not np.array_equal(product(codes, scales, x), dequantise(swapped, scales).double().numpy() @ x.T)
