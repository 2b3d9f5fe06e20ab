"""The loop of the prefill products on sm_90 over the columns of a unit, in PTX.

It is one piece of assembly, and what it leaves for the next unit are registers of its own. So Triton, MLIR and LLVM
have one operation a length of a block where there were a thousand, two thirds of their time with these kernels.

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
from .prefill_x import step_bytes, tokens_a_pass

RING, ROW = "moe_ring", "moe_row"
"""Registers: words of the ring, rows of x that a thread copies pieces of (-1: zeros). Declared once, as the sums."""
VALUE_BYTES = 2
"""Of x."""
START, X, STRIDE, PLACE, TABLE, FOLLOWING, BEFORE, NEXT_ROW = (f"${number}" for number in range(8))
"""Operands: where the lane's slots of the unit begin; x, and bytes from one of its rows to the next; in shared memory
the first step, and the table of rows; where the lane's slots of the following unit begin; how many steps all units
before have had; of the rows of the following unit the thread's."""
BEGIN_CONSTRAINTS = gl.constexpr("l,l,r,r,r")
"""Of those that `begin_assembly` takes, the first five."""
UNIT_CONSTRAINTS = gl.constexpr("l,l,r,r,r,l,r,r")


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
        return "{\n\t" + "\n\t".join(self.lines) + "\n}"

    def begin(self) -> None:
        self.add(".reg .b32 tid, piece, token, to, entry, column; .reg .b64 own, a; .reg .pred p, q, inside;")
        for slot in range(self.ring):
            self._load(RING, slot, START, slot)
        self._find_pieces()
        self.add(*(f"mov.b32 {ROW}{number}, -1;" for number in range(self.rows)), "setp.eq.u32 q, 0, 0;")
        self._get_rows("q")
        for _ in range(self.ahead):
            self._copy_step(self.block, "to", "own")
            self.add(f"add.u32 to, to, {self.step_bytes};")

    def multiply(self) -> None:
        slots = 1 + self.chunks
        self.add(
            f".reg .b32 c<{4 * slots}>, scale<4>, tid, piece, token, to, entry, column, left, done, free, matrix;",
            ".reg .b64 own, source, a, from, then, refill; .reg .pred p, q, last, put, inside;",
            f"mov.b32 left, {self.records};",
            f"mov.b32 done, {BEFORE};",
            f"add.s64 from, {START}, {self.ring * self.apart};",
            f"sub.s64 then, {FOLLOWING}, {(slots - self.ring) * self.apart};",
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
        self.add(f"add.s64 from, from, {slots * self.apart};", "sub.s32 left, left, 1;")
        if self.records > 1:
            self.add("setp.ne.s32 p, left, 0;", "@p bra records;")

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
            self.add("@last mov.b64 source, own;")
            self._first_column("@last ")
        self.add(f"add.u32 free, done, {self.ahead};", *self._place("free", "to"))
        self._copy_step(self.tokens, "free", "source")
        self.add("mov.b32 matrix, done;", *self._place("matrix", PLACE))
        self.add("shr.u32 matrix, matrix, 4;", f"or.b32 matrix, matrix, {LOW};", "add.u32 done, done, 1;")

    def _place(self, number: str, first: str) -> list[str]:
        """Of step `number` in its ring, of which step 0 is at `first`. Steps are a power of two: ptxas would divide."""
        return [
            f"and.b32 {number}, {number}, {self.steps - 1};",
            f"mad.lo.u32 {number}, {number}, {self.step_bytes}, {first};",
        ]

    def _load(self, name: str, slot: int, base: str, number: int) -> None:
        self.add(_load(name, slot, base, number * self.apart))

    def _find_pieces(self) -> None:
        """A thread's piece of its tokens: where it is in x (`own`), and in step 0 (`to`)."""
        self.add(
            "mov.u32 tid, %tid.x;",
            f"and.b32 piece, tid, {PIECES.value - 1};",
            f"shr.u32 token, tid, {_log(PIECES.value)};",
            f"mul.wide.u32 own, piece, {PIECE_BYTES.value};",
            f"add.s64 own, own, {X};",
            "xor.b32 to, piece, token;",
            f"and.b32 to, to, {PIECES.value - 1};",
            f"shl.b32 to, to, {_log(PIECE_BYTES.value)};",
            f"mad.lo.u32 to, token, {STEP_BYTES.value}, to;",
            f"add.u32 to, to, {PLACE};",
        )
        if self.block % self.a_pass:
            self.add(f"setp.lt.u32 inside, token, {self.block % self.a_pass};")
        self._first_column()

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
    return f".reg .f32 {SUM}<{block // 2}>; .reg .b32 {RING}<{4 * ring}>, {ROW}<{rows}>;"


@gluon.constexpr_function
def begin_assembly(*sizes):
    """PTX that fills the ring, reads the table of rows and starts the first copies."""
    loop = _Loop(*sizes)
    loop.begin()
    return loop.text()


@gluon.constexpr_function
def fill_assembly(first, end, stream_warps):
    """PTX that asks for slots `first` to `end` of the ring; operand 0: where the unit's slots begin."""
    apart = stream_warps * CHUNK_BYTES
    return " ".join(_load(RING, slot, "$0", slot * apart) for slot in range(first, end))


@gluon.constexpr_function
def unit_assembly(*sizes):
    """PTX that multiplies a unit; its last products are under way behind it (`wait_for_products`)."""
    loop = _Loop(*sizes)
    loop.multiply()
    return loop.text()
