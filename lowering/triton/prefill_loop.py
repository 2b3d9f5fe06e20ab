"""The loop of the prefill products on sm_90 over the columns of a unit, in PTX.

It is one piece of assembly, and what it leaves for the next unit are registers of its own. So Triton, MLIR and LLVM
have one operation where there were thousands, most of their time with these kernels. In it are as many loops as there
are lengths of a block (`prefill_order.py`), of which a unit takes one. They wait for all products at the end of a
record: were any under way where such branches meet, ptxas would make every product wait for the one before.

A lane's words of a unit are slots that lie evenly apart: of each record first the scales, then its chunks. The ring
holds the next few of them. x goes through a ring of steps in shared memory, of a few chunks each; some of the next are
on their way. At its end a unit asks for the first slots and steps of the following one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from moeloom.runtime.stream import CHUNK_BYTES, CHUNK_COLUMNS

from .decode_x import PIECE_BYTES
from .prefill_chunk import LOW, PIECES, STEP_BYTES, SUM, chunk_lines, chunks_pending
from .prefill_order import length_of, lengths
from .prefill_x import step_bytes, tokens_a_pass

RING, ROW, OWN_START, DONE, FEW = "moe_ring", "moe_row", "moe_start", "moe_done", "moe_few"
"""Registers, declared once, as the sums: words of the ring, rows of x that a thread copies pieces of (-1: zeros); where
the lane's slots of the unit begin; how many steps all units before have had; whether the ring has but what longer
blocks have under way."""
VALUE_BYTES = 2
"""Of x."""
MOST_TOKENS_SHORT = 48
"""Of a block, that count as few."""
START, X, STRIDE, PLACE, TABLE, NEXT_ROW, LENGTH = (f"${number}" for number in range(7))
"""Operands: where the lane's slots of the first unit begin, or of the following one; x, and bytes from one of its rows
to the next; in shared memory the first step, and the table of rows; of the rows of the following unit the thread's; the
number of the block's length."""
BEGIN_CONSTRAINTS = gl.constexpr("l,l,r,r,r")
"""Of those that `begin_assembly` takes, the first five."""
UNIT_CONSTRAINTS = gl.constexpr("l,l,r,r,r,r,r")


@dataclass
class _Loop:
    """The sizes that the assembly depends on, in the order of the kernels' constants, and its lines."""

    block: int
    columns: int
    records: int
    chunks: int
    stream_warps: int
    ring: int
    step: int
    steps: int
    ahead: int
    warps: int
    tokens: int = 0
    """Rows of the block that are multiplied."""
    lines: list[str] = field(default_factory=list)

    @property
    def apart(self) -> int:
        """Bytes from a slot of a lane to the next one."""
        return self.stream_warps * CHUNK_BYTES

    @property
    def step_chunks(self) -> int:
        return self.step // CHUNK_COLUMNS

    @property
    def step_bytes(self) -> int:
        return step_bytes(self.block, self.step)

    @property
    def chunk_bytes(self) -> int:
        """Of x, in a step."""
        return step_bytes(self.block, CHUNK_COLUMNS)

    @property
    def a_pass(self) -> int:
        return tokens_a_pass(self.warps)

    @property
    def rows(self) -> int:
        """That a thread copies pieces of."""
        return -(-self.block // self.a_pass)

    @property
    def padded(self) -> bool:
        """Whether columns of the last record are none of x."""
        return self.columns < self.records * self.chunks * CHUNK_COLUMNS

    def add(self, *lines: str) -> None:
        self.lines += lines

    def text(self) -> str:
        return _scope(self.lines)

    def begin(self) -> None:
        self.add(".reg .b32 tid, piece, token, to, entry, column; .reg .b64 own, a; .reg .pred p, q, inside;")
        self.add(f"mov.b64 {OWN_START}, {START};", f"mov.b32 {DONE}, 0;", f"setp.eq.u32 {FEW}, 0, 0;")
        for slot in range(self.ring):
            self._load(RING, slot, OWN_START, slot)
        self._find_pieces()
        self.add(*(f"mov.b32 {ROW}{number}, -1;" for number in range(self.rows)), "setp.eq.u32 q, 0, 0;")
        self._get_rows("q")
        for _ in range(self.ahead):
            self._copy_step(self.block, "to", "own")
            self.add(f"add.u32 to, to, {self.step_bytes};")

    def fill(self, had: int) -> None:
        """Ask for what the ring of longer blocks, of `had` slots, has not."""
        for slot in range(had, self.ring):
            self.add(f"@{FEW} " + _load(RING, slot, OWN_START, slot * self.apart))

    def multiply(self) -> None:
        slots = 1 + self.chunks
        self.add(
            f".reg .b32 c<{4 * slots}>, scale<4>, tid, piece, token, to, entry, column, left, free, matrix;",
            ".reg .b64 own, source, a, from, then, refill; .reg .pred p, q, last, put, inside;",
            f"mov.b32 left, {self.records};",
            f"add.s64 from, {OWN_START}, {self.ring * self.apart};",
            f"sub.s64 then, {START}, {(slots - self.ring) * self.apart};",
        )
        self._find_pieces()
        self.add(f"add.s64 source, own, {self.ahead * self.step * VALUE_BYTES};")
        if self.padded:
            self.add(f"add.u32 column, column, {self.ahead * self.step};")
        self.add(
            *(f"mov.f32 {SUM}{number}, 0f00000000;" for number in range(self.tokens // 2)),
            "records:",
            "setp.eq.s32 last, left, 1;",
            # Since the barriers of the record before nobody reads the table for this unit.
            f"setp.lt.and.u32 put, tid, {self.block}, last;",
            "shl.b32 entry, tid, 2;",
            f"add.u32 entry, entry, {TABLE};",
            f"@put st.shared.b32 [entry], {NEXT_ROW};",
        )
        for slot in range(slots):
            words = [f"{RING}{4 * slot + i}" if slot < self.ring else f"c{4 * slot + i}" for i in range(4)]
            if slot == 0:
                self.add(*(f"mov.b32 scale{i}, {words[i]};" for i in range(4)))
            else:
                self._multiply_chunk(slot - 1, words)
            # Behind the words' use: a slot more would be registers more. And `bar.warp.sync`, which is no instruction,
            # since ptxas moves no load past it: without it, they sink to where they are used.
            refilled = slot + self.ring - slots
            if refilled < 0:
                self._load("c", slot + self.ring, "from", slot)
            else:
                if refilled == 0:
                    self.add("selp.b64 refill, then, from, last;")
                self._load(RING, refilled, "refill", slot)
            self.add("bar.warp.sync 0xffffffff;")
        self.add("wgmma.wait_group.sync.aligned 0;")
        self.add(f"add.s64 from, from, {slots * self.apart};", "sub.s32 left, left, 1;")
        if self.records > 1:
            self.add("setp.ne.s32 p, left, 0;", "@p bra records;")
        self.add(
            f"add.s64 {OWN_START}, then, {(slots - self.ring) * self.apart};",
            f"setp.gt.u32 {FEW}, {self.tokens}, {MOST_TOKENS_SHORT};",
        )
        # Of rows that were not multiplied: what follows would else keep their registers from the products.
        self.add(*(f"mov.f32 {SUM}{number}, 0f00000000;" for number in range(self.tokens // 2, self.block // 2)))

    def _multiply_chunk(self, chunk: int, words: list[str]) -> None:
        within = chunk % self.step_chunks
        if within == 0:
            self._next_step(chunk // self.step_chunks)
        self.add(*chunk_lines(chunk, words, "scale", "matrix", within * self.chunk_bytes >> 4, self.tokens))

    def _next_step(self, step: int) -> None:
        """Wait for step number `step` of a record, and start the copies of the one that comes `ahead` steps later."""
        # After this no warp multiplies the step before the last one either: there are ahead + 2 steps or more.
        if chunks_pending(self.tokens) >= self.step_chunks:
            self.add(f"wgmma.wait_group.sync.aligned {self.step_chunks};")  # else the step's own chunks have waited
        self.add(f"cp.async.wait_group {self.ahead - 1};", "fence.proxy.async.shared::cta;", "bar.sync 0;")
        if step == self.chunks // self.step_chunks - self.ahead:
            self._get_rows("last")
            self._find_source("own")
            self.add("@last mov.b64 source, own;")
            self._first_column("@last ")
        self.add(f"add.u32 free, {DONE}, {self.ahead};", *self._place("free", "to"))
        self._copy_step(self.tokens, "free", "source")
        self.add(f"mov.b32 matrix, {DONE};", *self._place("matrix", PLACE))
        self.add("shr.u32 matrix, matrix, 4;", f"or.b32 matrix, matrix, {LOW};", f"add.u32 {DONE}, {DONE}, 1;")

    def _place(self, number: str, first: str) -> list[str]:
        """Of step `number` in its ring, of which step 0 is at `first`. Steps are a power of two: ptxas would divide."""
        return [
            f"and.b32 {number}, {number}, {self.steps - 1};",
            f"mad.lo.u32 {number}, {number}, {self.step_bytes}, {first};",
        ]

    def _load(self, name: str, slot: int, base: str, number: int) -> None:
        self.add(_load(name, slot, base, number * self.apart))

    def _find_pieces(self) -> None:
        """A thread's piece of its tokens: where it is in row 0 of x (`own`), and in step 0 (`to`)."""
        self._find_source("own")
        self.add(
            "mov.u32 tid, %tid.x;",
            f"shr.u32 token, tid, {_log(PIECES.value)};",
            "xor.b32 to, piece, token;",
            f"and.b32 to, to, {PIECES.value - 1};",
            f"shl.b32 to, to, {_log(PIECE_BYTES.value)};",
            f"mad.lo.u32 to, token, {STEP_BYTES.value}, to;",
            f"add.u32 to, to, {PLACE};",
        )
        if self.block % self.a_pass:
            self.add(f"setp.lt.u32 inside, token, {self.block % self.a_pass};")
        self._first_column()

    def _find_source(self, name: str) -> None:
        """Where a thread's piece is in row 0 of x. Made anew for the next unit: two registers less for the record."""
        self.add(
            "mov.u32 piece, %tid.x;",
            f"and.b32 piece, piece, {PIECES.value - 1};",
            f"mul.wide.u32 {name}, piece, {PIECE_BYTES.value};",
            f"add.s64 {name}, {name}, {X};",
        )

    def _first_column(self, where: str = "") -> None:
        """That of the thread's piece, which is counted where not all columns are in x."""
        if self.padded:
            self.add(f"{where}shl.b32 column, piece, {_log(PIECE_BYTES.value // VALUE_BYTES)};")

    def _get_rows(self, where: str) -> None:
        """The rows that the table holds, where predicate `where`. `token` made anew: a register less for the record."""
        self.add("mov.u32 token, %tid.x;", f"shr.u32 token, token, {_log(PIECES.value)};")
        self.add("shl.b32 entry, token, 2;", f"add.u32 entry, entry, {TABLE};")
        for number in range(self.rows):
            behind, guard = self.block - number * self.a_pass, where
            if behind < self.a_pass:
                guard = "p"
                self.add(f"setp.lt.and.u32 p, token, {behind}, {where};")
            self.add(f"@{guard} ld.shared.b32 {ROW}{number}, [entry + {4 * number * self.a_pass}];")

    def _copy_step(self, tokens: int, place: str, source: str) -> None:
        """Copy a step's columns of `tokens` to `place`, zeros in padding and behind the last column; `source`, where
        they are in row 0, goes on to the next. Under way behind it. Rows are less than 4 GiB apart.

        Behind the first `tokens` rows need not be there: no later block has more of them in their order.
        """
        for part in range(self.step_chunks):
            absent = ".s32 p, {}, 0;"
            if self.padded:
                self.add(f"setp.ge.s32 q, column, {self.columns - part * CHUNK_COLUMNS};")
                absent = ".or.s32 p, {}, 0, q;"
            for number in range(-(-tokens // self.a_pass)):
                to = part * self.chunk_bytes + number * self.a_pass * STEP_BYTES.value
                # A predicate, and no branch between products, which can make ptxas wait for each of them.
                guard = "@inside " if (number + 1) * self.a_pass > self.block else ""
                self.add(
                    "setp.lt" + absent.format(f"{ROW}{number}"),
                    f"mad.wide.u32 a, {ROW}{number}, {STRIDE}, {source};",
                    f"{guard}cp.async.cg.shared.global [{place} + {to}], [a + {part * STEP_BYTES.value}], 16, p;",
                )
        self.add("cp.async.commit_group;", f"add.s64 {source}, {source}, {self.step * VALUE_BYTES};")
        if self.padded:
            self.add(f"add.u32 column, column, {self.step};")


@gluon.constexpr_function
def _load(name, slot, base, offset):
    """A lane's words of a slot."""
    words = ", ".join(f"{name}{4 * slot + i}" for i in range(4))
    return f"ld.global.v4.b32 {{{words}}}, [{base} + {offset}];"


@gluon.constexpr_function
def _log(value):
    return value.bit_length() - 1


@gluon.constexpr_function
def declarations(block, ring, warps):
    """PTX that declares the registers of all that follows, once in a kernel, before it. `ring`: the most there is."""
    rows = -(-block // tokens_a_pass(warps))
    return (
        f".reg .f32 {SUM}<{block // 2}>; .reg .b32 {RING}<{4 * ring}>, {ROW}<{rows}>, {DONE}; .reg .b64 {OWN_START};"
        f".reg .pred {FEW};"
    )


@gluon.constexpr_function
def begin_assembly(*sizes):
    """PTX that fills the ring, reads the table of rows and starts the first copies."""
    loop = _Loop(*sizes)
    loop.begin()
    return loop.text()


@gluon.constexpr_function
def ring_of(tokens, ring, short_ring):
    """Chunks of weights that a warp has under way where so many tokens are multiplied: few have the registers for more,
    and need them, as their products take less time."""
    return short_ring if tokens <= MOST_TOKENS_SHORT else ring


@gluon.constexpr_function
def unit_assembly(block, columns, records, chunks, stream_warps, ring, short_ring, step, steps, ahead, warps, ordered):
    """PTX that multiplies a unit, all of whose products are over behind it."""
    count = lengths(block, ordered)
    lines = [".reg .pred taken;"]
    for number in range(1, count):
        lines += [f"setp.eq.s32 taken, {LENGTH}, {number};", f"@taken bra length{number};"]
    had = ring_of(length_of(block, 0), ring, short_ring)
    for number in range(count):
        tokens = length_of(block, number)
        own = ring_of(tokens, ring, short_ring)
        loop = _Loop(block, columns, records, chunks, stream_warps, own, step, steps, ahead, warps, tokens)
        if own > had:
            loop.fill(had)
        loop.multiply()
        lines += [f"length{number}:", loop.text(), "bra.uni over;"]
    return _scope([*lines, "over:"])


@gluon.constexpr_function
def _scope(lines):
    return "{\n\t" + "\n\t".join(lines) + "\n}"
