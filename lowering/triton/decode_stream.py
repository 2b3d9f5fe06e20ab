"""The ring of weight chunks of the decode kernels for sm_90: the next chunks of every warp, in registers.

It goes on across units (decode_units.py) and experts, so that loads never stop.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .decode_chunk import CHUNK_X_BYTES
from .decode_record import WORDS, fill_assembly, fill_constraints, records_assembly, records_constraints

CHUNK_WORDS = gl.constexpr(128)
"""i32 of a chunk."""
LANE_WORDS = gl.constexpr(WORDS)
CHUNK_COLUMNS = gl.constexpr(64)
COLUMN_BYTES = gl.constexpr(16)
"""Of an octet in bf16."""


@gluon.constexpr_function
def threads_layout(warps):
    """[threads]: one value a thread."""
    return gl.BlockedLayout([1], [32], [warps], [0])


@gluon.jit
def thread_numbers(layout: gl.constexpr):
    """i32 [threads], one a thread. Asked for anew at each call, or what follows from them would fill registers."""
    kind: gl.constexpr = gl.distributed_type(gl.int32, [32 * gl.num_warps()], layout)
    thread = gl.inline_asm("mov.u32 $0, %tid.x;", "=r", [], kind, is_pure=False)
    return thread & (32 * gl.num_warps() - 1)  # which changes nothing, but tells the range


@gluon.constexpr_function
def units_a_part(tiles, stream_warps, warps):
    """Units of a sort block, or of a part of its K, of a weight of so many tiles of `stream_warps` fragments.

    A unit is a fragment a warp."""
    return -(-tiles * stream_warps // warps)


@gluon.jit
def first_record(
    expert,
    unit,
    last,
    TILES: gl.constexpr,
    SPLITS: gl.constexpr,
    SPAN: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
):
    """The number of a unit's first record in the stream, of its SPAN. Behind the last unit 0: it is cached.

    Where a unit has several tiles, i32 [threads]: that of each thread's tile, past the last one of that one, whose rows
    are not stored.
    """
    UNITS: gl.constexpr = units_a_part(TILES, STREAM_WARPS, gl.num_warps())
    tile = unit % UNITS
    if gl.num_warps() > STREAM_WARPS:
        thread = thread_numbers(threads_layout(gl.num_warps()))
        tile = gl.minimum((tile * gl.num_warps() + thread // 32) // STREAM_WARPS, TILES - 1)
    record = ((expert * TILES + tile) * SPLITS + unit // UNITS % SPLITS) * SPAN
    return gl.where(unit < last, record, 0)


@gluon.jit
def own_words(stream, record, CHUNKS: gl.constexpr, STREAM_WARPS: gl.constexpr):
    """Addresses i64 [threads]: where each lane's words of `record`, as `first_record` gives it, begin."""
    thread = thread_numbers(threads_layout(gl.num_warps()))
    if gl.num_warps() > STREAM_WARPS:
        thread = thread % (32 * STREAM_WARPS)
    start = stream + record.to(gl.int64) * ((1 + CHUNKS) * STREAM_WARPS * CHUNK_WORDS)
    return (start + thread * LANE_WORDS).to(gl.int64, bitcast=True)


@gluon.jit
def fill_ring(stream, record, CHUNKS: gl.constexpr, RING: gl.constexpr, STREAM_WARPS: gl.constexpr):
    """The first RING chunks of a record: four i32 [threads] each."""
    kind: gl.constexpr = gl.distributed_type(gl.int32, [32 * gl.num_warps()], threads_layout(gl.num_warps()))
    return gl.inline_asm(
        fill_assembly(RING, STREAM_WARPS),
        fill_constraints(RING),
        [own_words(stream, record, CHUNKS, STREAM_WARPS)],
        (kind,) * (LANE_WORDS * RING),
        is_pure=False,
    )


@gluon.jit
def pushed(values, one):
    """The tuple `values` with one more."""
    last = (one,)
    return values + last


@gluon.jit
def zero_sums(OCTETS: gl.constexpr):
    """4 f32 [threads] an octet: rows r, r, r + 8, r + 8 of a fragment times tokens 2c, 2c + 1, 2c, 2c + 1, in lane
    4r + c."""
    zero = gl.full([32 * gl.num_warps()], 0.0, gl.float32, threads_layout(gl.num_warps()))
    sums = (zero, zero, zero, zero)
    for _ in gl.static_range(4, 4 * OCTETS):
        sums = pushed(sums, zero)
    return sums


@gluon.jit
def multiply_unit(
    sums,
    ring,
    stream,
    record,
    following,
    x_address,
    is_short,
    begin,
    end,
    SPAN: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
):
    """`sums` (`zero_sums`) + products with x of the records `begin` to `end` of a unit of SPAN, and the ring.

    `record` is the number of the first of them; the ring is then filled from record `following`. Where the block
    `is_short` only its first octet is multiplied.
    """
    if len(sums) == 4:
        return _multiply_records(
            sums, ring, stream, record, following, x_address, begin, end, SPAN, CHUNKS, STREAM_WARPS
        )
    if is_short:
        own, ring = _multiply_records(
            sums[:4], ring, stream, record, following, x_address, begin, end, SPAN, CHUNKS, STREAM_WARPS
        )
        sums = own + sums[4:]
    else:
        sums, ring = _multiply_records(
            sums, ring, stream, record, following, x_address, begin, end, SPAN, CHUNKS, STREAM_WARPS
        )
    return sums, ring


@gluon.jit
def _multiply_records(
    sums,
    ring,
    stream,
    record,
    following,
    x_address,
    begin,
    end,
    SPAN: gl.constexpr,
    CHUNKS: gl.constexpr,
    STREAM_WARPS: gl.constexpr,
):
    """`multiply_unit` of as many octets as there are sums of."""
    sum_kind: gl.constexpr = sums[0].type
    word_kind: gl.constexpr = ring[0].type
    RING: gl.constexpr = len(ring) // LANE_WORDS
    OCTETS: gl.constexpr = len(sums) // 4
    octet_bytes: gl.constexpr = SPAN * CHUNKS * CHUNK_COLUMNS * COLUMN_BYTES
    x_lane = x_address + thread_numbers(threads_layout(gl.num_warps())) % 32 * 16 + begin * (CHUNKS * CHUNK_X_BYTES)
    own, then = (
        own_words(stream, record, CHUNKS, STREAM_WARPS),
        own_words(stream, following, CHUNKS, STREAM_WARPS),
    )
    read = (own, then, x_lane, end - begin)
    found = gl.inline_asm(
        records_assembly(OCTETS, octet_bytes, CHUNKS, RING, STREAM_WARPS),
        records_constraints(OCTETS, RING),
        sums + ring + read,
        (sum_kind,) * len(sums) + (word_kind,) * len(ring),
        is_pure=False,
    )
    return found[: len(sums)], found[len(sums) :]
