"""The sizes of a weight stream (pack_stream.py). Without torch: the compiler's workers import it."""

from __future__ import annotations

from dataclasses import dataclass

FRAGMENT_ROWS = 16
CHUNK_COLUMNS = 64
CHUNK_BYTES = 512
MOST_CHUNKS = 16  # whose scales fill a chunk


@dataclass(frozen=True)
class Stream:
    """The sizes of the stream of a matrix [rows, columns] in tiles of `warps` * 16 rows."""

    rows: int
    columns: int
    warps: int

    @property
    def tiles(self) -> int:
        return -(-self.rows // (FRAGMENT_ROWS * self.warps))

    @property
    def records(self) -> int:
        return -(-self.columns // (CHUNK_COLUMNS * MOST_CHUNKS))

    @property
    def chunks(self) -> int:
        """Weight chunks a record: as even as can be, so that the last record is hardly padded."""
        return -(-self.columns // (CHUNK_COLUMNS * self.records))

    @property
    def padded_columns(self) -> int:
        return self.records * self.chunks * CHUNK_COLUMNS

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.tiles, self.records, 1 + self.chunks, self.warps, CHUNK_BYTES)
