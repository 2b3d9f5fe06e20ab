"""An interpreter of amdgcn assembly: one wave of 64 lanes in NumPy, by the text of AMD's CDNA3 and CDNA4 ISA documents.

It knows the instructions that the decode kernels are made of and refuses others. It also refuses what hardware would
get wrong in silence: bytes outside of the buffers, registers whose load nobody waited for, and results that are read
before the wait states which LLVM counts for its own instructions but not for inline assembly.
"""

import re

import numpy as np
from amdgcn_instructions import (
    COMPARE,
    E2M1,
    I32,
    LANES,
    SCALAR,
    U32,
    U64,
    VECTOR,
    as_signed,
    bf16_pairs,
    bits,
    f32,
    operand_matrix,
    to_bf16,
)
from amdgcn_state import Line, Memory, Registers, parse

VALU_TO_MATRIX, VALU_TO_ADDRESS = 2, 5  # wait states from a VALU's write to a read by MFMA, or of a scalar by a load


class Wave(Registers):
    """Runs an assembly on a workgroup of one wave; `arguments` is the kernel's argument block."""

    def __init__(self, assembly: str, memory: Memory) -> None:
        self.lines, self.labels = parse(assembly)
        self.memory, self.first_scalar = memory, int(re.search(r"amdhsa_user_sgpr_count (\d+)", assembly)[1])

    def run(self, arguments: np.ndarray, program: int) -> int:
        """The number of instructions that program number `program` took."""
        self.reset()
        self.v[0] = LANES
        self._set64("s[0:1]", self.memory.place(arguments))
        self.s[self.first_scalar] = program
        place, count = 0, 0
        while self.lines[place].name != "s_endpgm":
            line, self.place = self.lines[place], place
            target = self._step(line)
            place = place + 1 if target is None else self.labels[target]
            count, self.clock = count + 1, self.clock + 1
        return count

    def _step(self, line: Line) -> str | None:
        name, o = line.name, line.operands
        if name == "s_nop":
            self.clock += int(o[0])
        elif name == "s_waitcnt":
            if wanted := re.search(r"vmcnt\((\d+)\)", " ".join(o)):
                while len(self.pending) > int(wanted[1]):
                    registers = self.pending.popleft()
                    if not any(set(registers) & set(other) for other in self.pending):
                        self.busy[registers] = False
        elif name.startswith(("s_branch", "s_cbranch")):
            condition = {"s_branch": True, "scc1": self.scc, "scc0": not self.scc, "vccnz": bool(self._mask("vcc"))}
            condition |= {"execnz": self.exec.any(), "execz": not self.exec.any(), "vccz": not self._mask("vcc")}
            return o[0] if condition[name.removeprefix("s_cbranch_")] else None
        elif name.startswith(("buffer_load", "global_load", "global_store")):
            self._move(name, o, line.modifiers)
        elif name.startswith("v_mfma"):
            self._matrix(name, o, line.modifiers)
        elif name.startswith("v_"):
            self._vector(name, o, line.modifiers)
        else:
            self._scalar(name, o)
        return None

    def _move(self, name: str, o: list[str], modifiers: dict[str, str]) -> None:
        offset = int(modifiers.get("offset", "0"), 0)
        store = "store" in name
        if name.startswith("buffer"):
            scalars, other = self._registers(o[2]), o[0]
            base = U64(int(self.s[scalars[0]]) | (int(self.s[scalars[1]]) & 0xFFFF) << 32)
            addresses = base + self._read(o[1]).astype(U64)
            assert (addresses - base < self.s[scalars[2]]).all()
        else:
            scalars = self._registers(o[2]) if o[2] != "off" else range(0)
            pointer, other = (o[0], o[1]) if store else (o[1], o[0])
            addresses = self._read64(pointer) if o[2] == "off" else self._read64(o[2]) + self._read(pointer).astype(U64)
        for scalar in scalars:
            assert self.clock - self.by_valu[1, scalar] >= VALU_TO_ADDRESS, f"s{scalar} is not there yet"
        active = np.flatnonzero(self.exec)
        addresses = np.broadcast_to(addresses + U64(offset & (1 << 64) - 1), 64)[active]
        kind = name.rpartition("_")[2]
        words = {"ubyte": 1, "ushort": 1, "short": 1}.get(kind, int(kind.removeprefix("dwordx")) if "x" in kind else 1)
        size = {"ubyte": 1, "ushort": 2, "short": 2}.get(kind, 4 * words)
        assert (addresses % U64(min(size, 16)) == 0).all(), "misaligned"
        if not len(active):
            return
        places = self.memory.at(addresses, size)
        if store:
            registers = self._registers(other)
            values = np.stack([self._read(other, part)[active] for part in range(words)], axis=1)
            self.memory.bytes[places] = values.view(np.uint8)[:, :size]
            self.pending.append(range(0))
        else:
            loaded = np.zeros((len(active), 4 * words), np.uint8)
            loaded[:, :size] = self.memory.bytes[places]
            registers = self._registers(other)
            assert not self.busy[registers].any(), "two loads of a register"
            for part, register in enumerate(registers):
                self.v[register, active] = loaded.view(U32)[:, part]
            self.busy[registers] = True
            self.pending.append(registers)

    def _matrix(self, name: str, o: list[str], modifiers: dict[str, str]) -> None:
        for text in (*o[1:3], *o[4:6]):
            written = self.by_valu[0, list(self._registers(text))]
            assert (self.clock - written >= VALU_TO_MATRIX).all(), f"{text} is not there yet"
        a, b = (
            np.stack([self._read(text, part) for part in range(len(self._registers(text)))], axis=1) for text in o[1:3]
        )
        if name == "v_mfma_scale_f32_16x16x128_f8f6f4":
            assert (modifiers["cbsz"], modifiers["blgp"]) == ("4", "4")  # e2m1
            low, high = (eval(modifiers.get(select, "[0,0,0]")) for select in ("op_sel", "op_sel_hi"))
            sides = []
            for side, (words, text) in enumerate(((a, o[4]), (b, o[5]))):
                codes = words[:, :, None] >> U32(4) * np.arange(8, dtype=U32) & U32(15)
                byte = self._read(text) >> U32(8 * (2 * high[side] + low[side])) & U32(255)
                power = np.where(byte == 255, np.nan, np.exp2(byte.astype(np.float64) - 127))
                sides.append(E2M1[codes.reshape(64, 32)] * np.broadcast_to(power, 64)[:, None])
        else:
            assert name in ("v_mfma_f32_16x16x32_bf16", "v_mfma_f32_16x16x16_bf16")
            sides = [bf16_pairs(a), bf16_pairs(b)]
            assert sides[0].shape[1] == sides[1].shape[1] == int(name.split("x")[2].partition("_")[0]) // 4
        with np.errstate(invalid="ignore"):
            product = operand_matrix(sides[0]) @ operand_matrix(sides[1]).T
        starts = [self._read(o[3], i if o[3][0] == "v" else 0) for i in range(4)]
        for i, (register, start) in enumerate(zip(self._registers(o[0]), starts, strict=True)):
            self.v[register] = bits((product[4 * (LANES // 16) + i, LANES % 16] + f32(start)).astype(np.float32))
            self.by_valu[0, register] = -100  # LLVM knows of these

    def _vector(self, name: str, o: list[str], modifiers: dict[str, str]) -> None:
        selects = [modifiers.get(f"src{i}_sel", "DWORD") for i in (0, 1)] + ["DWORD"] * 4
        if name == "v_readfirstlane_b32":
            first = int(np.flatnonzero(self.exec)[0])
            number = self._registers(o[0])[0]
            self.s[number], self.by_valu[1, number] = self._read(o[1])[first], self.clock
        elif name.startswith("v_cmp_"):
            _, _, relation, kind = name.split("_")
            a, b = (self._typed(self._read(o[1 + i], 0, selects[i]), kind) for i in (0, 1))
            with np.errstate(invalid="ignore"):
                holds = np.broadcast_to(COMPARE[relation](a, b), 64) & self.exec
            self._set_mask(o[0], int(sum(1 << int(i) for i in np.flatnonzero(holds))))
        elif name in (
            "v_mad_u64_u32",
            "v_mad_i64_i32",
            "v_lshl_add_u64",
            "v_ashrrev_i64",
            "v_lshlrev_b64",
            "v_mov_b64",
        ):
            self._wide(name, o)
        elif name.startswith("v_pk_"):
            self._packed(name, o, modifiers)
        elif name in ("v_add_co_u32", "v_addc_co_u32", "v_sub_co_u32", "v_subb_co_u32"):
            carry = self._lanes_of(o[4]).astype(np.int64) if len(o) == 5 else 0
            a, b = (self._read(text).astype(np.int64) for text in o[2:4])
            total = a + b + carry if "add" in name else a - b - carry
            self._write(o[0], (total & 0xFFFFFFFF).astype(U32))
            out = np.broadcast_to((total < 0) | (total > 0xFFFFFFFF), 64) & self.exec
            self._set_mask(o[1], int(sum(1 << int(i) for i in np.flatnonzero(out))))
        elif name == "v_cvt_scalef32_pk_bf16_fp4":
            low, high = (eval(modifiers.get("op_sel", "[0,0,0]"))[i] for i in (0, 1))
            byte = self._read(o[1]) >> U32(8 * (2 * high + low)) & U32(255)
            scale = f32(self._read(o[2])).astype(np.float64)
            self._write(o[0], to_bf16(E2M1[byte & U32(15)] * scale) | to_bf16(E2M1[byte >> U32(4)] * scale) << U32(16))
        elif name == "v_div_scale_f32":
            self._write(o[0], self._read(o[2]))
            self._set_mask(o[1], 0)
        elif name == "v_cndmask_b32":
            chosen = self._lanes_of(o[3])
            self._write(o[0], np.where(chosen, self._read(o[2], 0, selects[1]), self._read(o[1], 0, selects[0])))
        else:
            with np.errstate(all="ignore"):
                sources = [np.asarray(self._read(text, 0, selects[i])) for i, text in enumerate(o[1:])]
                if name.startswith("v_fmac"):
                    sources.append(self._read(o[0]))
                word = np.asarray(VECTOR[name.removeprefix("v_")](*sources)).astype(U32)
            if (select := modifiers.get("dst_sel", "DWORD")) != "DWORD":
                kind, _, number = select.partition("_")
                size = 8 if kind == "BYTE" else 16
                shift, kept = U32(size * int(number)), U32((1 << size) - 1 << size * int(number))
                rest = self._read(o[0]) & ~kept if modifiers["dst_unused"] == "UNUSED_PRESERVE" else U32(0)
                word = word << shift & kept | rest
            self._write(o[0], word)

    def _typed(self, word: np.ndarray, kind: str) -> np.ndarray:
        if kind == "f32":
            return f32(word)
        word = np.asarray(word)
        return {"u32": word, "i32": word.view(I32), "u16": word & U32(0xFFFF)}[kind]

    def _wide(self, name: str, o: list[str]) -> None:
        if name == "v_mad_u64_u32":
            result = self._read(o[2]).astype(U64) * self._read(o[3]).astype(U64) + self._read64(o[4])
        elif name == "v_mad_i64_i32":
            a, b = (as_signed(self._read(text)).astype(np.int64) for text in o[2:4])
            result = (a * b).view(U64) + self._read64(o[4])
        elif name == "v_lshl_add_u64":
            result = (self._read64(o[1]) << self._read(o[2]).astype(U64)) + self._read64(o[3])
        elif name == "v_mov_b64":
            result = self._read64(o[1])
        else:
            value, by = np.asarray(self._read64(o[2])), self._read(o[1]).astype(U64)
            result = value << by if name == "v_lshlrev_b64" else (value.view(np.int64) >> by.astype(np.int64)).view(U64)
        for part in (0, 1):
            self._write(o[0], (np.asarray(result, U64) >> U64(32 * part)).astype(U32), part)

    def _packed(self, name: str, o: list[str], modifiers: dict[str, str]) -> None:
        low, high = (eval(modifiers.get(s, d)) for s, d in (("op_sel", "[0,0,0]"), ("op_sel_hi", "[1,1,1]")))
        results = []
        for half, selected in enumerate((low, high)):
            parts = [self._read(text, selected[i] if text[0] in "vs" else 0) for i, text in enumerate(o[1:])]
            if name == "v_pk_mov_b32":
                # The low result is chosen from the first source, the high one from the second.
                results.append(self._read(o[1 + half], low[half] if half == 0 else eval(modifiers["op_sel"])[1]))
            elif name == "v_pk_mul_f32":
                results.append(bits(f32(parts[0]) * f32(parts[1])))
            elif name == "v_pk_add_f32":
                results.append(bits(f32(parts[0]) + f32(parts[1])))
            else:
                raise AssertionError(f"no rule for {name}")
        for part, word in enumerate(results):
            self._write(o[0], word, part)

    def _scalar(self, name: str, o: list[str]) -> None:
        if name.startswith("s_load_dword"):
            start = int(self._read64(o[1])) + int(o[2], 0)
            registers = self._registers(o[0])
            places = self.memory.at(np.array([start], U64), 4 * len(registers))
            self.s[list(registers)] = self.memory.bytes[places[0]].view(U32)
        elif name == "s_and_saveexec_b64":
            kept = self._mask("exec")
            self._set_mask("exec", kept & self._mask(o[1]))
            self._set_mask(o[0], kept)
        elif name in ("s_and_b64", "s_or_b64", "s_mov_b64", "s_lshl_b64", "s_cselect_b64", "s_cmp_lg_u64"):
            self._scalar64(name.split("_")[1], o)
        elif name.startswith("s_cmp"):
            immediate = name.startswith("s_cmpk")
            relation, kind = name.removeprefix("s_cmpk_" if immediate else "s_cmp_").split("_")
            a, b = (int(np.asarray(self._read(text)).view(I32) if kind == "i32" else self._read(text)) for text in o)
            self.scc = bool(COMPARE[{"lg": "ne"}.get(relation, relation)](a, b))
        else:
            values = [int(self._read(text)) for text in o[1:]]
            if name.startswith(("s_addk", "s_mulk")):
                values.insert(0, int(self._read(o[0])))
            if name in ("s_mulk_i32", "s_addk_i32", "s_movk_i32"):
                values[-1] = (values[-1] & 0xFFFF ^ 0x8000) - 0x8000
            result, scc = SCALAR[name.removeprefix("s_")](self.scc, *values)
            self.scc = self.scc if scc is None else bool(scc)
            register = self._registers(o[0])[0]
            self.s[register], self.by_valu[1, register] = result & 0xFFFFFFFF, -100

    def _scalar64(self, name: str, o: list[str]) -> None:
        values = [self._mask(text) if text in ("exec", "vcc") or text[0] == "s" else int(text, 0) for text in o]
        if name == "cmp":
            self.scc = values[0] != values[1]
            return
        a, b = values[1], values[-1]
        results = {"and": a & b, "or": a | b, "lshl": a << (b & 63), "mov": a, "cselect": a if self.scc else b}
        result = results[name] & (1 << 64) - 1
        if name in ("and", "or", "lshl"):
            self.scc = result != 0
        self._set_mask(o[0], result)
