"""runtime/pack_stream.py: back again to the byte, and what a warp makes of it by the definition of the instruction."""

import pytest
import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.pack_stream import pack_stream, unpack_stream
from moeloom.runtime.reference import dequantise
from moeloom.runtime.stream import Stream

ORDERS = ("plain", "gate_up_interleaved", "gate_up_concatenated")
LANES = torch.arange(32)


def matrix(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8)
    return codes, torch.randint(118, 134, (rows, columns // 32), dtype=torch.uint8)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("rows", "columns", "warps"),
    [(32, 32, 1), (64, 96, 4), (160, 2880, 8), (96, 1056, 4), (192, 2880, 4), (160, 7168, 8)],
)
def test_unpacks_to_the_byte(order, rows, columns, warps):
    """The last two are laid in steps of two tiles of three, and of half a tile."""
    codes, scales = matrix(rows, columns)
    packed = pack_stream(codes, scales, order, warps)
    assert packed.shape == Stream(rows, columns, warps).shape
    found_codes, found_scales = unpack_stream(packed, order, rows, columns)
    assert torch.equal(found_codes, codes)
    assert torch.equal(found_scales, scales)


@pytest.mark.parametrize(
    ("columns", "records", "chunks"),
    [(2880, 3, 15), (2048, 2, 16), (7168, 7, 16), (768, 1, 12), (32, 1, 1), (1056, 2, 9)],
)
def test_divides_columns_into_even_records(columns, records, chunks):
    stream = Stream(128, columns, 8)
    assert (stream.records, stream.chunks) == (records, chunks)
    assert stream.padded_columns >= columns


def test_pads_with_zeros():
    packed = pack_stream(*matrix(16, 32), "plain", 4)
    assert packed[0, 0, :, 1:].count_nonzero() == 0  # warps without rows
    words = packed[0, 0, 1, 0].view(torch.int32).view(32, 4)
    assert words[:, 2:].count_nonzero() == 0  # columns 32 to 63
    assert words[:, :2].count_nonzero() > 0


@pytest.mark.parametrize("byte", [63, 191])
def test_refuses_scales_that_do_not_fit(byte):
    codes, scales = matrix(32, 64)
    scales[3, 1] = byte
    with pytest.raises(ArtifactError, match=rf"{byte}.* the stream layout holds 64 to 190: .*row_major"):
        pack_stream(codes, scales, "plain", 1)


def test_takes_the_ends_of_the_range():
    codes, scales = matrix(32, 64)
    scales[0], scales[1] = 64, 190
    _, found = unpack_stream(pack_stream(codes, scales, "plain", 1), "plain", 32, 64)
    assert torch.equal(found, scales)


def test_refuses_half_a_fragment():
    with pytest.raises(ArtifactError, match="24 rows; the stream layout takes multiples of 16"):
        pack_stream(*matrix(24, 64), "plain", 1)


def e2m1(code: Tensor) -> Tensor:
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    return values[code & 7] * (1 - 2 * (code >> 3))


def fragment(words: Tensor) -> Tensor:
    """float64 [16, 16]: the A operand that 32 words stand for, by the layout's text and PTX's definition of a0..a3."""
    a = torch.full((16, 16), torch.nan, dtype=torch.float64)
    # Bits of the lowest to the highest of a code, of the first column's; 16 more of the second one's, without end.
    places = ((6, 7, 8, 15), (0, 1, 2, 9), (10, 11, 12, 19), (4, 13, 14, 21))
    row, column = LANES // 4, LANES % 4 * 2
    for register in range(4):  # a1 and a3: row + 8; a2 and a3: column + 8
        for half in (0, 1):
            code = sum(
                (words.long() >> (place + 16 * half) % 32 & 1) << bit for bit, place in enumerate(places[register])
            )
            a[row + 8 * (register % 2), column + 8 * (register // 2) + half] = e2m1(code)
    return a


def warp_product(packed: Tensor, x: Tensor, stream: Stream, tile: int, warp: int) -> Tensor:
    """float64 [16, 8]: the rows of a warp times x [8, K], instruction by instruction."""
    sums = torch.zeros(16, 8, dtype=torch.float64)
    padded = torch.zeros(8, stream.padded_columns, dtype=torch.float64)
    padded[:, : stream.columns] = x
    for record in range(stream.records):
        scales = packed[tile, record, 0, warp].view(8, 16, 2, 2).long()  # row, chunk, row half, group
        for chunk in range(stream.chunks):
            words = packed[tile, record, 1 + chunk, warp].view(torch.int32).view(32, 4)
            for step in range(4):
                first = ((record * stream.chunks + chunk) * 4 + step) * 16
                factor = torch.exp2(scales[:, chunk, :, step // 2].T.flatten().double() - 64 - 127)
                sums += fragment(words[:, step]) @ padded[:, first : first + 16].T * factor[:, None]
    return sums


def expected_rows(order: str, rows: int, fragment_number: int) -> Tensor:
    """The rows of the checkpoint that a fragment holds, first r = 0..7, then r + 8."""
    r = torch.arange(8)
    if order == "plain":
        return torch.cat((16 * fragment_number + r, 16 * fragment_number + 8 + r))
    output = 8 * fragment_number + r
    if order == "gate_up_interleaved":
        return torch.cat((2 * output, 2 * output + 1))
    return torch.cat((output, rows // 2 + output))


@pytest.mark.parametrize("order", ORDERS)
def test_a_warp_multiplies_what_was_packed(order):
    rows, columns, warps = 64, 1120, 2  # two records of nine chunks, the last one half empty
    codes, scales = matrix(rows, columns)
    x = torch.randint(-8, 9, (8, columns)).double()
    packed, stream = pack_stream(codes, scales, order, warps), Stream(rows, columns, warps)
    wanted = dequantise(codes, scales).double() @ x.T
    for tile in range(stream.tiles):
        for warp in range(warps):
            found = warp_product(packed, x, stream, tile, warp)
            assert torch.equal(found, wanted[expected_rows(order, rows, tile * warps + warp)])


def test_the_model_sees_one_swapped_nibble():
    codes, scales = matrix(16, 64)
    codes[5, 7] = 0x21
    packed, x = pack_stream(codes, scales, "plain", 1), torch.randint(-8, 9, (8, 64)).double()
    swapped = codes.clone()
    swapped[5, 7] = 0x12
    found = warp_product(packed, x, Stream(16, 64, 1), 0, 0)
    assert torch.equal(found, dequantise(codes, scales).double() @ x.T)
    assert (found != dequantise(swapped, scales).double() @ x.T).any(dim=1).tolist() == [r == 5 for r in range(16)]
