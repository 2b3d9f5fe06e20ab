"""Sixteen tokens at a time by AMX: C[token, row] += A[token, column] B[column, row] over the 32 columns of a group.

A is the staged rows in place. B is decoded with the scale already in the exponent, which is exact while every product
of e2m1 and scale is a normal bf16: scale bytes 2 .. 252. Outside of that the tile is computed again without AMX.

A tile load waits until the stores it reads from have left the core's buffers, so a few groups are decoded before their
products. Even and odd groups have sums of their own, because a sum's latency is three times the time of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

from .decode import GROUP, QUARTER, ROWS, SIGNED_E2M1, Amx, bf16_bits
from .dsl import Buffer, Val, bit, const, effect, f32, i8, i16, i32, i64, intrinsic, loop, vec, when
from .multiply import Weight

TOKENS = 16
"""Rows of a tile register; its columns are GROUP bf16 or ROWS f32, 64 bytes both."""
_ROW_BYTES = 64
_A, _B = 4, 6
"""The first tile registers of A (one for 16 tokens) and of B (even and odd groups); C is 0, 2 (even) and 1, 3 (odd)."""
_SMALLEST, _LARGEST = 2, 252
_CHUNK = 4
"""Groups decoded before their products; 8 was equal, 16 slower."""
_PAIRS = GROUP * ROWS // 2
_VALUES = [bf16_bits(v) if v else 0x8000 for v in SIGNED_E2M1]
"""The lowest i16 stands for 0: scales up to 1 saturate it there (-0.0); a larger one gives 2^-127 times itself, below
the last place of any other weight of the group."""


@dataclass(frozen=True)
class Matrix:
    """The stack memory of AMX products: the tile configuration, decoded groups (pairs of bf16), sums of odd groups."""

    configuration: Buffer
    decoded: Buffer
    odd: Buffer

    @staticmethod
    def stack() -> Matrix:
        return Matrix(
            Buffer.stack(8, i64()), Buffer.stack(_CHUNK * _PAIRS, i32()), Buffer.stack(2 * TOKENS * ROWS, f32())
        )

    def configure(self, rows: Val) -> None:
        """Palette 1 and eight tiles of 64 bytes a row: C and A with the rows of their 16 tokens, B with 16."""
        first = rows.min(TOKENS).to(i64())
        second = (rows - TOKENS).max(1).to(i64())
        heights = first * 0x01_00_00_01_01 + second * 0x01_00_01_01_00_00 + (0x1010 << 48)
        widths = 0x0040_0040_0040_0040
        words: list[Val | int] = [1, 0, widths, widths, 0, 0, heights, 0]
        for position, word in enumerate(words):
            self.configuration.store(word, position)
        effect("llvm.x86.ldtilecfg", self.configuration.pointer(0))

    @staticmethod
    def release() -> None:
        effect("llvm.x86.tilerelease")

    def multiply(
        self,
        how: Amx,
        weight: Weight,
        number: Val,
        staged: Buffer,
        tokens: int,
        rows: Val,
        sums: Buffer,
        row: Val | int,
    ) -> Val:
        """sums[row + t, 16] of the weight tile whose scale groups start at `number`; true if a scale was extreme, and
        the sums are not to be used."""
        blocks, groups = tokens // TOKENS, weight.groups
        for c in range(2 * blocks):
            effect("llvm.x86.tilezero", _tile(c))

        def product(g: Val, slot: Val, odd: int) -> None:
            _load(_B + odd, self.decoded, slot * _PAIRS)
            for c in range(blocks):
                _load(_A + c, staged, (g * rows + c * TOKENS) * (GROUP // 2))
                effect("llvm.x86.tdpbf16ps", _tile(2 * c + odd), _tile(_A + c), _tile(_B + odd))

        def chunk(start: Val, extreme: Val) -> list[Val]:
            count = (groups - start).min(_CHUNK)
            seen = loop(0, count, 1, [extreme], lambda i, e: [self._decode(how, weight, number + start + i, i, e)])

            def two_groups(i: Val) -> None:
                product(start + i, i, 0)
                when(i + 1 < count, lambda: product(start + i + 1, i + 1, 1))

            loop(0, count, 2, [], two_groups)
            return seen

        none = const(0, vec(ROWS, bit()))
        (extreme,) = loop(0, groups, _CHUNK, [none], chunk)
        for c in range(blocks):
            _store(2 * c, sums, (row + c * TOKENS) * ROWS)
            _store(2 * c + 1, self.odd, c * TOKENS * ROWS)
        loop(0, rows * ROWS, ROWS, [], lambda i: _add(sums, row * ROWS + i, self.odd.load(i, ROWS)))
        return extreme.reduce("or")

    def _decode(self, how: Amx, weight: Weight, group: Val, slot: Val, extreme: Val) -> Val:
        """Decode a group into its slot; true in the lanes where it, or `extreme`, has an extreme scale."""
        weight.prefetch(group)
        scales = weight.scales.load(group * ROWS, ROWS)
        exponent = ((scales.to(vec(ROWS, i32())) - 127) << 7) & 0xFFFF
        exponents = (exponent | (exponent << 16)).bits(vec(2 * ROWS, i16()))
        for quarter in range(GROUP // QUARTER):
            words = how.words(weight.payload, group * (GROUP * ROWS // 2) + quarter * _ROW_BYTES)
            for step in range(how.steps):
                bits = intrinsic("llvm.sadd.sat", exponents.type, how.look_up(_VALUES, words, step), exponents)
                pair = quarter * how.steps + step
                self.decoded.store(bits.bits(vec(ROWS, i32())), slot * _PAIRS + pair * ROWS)
        usual = (scales - _SMALLEST).below(_LARGEST - _SMALLEST + 1)
        return extreme | (usual ^ 1)


def _tile(number: int) -> Val:
    return const(number, i8())


def _load(tile: int, source: Buffer, position: Val | int) -> None:
    effect("llvm.x86.tileloadd64", _tile(tile), source.pointer(position), const(_ROW_BYTES, i64()))


def _store(tile: int, target: Buffer, position: Val | int) -> None:
    effect("llvm.x86.tilestored64", _tile(tile), target.pointer(position), const(_ROW_BYTES, i64()))


def _add(sums: Buffer, position: Val, values: Val) -> None:
    sums.store(sums.load(position, ROWS) + values, position)
