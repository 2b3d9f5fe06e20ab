"""The PTX of a chunk, run on 32 lanes of the machine of ptx/, against the plain product of what was packed."""

import re

import numpy as np
import pytest
import torch
from ptx.machine import Machine
from ptx.memory import Memory

from moeloom.lowering.triton.decode_chunk import SUM_SCALE, chunk_lines
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.reference import dequantise
from moeloom.runtime.stream import MOST_CHUNKS, Stream

LANES = np.arange(32)
PRESCALE = 2.0**32  # of x in shared memory


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def on_a_warp(assembly: str, operands: list[np.ndarray], shared: np.ndarray) -> list[np.ndarray]:
    """The outputs $0 to $3 of inline assembly, its operands u32 [32] by number, of 32 lanes with u32 words `shared`."""
    memory = Memory()
    given = memory.place(np.stack(operands).astype(np.uint32))
    found = memory.place(like := np.zeros((4, 32), np.uint32), writable=True)
    body = re.sub(r"\$(\d+)", r"%o\1", assembly)
    loads = "".join(f"ld.global.b32 %o{i}, [%in + {128 * i}];" for i in range(len(operands)))
    stores = "".join(f"st.global.b32 [%out + {128 * i}], %o{i};" for i in range(4))
    text = f""".visible .entry chunk(.param .u64 given, .param .u64 found)
        .reqntid 32
        {{
        .reg .b32 %o<{len(operands)}>, %lane;
        .reg .b64 %in, %out;
        mov.u32 %lane, %tid.x;
        ld.param.b64 %in, [given];
        mad.wide.u32 %in, %lane, 4, %in;
        ld.param.b64 %out, [found];
        mad.wide.u32 %out, %lane, 4, %out;
        {loads}
        {body}
        {stores}
        ret;
        }}"""
    Machine(text, memory, shared.view(np.uint8), overlaps=False).launch(1, [given, found])
    return list(memory.read_back(found, like))


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
        names = [f"${4 + i}" for i in range(9)]
        lines = chunk_lines(chunk, names[:4], names[4:8], names[8], 1, 0)
        sums = on_a_warp("\n".join(lines), [*sums, *words, *spread, LANES * 16], x_words(x))
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
