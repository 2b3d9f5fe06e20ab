"""The loop of the decode kernels on sm_90 over the records of a unit, in PTX.

A record is a scale chunk and its chunks of weights, its slots: of each a lane has four words. The ring holds the next
few slots of a lane. What a slot held is used, then the one that comes a ring later is asked for: of this record, of the
next, or of the one that follows the unit. It is one piece of assembly, so that Triton, MLIR and LLVM have one operation
where there were a thousand, and do not unroll it.
"""

from __future__ import annotations

from triton.experimental import gluon

from moeloom.runtime.stream import CHUNK_BYTES

from .decode_chunk import CHUNK_X_BYTES, chunk_lines

WORDS = 4
"""Of a lane in a chunk."""
POLICY = ".reg .b64 policy; createpolicy.fractional.L2::evict_first.b64 policy, 1.0;"
"""Weights are read once."""


@gluon.constexpr_function
def _load(words, address, slot, warps):
    """A lane's words of a slot of the record at `address`, of a stream of `warps` fragments."""
    cached = "L1::evict_first.L2::cache_hint"
    return f"ld.global.{cached}.v4.b32 {{{', '.join(words)}}}, [{address} + {slot * warps * CHUNK_BYTES}], policy;"


@gluon.constexpr_function
def fill_constraints(ring):
    """Operands of `fill_assembly`: the ring's words; where the lane's words of a record begin."""
    return ",".join([*["=&r"] * (WORDS * ring), "l"])


@gluon.constexpr_function
def fill_assembly(ring, warps):
    """PTX that asks for the first slots of a record."""
    words = [[f"${WORDS * slot + i}" for i in range(WORDS)] for slot in range(ring)]
    loads = [_load(words[slot], f"${WORDS * ring}", slot, warps) for slot in range(ring)]
    return "{\n\t" + "\n\t".join([POLICY, *loads]) + "\n}"


@gluon.constexpr_function
def records_constraints(octets, ring):
    """Operands of `records_assembly`: 4 sums an octet and the ring's words, each the same before; where the lane's
    words of the first record begin, and those of the record that follows the last; where it reads x; and how many
    records there are, one or more."""
    sums, words = 4 * octets, WORDS * ring
    tied = [str(number) for number in range(sums + words)]
    return ",".join([*["=&f"] * sums, *["=&r"] * words, *tied, "l", "l", "r", "r"])


@gluon.constexpr_function
def records_assembly(octets, octet_bytes, chunks, ring, warps):
    """PTX that adds records of `chunks` times x to the sums; x of the next octet lies `octet_bytes` on."""
    sums, slots = 4 * octets, 1 + chunks
    first, following, x, records = (f"${2 * (sums + WORDS * ring) + number}" for number in range(4))
    words = [[f"${sums + WORDS * slot + i}" for i in range(WORDS)] for slot in range(ring)]
    words += [[f"c{WORDS * slot + i}" for i in range(WORDS)] for slot in range(ring, slots)]
    scales = [f"scale{i}" for i in range(WORDS)]
    lines = [
        POLICY,
        f".reg .b32 c<{WORDS * slots}>, scale<{WORDS}>, x, left; .reg .b64 own, then; .reg .pred more;",
        f"mov.b64 own, {first};",
        f"mov.b32 x, {x};",
        f"mov.b32 left, {records};",
        "records:",
        "sub.u32 left, left, 1;",
        "setp.ne.u32 more, left, 0;",
        f"add.s64 then, own, {slots * warps * CHUNK_BYTES};",
        f"selp.b64 then, then, {following}, more;",
    ]
    for slot in range(slots):
        if slot == 0:
            lines += [f"mov.b32 {scale}, {word};" for scale, word in zip(scales, words[0], strict=True)]
        else:
            lines += chunk_lines(slot - 1, words[slot], scales, "x", octets, octet_bytes)
        later = slot + ring
        if later < slots:
            lines.append(_load(words[later], "own", later, warps))
        else:
            lines.append(_load(words[later - slots], "then", later - slots, warps))
    lines += ["mov.b64 own, then;", f"add.u32 x, x, {chunks * CHUNK_X_BYTES.value};", "@more bra records;"]
    return "{\n\t" + "\n\t".join(lines) + "\n}"
