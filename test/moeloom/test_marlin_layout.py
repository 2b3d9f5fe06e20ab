"""moeloom/marlin_layout.py against the definition of the fragments that Marlin's kernels multiply."""

import torch

from moeloom.marlin_layout import bias_of, payload_of, scales_of

EXPERTS, ROWS, COLUMNS = 2, 128, 96


def read(packed: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Codes [rows, columns] of a packed expert: thread by thread, register by register of `mma.m16n8k16`'s B operand,
    as the kernel takes the eight nibbles of a word apart (bits 0 and 16, 4 and 20, 8 and 24, 12 and 28)."""
    codes = torch.full((rows, columns), 255)
    for tile in range(columns // 16):
        for strip in range(rows // 64):
            for thread in range(32):
                for block in range(4):
                    word = int(packed[tile, strip * 128 + thread * 4 + block]) & 0xFFFFFFFF
                    row, column = strip * 64 + block * 16 + thread // 4, tile * 16 + thread % 4 * 2
                    places = [(0, 0), (0, 8), (8, 0), (8, 8)]  # (row half, column half) of each pair
                    for number, (row_half, column_half) in enumerate(places):
                        for second in (0, 1):
                            code = word >> 4 * number + 16 * second & 15
                            codes[row + row_half, column + column_half + second] = code
    return codes


def test_fragments_hold_the_codes():
    codes = torch.randint(256, (EXPERTS, ROWS, COLUMNS // 2), dtype=torch.uint8)
    packed = payload_of(codes, ROWS, COLUMNS)
    assert packed.shape == (EXPERTS, COLUMNS // 16, 2 * ROWS) and packed.dtype == torch.int32
    single = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    assert torch.equal(read(packed[1], ROWS, COLUMNS), single[1].long())


def test_padding_is_zero():
    codes = torch.randint(1, 256, (1, 40, 16), dtype=torch.uint8)
    found = read(payload_of(codes, 64, 48)[0], 64, 48)
    assert found[:40, :32].count_nonzero() > 0
    assert found[40:].count_nonzero() == found[:, 32:].count_nonzero() == 0
    scales = scales_of(torch.full((1, 40, 1), 9, dtype=torch.uint8), 64, 64)
    assert scales.shape == (1, 2, 64) and (scales == 9).sum() == 40
    assert bias_of(torch.ones(1, 40), 64).count_nonzero() == 40


def test_a_thread_finds_its_scales_and_biases():
    """Scales: thread t / 4 = r has those of the rows r, r + 8 ... r + 56 of a strip, in the order in which bytes of a
    word are widened in pairs. Bias: thread t % 4 = c those of the columns 2c, 2c + 1 of each tile of 8."""
    scales = torch.arange(64, dtype=torch.uint8).view(1, 64, 1)
    assert scales_of(scales, 64, 32)[0, 0].view(8, 8)[3].tolist() == [3, 19, 11, 27, 35, 51, 43, 59]
    bias = torch.arange(32.0).view(1, 32)
    assert bias_of(bias, 32)[0].view(4, 8)[1].tolist() == [2, 3, 10, 11, 18, 19, 26, 27]
