"""The sizes of weight streams (pack_stream.py, pack_mfma.py) and of lists. Without torch: workers import it."""

from __future__ import annotations

from dataclasses import dataclass

FRAGMENT_ROWS = 16
CHUNK_COLUMNS = 64
SWIZZLE_BYTES = 1024  # after which the swizzle of wgmma's operands begins anew
ROUTER_STEP = 1024  # columns of a step of the router's sum
LAST_ROW = 1 << 30  # more than a slot's sorted row in slot_rows: it is the last of its expert
EXCHANGE_FLAGS = 4096  # words of an exchange that are zero between launches
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


FRAGMENTS = 4  # of a tile of an MFMA stream: a byte of a lane's scale word each
STEP_COLUMNS = 128
STEP_SCALE_BYTES = 256
STEP_BYTES = STEP_SCALE_BYTES + FRAGMENTS * 1024


@dataclass(frozen=True)
class MfmaStream:
    """The sizes of the MFMA stream of a matrix [rows, columns]: tiles of 64 rows in steps of 128 columns."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        return -(-self.rows // (FRAGMENT_ROWS * FRAGMENTS))

    @property
    def steps(self) -> int:
        return -(-self.columns // STEP_COLUMNS)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.tiles, self.steps, STEP_BYTES)

    def span(self, parts: int) -> int:
        """Steps of each of `parts` of K; the last part may have fewer."""
        return -(-self.steps // parts)

    def splits_into(self, parts: int) -> bool:
        """Whether no part would be without a step."""
        return self.span(parts) * (parts - 1) < self.steps
