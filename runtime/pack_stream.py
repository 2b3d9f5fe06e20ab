"""Packed weights of the decode kernels: payload and scales of an expert in one stream, in the order of their use.

Plain torch, on any device. A stream is what `mma.m16n8k16` reads as its A operand, weights being the M side:

    u8 [tiles, records, 1 + chunks, warps, 512]

A tile has `16 * warps` rows. A chunk is 16 rows x 64 columns of a warp, 16 bytes a lane; `chunks` of them follow the
record's chunk of scales. Rows and columns are padded with zeros up to whole tiles and records.

Lane 4r + c (r < 8, c < 4) holds rows r and r + 8. Its word t of a weight chunk holds columns 16t + (2c, 2c+1, 2c+8,
2c+9): the pairs 0..3 = (r, 2c), (r+8, 2c), (r, 2c+8), (r+8, 2c+8), the registers of the fragment, first columns in the
word's low half, second ones in its high half. In each half:

    bit     15   14-13   12-10   9    8-6   5     4    3     2-0
            s0   m3 >> 1   m2    s1   m0    s3'   m3   s2'   m1      s: sign, m: the three other bits of a code

so that pair 0 lies where a bf16 has sign, low exponent and high mantissa bits, pairs 1 and 2 a shift or a rotation of
the word away (s': of the other half), and so does pair 3 but for its lowest bit: four sets of such bits do not tile a
half.
Word 4c + i of the scale chunk, for lanes 4r ..: bytes (r, 0), (r, 1), (r+8, 0), (r+8, 1) of chunk 4c + i, a byte
each group of 32 columns: the e8m0 byte + 64, since the products are summed 2^-64 times as large.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.reference import GROUP
from moeloom.runtime.stream import FRAGMENT_ROWS, MOST_CHUNKS, Stream

EVEN_BYTES, ODD_BYTES = 0x00FF00FF, -0x00FF0100  # of an i32
SCALE_OFFSET = 64
LEAST_SCALE, GREATEST_SCALE = 64, 190  # e8m0 bytes; beyond them a scaled sum might leave f32
ROWS_TOGETHER = 8  # gates, and ups: registers of one lane
CODE_BITS = (6, 7, 8, 15)  # of a half, where a bf16 has those of a code, lowest first
ROTATIONS = ((0, 0, 0, 0), (6, 6, 6, 6), (-4, -4, -4, -4), (2, -6, -6, -6))  # to the left, that bring pairs there
STEP_WORDS = 65534  # a step on a CPU. Operations have half as many elements, which torch does not hand to its threads:
# they would meet after each of them. Smaller steps are more of Python, which its lock lets but one thread be in


def pack_stream(codes: Tensor, scales: Tensor, rows: str, warps: int) -> Tensor:
    """The stream of one expert: payload u8 [N, K/2] and scales u8 [N, K/32], `rows` as in a recipe (docs/program.md).

    Of gate_up, row r of a fragment is a gate and row r + 8 the up of the same output. ArtifactError for a scale that
    the stream cannot hold.
    """
    refuse_scales(scales, LEAST_SCALE, GREATEST_SCALE)
    count, half = codes.shape
    stream = Stream(count, 2 * half, warps)
    out = torch.zeros(stream.shape, dtype=torch.uint8, device=codes.device)
    payload, scale_bytes = (fragments_of(m, rows, ROWS_TOGETHER).squeeze(1) for m in (_words(codes), scales))
    tiles, some = (stream.tiles, warps) if codes.device.type != "cpu" else _step(stream)
    laid = _Payload(stream, tiles, some, codes.device)
    for first in range(0, stream.tiles, tiles):
        tile = min(first, stream.tiles - tiles)  # the last step lays some tiles once more
        for warp in range(0, warps, some):
            fragments = slice(tile * warps + warp, (tile + tiles - 1) * warps + warp + some)
            laid.lay(out[tile : tile + tiles, :, 1:, warp : warp + some], payload[fragments])
        fragments = slice(tile * warps, (tile + tiles) * warps)
        _lay_scales(out[tile : tile + tiles, :, 0], scale_bytes[fragments], stream)
    return out


def _step(stream: Stream) -> tuple[int, int]:
    """Tiles, and fragments of each, that are laid at once on a CPU: whole tiles, or a part of one."""
    most = max(STEP_WORDS // (FRAGMENT_ROWS * stream.padded_columns // 8), 1)
    if most >= stream.warps:
        return min(most // stream.warps, stream.tiles), stream.warps
    return 1, next(some for some in range(most, 0, -1) if stream.warps % some == 0)


def unpack_stream(packed: Tensor, rows: str, count: int, columns: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_stream`: payload u8 [count, columns/2], scales u8 [count, columns/32]."""
    stream = Stream(count, columns, packed.shape[3])
    fragments = stream.tiles * stream.warps
    codes = torch.empty(count, columns // 2, dtype=torch.uint8, device=packed.device)
    scales = torch.empty(count, columns // GROUP, dtype=torch.uint8, device=packed.device)
    payload, groups = _codes_of(packed[:, :, 1:], stream), _scales_of(packed[:, :, 0], stream)
    for matrix, found in ((codes, payload), (scales, groups)):
        target = fragments_of(matrix, rows, ROWS_TOGETHER)
        target.copy_(found.view(fragments, *target.shape[1:-1], -1)[: target.shape[0], ..., : target.shape[-1]])
    return codes, scales


def refuse_scales(scales: Tensor, least_held: int, greatest_held: int) -> None:
    """ArtifactError for a scale byte that a stream does not hold."""
    least, greatest = (int(bound) for bound in scales.aminmax())
    if least < least_held or greatest > greatest_held:
        raise ArtifactError(
            f"a weight has scale bytes {least} to {greatest}; the stream layout holds {least_held} to "
            f"{greatest_held}: pack it with the layout row_major"
        )


def fragments_of(matrix: Tensor, rows: str, together: int) -> Tensor:
    """[N, B] as a view [N/16, 8 / together, 2, together, B]: the 16 rows of each fragment.

    Of gate_up, `together` rows are gates and as many that follow are the ups of the same outputs.
    """
    count, width = matrix.shape
    if count % FRAGMENT_ROWS:
        raise ArtifactError(f"a weight has {count} rows; the stream layout takes multiples of {FRAGMENT_ROWS}")
    parts = (8 // together, together)
    if rows == "gate_up_interleaved":
        return matrix.view(-1, *parts, 2, width).transpose(2, 3)
    if rows == "gate_up_concatenated":
        return matrix.view(2, -1, *parts, width).permute(1, 2, 0, 3, 4)
    return matrix.view(-1, parts[0], 2, together, width)


class _Payload:
    """Lays the payload of some fragments. Temporaries are kept: to get them from the system again at every step would
    cost as much as the work."""

    def __init__(self, stream: Stream, tiles: int, warps: int, device: torch.device):
        self._tables = _word_tables(device)
        self._fragments, self._width = tiles * warps, stream.padded_columns // 8
        self._shape = shape = (tiles, stream.records, stream.chunks, warps, 8)
        options: Any = {"dtype": torch.int32, "device": device}
        self._rows = torch.empty(2, 2, *shape, 4, **options)
        self._low, self._high = (torch.empty(2, *shape, 4, **options) for _ in range(2))
        mixed = torch.empty(2, 2, *shape, 4, **options)
        self._even, self._odd = mixed.unbind(1)
        pairs = torch.empty(2, 2, 2, *shape, 4, **options)
        self._halves = [(some, *low_high) for some, low_high in zip(mixed, pairs, strict=True)]
        self._indices = [one.view(-1) for one in pairs]
        self._words = torch.empty(2, self._indices[0].numel(), **options)
        self._parts = list(zip(*self._words.view(2, 2, -1), strict=True))
        # The four words of a lane travel as one element of 16 bytes.
        self._lanes = self._words[0].view(torch.complex128).view(4, *shape).permute(1, 2, 3, 4, 5, 0)

    def lay(self, target: Tensor, source: Tensor) -> None:
        """target u8 [tiles, records, chunks, warps, 512], source i32 [fragments, 2, 8, K/8], the last may lack.

        Two i32 of a row are 16 columns: byte c of the first is the pair 0 or 1 of the lanes 4r + c, by the row's half,
        that of the second the pair 2 or 3.
        """
        tiles, records, chunks, warps, _ = self._shape
        whole = padded(source, self._fragments, self._width)
        halves = whole.view(tiles, warps, 2, 8, records, chunks, 4, 2).permute(2, 7, 0, 4, 5, 1, 3, 6)
        for rows, half in zip(self._rows, halves, strict=True):
            rows.copy_(half)
        one, other = self._rows  # of both row halves: [pairs 0 1 or 2 3, tiles, records, chunks, warps, r, t]
        # Side by side the bytes of both halves, first for c = 0 and 2, then for c = 1 and 3.
        torch.bitwise_and(one, EVEN_BYTES, out=self._low)
        torch.bitwise_and(other, EVEN_BYTES, out=self._high)
        torch.add(self._low, self._high, alpha=256, out=self._even)
        torch.bitwise_right_shift(one, 8, out=self._low).bitwise_and_(EVEN_BYTES)
        torch.bitwise_and(other, ODD_BYTES, out=self._high)
        torch.bitwise_or(self._low, self._high, out=self._odd)
        for mixed, low, high in self._halves:
            torch.bitwise_and(mixed, 0xFFFF, out=low)
            torch.bitwise_right_shift(mixed, 16, out=high).bitwise_and_(0xFFFF)
        for table, indices, words in zip(self._tables, self._indices, self._words, strict=True):
            torch.index_select(table, 0, indices, out=words)
        for words, more in self._parts:
            words.bitwise_or_(more)
        target.view(torch.complex128).view(*self._shape, 4).copy_(self._lanes)


def _lay_scales(target: Tensor, source: Tensor, stream: Stream) -> None:
    """target u8 [tiles, records, warps, 512], source u8 [fragments, 2, 8, K/32]."""
    tiles, records, warps, _ = target.shape
    whole = padded(source + SCALE_OFFSET, tiles * warps, stream.padded_columns // GROUP)
    chunks = whole.view(torch.int16).view(tiles, warps, 2, 8, records, stream.chunks)  # both groups of a chunk
    placed = target.view(torch.int16).view(tiles, records, warps, 8, MOST_CHUNKS, 2)
    placed[..., : stream.chunks, :].copy_(chunks.permute(0, 4, 1, 3, 5, 2))


def padded(source: Tensor, fragments: int, width: int) -> Tensor:
    """[F, ..., B] with zeros up to [fragments, ..., width]; `source` itself where nothing is missing."""
    if (source.shape[0], source.shape[-1]) == (fragments, width):
        return source
    out = torch.zeros(fragments, *source.shape[1:-1], width, dtype=source.dtype, device=source.device)
    out[: source.shape[0], ..., : source.shape[-1]] = source
    return out


def _words(codes: Tensor) -> Tensor:
    """u8 [N, B] as i32 [N, B/4]; copied only where the bytes do not lie on word boundaries."""
    codes = codes.contiguous()
    return (codes.clone() if codes.storage_offset() % 4 or codes.data_ptr() % 4 else codes).view(torch.int32)


def _codes_of(chunks: Tensor, stream: Stream) -> Tensor:
    """Payload bytes [fragments, 16, padded columns / 2] of weight chunks u8 [tiles, records, chunks, warps, 512]."""
    words = chunks.reshape(*chunks.shape[:4], 8, 4, 4, 4).view(torch.int16).int() & 0xFFFF
    halves = [
        table.index_select(0, half.flatten()).view(half.shape)
        for table, half in zip(_code_tables(chunks.device), words.unbind(-1), strict=True)
    ]
    split = (
        (halves[0] | halves[1]).unsqueeze(-1).view(torch.uint8)
    )  # [tiles, records, chunks, warps, r, c, t, (row half, columns) pairs]
    order = split.view(*chunks.shape[:4], 8, 4, 4, 2, 2).permute(0, 3, 8, 4, 1, 2, 6, 7, 5)
    return order.reshape(stream.tiles * stream.warps, FRAGMENT_ROWS, -1)


def _scales_of(chunks: Tensor, stream: Stream) -> Tensor:
    """Scale bytes [fragments, 16, padded columns / 32] of scale chunks u8 [tiles, records, warps, 512]."""
    words = chunks.reshape(*chunks.shape[:3], 8, MOST_CHUNKS, 2, 2)[..., : stream.chunks, :, :]
    return words.permute(0, 2, 5, 3, 1, 4, 6).reshape(stream.tiles * stream.warps, FRAGMENT_ROWS, -1) - SCALE_OFFSET


def _place(pair: int, half: int, bit: int) -> int:
    """The bit of a word that holds a bit of the code of a pair's first or second column."""
    return (16 * half + CODE_BITS[bit] - ROTATIONS[pair][bit]) % 32


@cache
def _word_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """For two payload bytes (row r low, row r + 8 high) the bits of a word: as pairs 0 and 1, and as pairs 2 and 3."""
    both = torch.arange(1 << 16, dtype=torch.int64, device=device)
    tables = []
    for first in (0, 2):
        words = torch.zeros_like(both)
        for number, (row, half, bit) in enumerate(product((0, 1), (0, 1), range(4))):
            words |= (both >> number & 1) << _place(first + row, half, bit)
        tables.append(words.to(torch.int32))  # the upper half wraps to negative numbers
    return tables[0], tables[1]


@cache
def _code_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """For the low and the high half of a word what it says of the codes: of pair i in byte i, first column low."""
    half_word = torch.arange(1 << 16, dtype=torch.int64, device=device)
    tables = torch.zeros(2, 1 << 16, dtype=torch.int64, device=device)
    for number, (pair, half, bit) in enumerate(product(range(4), (0, 1), range(4))):
        upper, place = divmod(_place(pair, half, bit), 16)
        tables[upper] |= (half_word >> place & 1) << number
    low, high = tables.to(torch.int32)
    return low, high
