"""The ring of steps of the decode kernels on CDNA GPUs: the next steps of a wave, weights and x, in its registers.

A program is one wave. Slot s % RING holds step s of a unit, is loaded again as soon as it was used, and keeps its
registers across units and experts, so that no copy waits for a load. Loads return in the order in which they were
asked for; x therefore comes as far ahead as the weights, from where the caches of other waves' reads hold it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import STEP_BYTES, STEP_SCALE_BYTES

from .decode_mfma_step import (
    COLUMNS,
    LANE_COLUMNS,
    LANES,
    ROWS,
    TOKENS,
    lanes_layout,
    multiply_step,
    sums_layout,
)
from .numbers import GROUP
from .products import F4
from .scales import sorted_offset

STEP_WORDS, SCALE_WORDS = gl.constexpr(STEP_BYTES // 4), gl.constexpr(STEP_SCALE_BYTES // 4)
WORDS = gl.constexpr(4)
"""i32 of a lane and fragment."""
DIES = gl.constexpr(8)
"""Of a GPU, each with an L2 cache; programs go to them in turns."""


@gluon.jit
def program_number(PROGRAMS: gl.constexpr):
    """This program's number, so that those of one die follow one another: they read the same rows of x."""
    program = gl.program_id(0)
    if PROGRAMS % DIES == 0:
        return program % DIES * (PROGRAMS // DIES) + program // DIES
    else:
        return program


@gluon.jit
def lane_numbers(size: gl.constexpr):
    """i32 [64], for the rows of a tensor [64, size]."""
    return gl.arange(0, LANES, gl.SliceLayout(1, lanes_layout(size)))


@gluon.constexpr_function
def lane_size(x):
    """Elements of x that a lane loads of a step: bytes of codes, or bf16."""
    return LANE_COLUMNS.value // 2 if x == F4.value else LANE_COLUMNS.value


@gluon.jit
def entries_of(sorted_ids, unit, last, PER_BLOCK: gl.constexpr, X: gl.constexpr):
    """i32 [64]: the sorted id whose row each lane reads for a unit, or for the last one behind it."""
    block = gl.minimum(unit, last - 1) // PER_BLOCK
    return gl.load(sorted_ids + block * TOKENS + lane_numbers(lane_size(X)) % TOKENS)


@gluon.jit
def experts_of(expert_ids, unit, last, PER_BLOCK: gl.constexpr, X: gl.constexpr):
    """i32 [64]: the expert of a unit, or of the last one behind it; a scalar would be waited for at once."""
    return gl.load(expert_ids + gl.minimum(unit, last - 1) // PER_BLOCK + 0 * lane_numbers(lane_size(X)))


@gluon.jit
def uniform(values):
    """The i32 that all lanes have. A scalar written so may not be read by the next four instructions that load."""
    return gl.inline_asm("v_readfirstlane_b32 $0, $1\n\ts_nop 4", "=s,v", [values], gl.int32, is_pure=True)


@gluon.jit
def place_of(
    experts,
    entries,
    unit,
    last,
    x,
    x_stride,
    x_scales,
    TILES: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGE: gl.constexpr,
    TOPK: gl.constexpr,
    K: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Where a unit (or the last one behind it) finds its operands: (tile among all experts', split, x of each lane, and
    where it has scales these). A padding row reads row 0 of x; its sums are nobody's."""
    unit = gl.minimum(unit, last - 1)
    lane = lane_numbers(lane_size(X))
    slot, token = entries.to(gl.uint32, bitcast=True) >> 24, (entries & 0xFFFFFF).to(gl.int64)
    row = token if STAGE == 1 else token * TOPK + slot.to(gl.int64)
    rows = x + gl.where(slot != TOPK, row, 0) * x_stride + lane // TOKENS * lane_size(X)
    tile, split = uniform(experts) * TILES + unit % TILES, unit // TILES % SPLITS
    if X == F4:
        sorted_row = (unit // (TILES * SPLITS) * TOKENS).to(gl.int64) + lane % TOKENS
        scales = x_scales + sorted_offset(sorted_row, lane // TOKENS, scale_columns(K, LAYOUT), LAYOUT)
        return tile, split, rows, scales
    else:
        return tile, split, rows


@gluon.constexpr_function
def scale_columns(columns, layout):
    """Bytes of a row of sorted scales."""
    groups = columns // GROUP.value
    return (groups + 7) // 8 * 8 if layout == "tiled_32x8" else groups


@gluon.jit
def load_step(stream, place, step, STEPS: gl.constexpr, SPAN: gl.constexpr, K: gl.constexpr, X: gl.constexpr,
              LAYOUT: gl.constexpr):  # fmt: skip
    """Step number `step` of the unit at `place`: weights, their scales, x, and its scales where it has any.

    Past the last step the last one, past the last column the last ones: `masked` makes zeros of this x.
    """
    tile, rows = place[0], place[2]
    step += place[1] * SPAN
    if STEPS % SPAN != 0:
        step = gl.minimum(step, STEPS - 1)
    start = stream + (tile.to(gl.int64) * STEPS + step) * STEP_WORDS
    words: gl.constexpr = lanes_layout(WORDS)
    lane = gl.arange(0, 4 * LANES, gl.SliceLayout(1, words))
    word = gl.arange(0, WORDS, gl.SliceLayout(0, words))
    weight = gl.amd.cdna3.buffer_load(start, SCALE_WORDS + lane[:, None] * WORDS + word[None, :])
    scales = gl.amd.cdna3.buffer_load(start, gl.arange(0, LANES, gl.BlockedLayout([1], [64], [1], [0])))

    size: gl.constexpr = lane_size(X)
    group = lane_numbers(size) // TOKENS
    first = step * (4 * size) + gl.full([LANES], 0, gl.int32, group.type.layout)
    if K % COLUMNS != 0:
        first = gl.minimum(first, (K // LANE_COLUMNS - 1 - group) * size)
    values = gl.load(word_places(rows + first, size))
    if X == F4:
        groups = step // 2 * 256 + step % 2 * 2 if LAYOUT == "tiled_32x8" else step * 4
        groups += gl.full([LANES], 0, gl.int32, group.type.layout)
        if LAYOUT != "tiled_32x8" and K % COLUMNS != 0:
            groups = gl.minimum(groups, K // GROUP - 1 - group)
        row_scale = gl.load(place[3] + groups).to(gl.int32)
        return weight, scales, values, row_scale
    else:
        return weight, scales, values


@gluon.jit
def word_places(places, size: gl.constexpr):
    """i32 pointers [64, words] from those of the first of `size` elements of each lane."""
    words: gl.constexpr = size // (4 if size == 16 else 2)
    layout: gl.constexpr = lanes_layout(words)
    places = places.to(gl.pointer_type(gl.int32), bitcast=True)
    places = gl.convert_layout(places, gl.SliceLayout(1, layout), assert_trivial=True)
    return places[:, None] + gl.arange(0, words, gl.SliceLayout(0, layout))[None, :]


@gluon.jit
def masked(slot, place, step, SPAN: gl.constexpr, K: gl.constexpr, X: gl.constexpr):
    """`slot` with zeros for x past column K."""
    column = (place[1] * SPAN + step) * COLUMNS + lane_numbers(WORDS) // TOKENS * LANE_COLUMNS
    column = gl.convert_layout(column, gl.SliceLayout(1, slot[2].type.layout), assert_trivial=True)
    values = gl.where((column < K)[:, None], slot[2], 0)
    if X == F4:
        inside = gl.convert_layout(column, slot[3].type.layout, assert_trivial=True) < K
        return slot[0], slot[1], values, gl.where(inside, slot[3], 0)
    else:
        return slot[0], slot[1], values


@gluon.jit
def fill_ring(stream, place, STEPS: gl.constexpr, SPAN: gl.constexpr, K: gl.constexpr, X: gl.constexpr,
              LAYOUT: gl.constexpr, RING: gl.constexpr):  # fmt: skip
    """The first RING steps of a unit."""
    ring = (load_step(stream, place, 0, STEPS, SPAN, K, X, LAYOUT),)
    for step in gl.static_range(1, RING):
        ring = _with(ring, step, load_step(stream, place, step, STEPS, SPAN, K, X, LAYOUT))
    return ring


@gluon.jit
def _with(ring, slot: gl.constexpr, step):
    """`ring` with `step` in a slot, maybe a new one."""
    one = (step,)
    return ring[:slot] + one + ring[slot + 1 :]


@gluon.jit
def _multiplied(sums, slot, X: gl.constexpr, TARGET: gl.constexpr):
    if X == F4:
        return multiply_step(sums, slot[0], slot[1], slot[2], slot[3], X, TARGET)
    else:
        return multiply_step(sums, slot[0], slot[1], slot[2], None, X, TARGET)


@gluon.jit
def multiply_unit(
    ring,
    stream,
    here,
    there,
    STEPS: gl.constexpr,
    SPAN: gl.constexpr,
    K: gl.constexpr,
    X: gl.constexpr,
    LAYOUT: gl.constexpr,
    RING: gl.constexpr,
    TARGET: gl.constexpr,
):
    """The sums f32 [64, 16] of SPAN steps at `here`, and the ring: then of the unit at `there`."""
    WHOLE: gl.constexpr = whole_steps(STEPS, SPAN, K)
    TURNS: gl.constexpr = turns(SPAN, RING, WHOLE)
    sums = gl.full([ROWS, TOKENS], 0.0, gl.float32, sums_layout(X, TARGET))
    for turn in range(TURNS):
        for slot in gl.static_range(RING):
            sums = _multiplied(sums, ring[slot], X, TARGET)
            ring = _with(ring, slot, load_step(stream, here, (turn + 1) * RING + slot, STEPS, SPAN, K, X, LAYOUT))
            gl.amd.hint.sched_barrier()  # or loads would sink to where they are used
    for step in gl.static_range(TURNS * RING, SPAN):
        used = ring[step % RING]
        if step >= WHOLE:
            used = masked(used, here, step, SPAN, K, X)
        sums = _multiplied(sums, used, X, TARGET)
        if step + RING < SPAN:
            fresh = load_step(stream, here, step + RING, STEPS, SPAN, K, X, LAYOUT)
        else:
            fresh = load_step(stream, there, step % RING, STEPS, SPAN, K, X, LAYOUT)
        ring = _with(ring, step % RING, fresh)
        gl.amd.hint.sched_barrier()
    return sums, ring


@gluon.constexpr_function
def whole_steps(steps, span, columns):
    """How many steps of a unit, of any split, end before the last column."""
    return max(0, columns // COLUMNS.value - (-(-steps // span) - 1) * span)


@gluon.constexpr_function
def turns(span, ring, whole):
    """Times that a loop goes round the ring, all its steps whole and loading none of the next unit."""
    return max(0, min(span // ring - 1, whole // ring))
