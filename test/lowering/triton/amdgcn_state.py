"""What an interpreter of amdgcn works on: the text of a kernel, memory, and the registers of a wave."""

import re
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from amdgcn_instructions import I32, LANES, U32, U64, bits

BASE = 0x7F00_0000_0000


class Memory:
    """Buffers apart from one another; what lies between is poison and may not be touched."""

    def __init__(self, size: int = 1 << 22) -> None:
        self.bytes, self.legal, self.used = np.full(size, 0xFF, np.uint8), np.zeros(size, bool), 4096

    def place(self, array: np.ndarray, offset: int = 0) -> int:
        """The address of a copy of `array`, `offset` bytes past a multiple of 256."""
        start = self.used + offset
        self.bytes[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.legal[start : start + array.nbytes] = True
        self.used = (start + array.nbytes + 8191) // 256 * 256
        return BASE + start

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        start = address - BASE
        return self.bytes[start : start + like.nbytes].view(like.dtype).reshape(like.shape)

    def at(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Indices [lanes, size] of legal bytes."""
        places = (addresses - U64(BASE)).astype(np.int64)[:, None] + np.arange(size)
        assert ((places >= 0) & (places < len(self.legal))).all() and self.legal[places].all(), "outside of all buffers"
        return places


@dataclass
class Line:
    """An instruction: name without its encoding, operands, modifiers."""

    name: str
    operands: list[str]
    modifiers: dict[str, str] = field(default_factory=dict)


def parse(assembly: str) -> tuple[list[Line], dict[str, int]]:
    """The instructions of a kernel, and where its labels are."""
    lines, labels = [], {}
    for text in assembly.splitlines():
        text = text.partition(";")[0].strip()
        if label := re.match(r"(\.\w+):", text):
            labels[label[1]] = len(lines)
        elif re.match(r"(s|v|global|buffer)_\w+( |$)", text):
            name, _, rest = text.partition(" ")
            modifiers = dict(re.findall(r"\s(\w+):(\[[^]]*\]|\w+|-\d+)", " " + rest))
            rest = re.sub(r"\s(\w+:(\[[^]]*\]|[\w-]+)|offen|nt|sc0|sc1|row_mask.*)", "", " " + rest)
            name = re.sub(r"_(e32|e64|sdwa)$", "", name)
            operands = [part.strip() for part in re.split(r",(?![^[(]*[])])", rest) if part.strip()]
            lines.append(Line(name, operands, modifiers))
        if text == "s_endpgm":
            break
    return lines, labels


class Registers:
    """v: u32 [512, 64]; s: u32 [128], vcc the words 106 and 107. Loads under way keep their registers `busy`."""

    def reset(self) -> None:
        self.v, self.s = np.full((512, 64), 0xDEADBEEF, U32), np.full(128, 0xDEADBEEF, U32)
        self.exec, self.scc, self.clock = np.ones(64, bool), False, 0
        self.pending: deque[range] = deque()
        self.busy, self.by_valu = np.zeros(512, bool), np.full((2, 512), -100)

    def _registers(self, text: str) -> range:
        found = re.fullmatch(r"([vs])(?:(\d+)|\[(\d+):(\d+)\])", text)
        first = int(found[2] or found[3])
        return range(first, int(found[4] or first) + 1)

    def _read(self, text: str, part: int = 0, select: str = "DWORD") -> np.ndarray:
        """u32 of a scalar or of every lane: word `part` of an operand."""
        if text.startswith("sext("):
            word = self._read(text[5:-1], part, select)
            width = {"BYTE": 8, "WORD": 16}[select.partition("_")[0]]
            return ((word.astype(np.int64) ^ (1 << width - 1)) - (1 << width - 1)).astype(I32).view(U32)
        if text.startswith("-") and text[1] in "vs":
            return self._read(text[1:], part) ^ U32(0x80000000)
        if text.startswith("v") and text[1:2] not in ("c", ""):
            number = self._registers(text)[part]
            assert not self.busy[number], f"v{number} is read while a load of it is under way"
            word = self.v[number].copy()
        elif re.match(r"s[\d[]", text):
            word = self.s[self._registers(text)[part]]
        elif text in ("vcc", "exec"):
            word = U32(self._mask(text) >> 32 * part & 0xFFFFFFFF)
        elif re.fullmatch(r"-?\d+\.\d+", text):
            word = bits(np.float32(text))[()]
        else:
            word = U32((int(text, 0) >> 32 * part) & 0xFFFFFFFF)
        if select != "DWORD":
            kind, _, number = select.partition("_")
            size = 8 if kind == "BYTE" else 16
            word = word >> U32(size * int(number)) & U32((1 << size) - 1)
        return word

    def _read64(self, text: str) -> np.ndarray:
        if re.fullmatch(r"-?(0x)?[\da-f]+", text):
            return U64(int(text, 0) & (1 << 64) - 1)
        return self._read(text).astype(U64) | self._read(text, 1).astype(U64) << U64(32)

    def _set64(self, text: str, value) -> None:
        words = np.asarray(value, U64)
        for part, register in enumerate(self._registers(text)):
            self.s[register] = (words >> U64(32 * part)).astype(U32)

    def _mask(self, text: str) -> int:
        if text == "exec":
            return int(sum(1 << int(i) for i in np.flatnonzero(self.exec)))
        low, high = (106, 107) if text == "vcc" else self._registers(text)
        return int(self.s[low]) | int(self.s[high]) << 32

    def _set_mask(self, text: str, mask: int) -> None:
        if text == "exec":
            self.exec = (mask >> LANES.astype(object) & 1).astype(bool)
            return
        low, high = (106, 107) if text == "vcc" else self._registers(text)
        self.s[low], self.s[high] = mask & 0xFFFFFFFF, mask >> 32

    def _lanes_of(self, text: str) -> np.ndarray:
        return (self._mask(text) >> LANES.astype(object) & 1).astype(bool)

    def _write(self, text: str, word, part: int = 0) -> None:
        number = self._registers(text)[part]
        assert not self.busy[number], f"v{number} is written while a load of it is under way"
        self.v[number] = np.where(self.exec, word, self.v[number])
        self.by_valu[0, number] = self.clock
