"""What a code object says of itself: its parameters, resources and instructions, from its assembly or its ELF notes."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

WIDE_LOADS = re.compile(
    r"(?:global|buffer)_load_(?:lds_)?dwordx4"  # AMD: to registers, or straight to LDS
    r"|ld\.global\..*(?:v4\.[bfus]32|v2\.[bfus]64|v8\.[bfus]32)|cp\.async\.c[ag]\.shared\.global"
)
"""Loads of 16 bytes a thread, the widest there is (PTX's cp.async: see `instructions`)."""

MATRIX = re.compile(r"v_mfma_|wgmma\.mma_async|mma\.sync|tcgen05\.mma")


@dataclass(frozen=True)
class Resources:
    """What a kernel holds. registers: of a thread. spills: those of them in memory (AMD), or their bytes (CUDA). stack:
    bytes of private memory a thread.

    Only AMD's assembly states scalar_spills (with an empty stack they lie in lanes of vector registers, which is cheap)
    and waves (what a SIMD has registers for).
    """

    registers: int
    spills: int
    stack: int
    scalar_spills: int = 0
    waves: int = 0


def parameters(assembly: str) -> list[str]:
    """The kernel's parameters in order: "*" a pointer, "i64", "i32".

    Hidden ones, which the HIP runtime passes itself, are left out; LLVM assumes them beside asynchronous copies.
    """
    if "amdhsa.kernels:" in assembly:
        return [kind for kind in _amdgcn_parameters(assembly) if not kind.startswith("hidden_")]
    signature = assembly[assembly.index(".entry") :].partition("{")[0]
    return [
        "*" if ".ptr" in line else "i" + line.split()[1].lstrip(".usb")
        for line in signature.splitlines()
        if line.lstrip().startswith(".param")
    ]


def _amdgcn_parameters(assembly: str) -> Iterator[str]:
    arguments = assembly[assembly.index("    .args:") : assembly.index("    .group_segment_fixed_size:")]
    for size, kind in re.findall(r"\.size: +(\d+)\s+\.value_kind: +(\w+)", arguments):
        yield "*" if kind == "global_buffer" else f"i{8 * int(size)}" if kind == "by_value" else kind


def instructions(assembly: str) -> Counter[str]:
    """How often each mnemonic occurs. A 16-byte cp.async counts as such, any other as `cp.async.narrow`."""
    found: Counter[str] = Counter()
    for line in assembly.splitlines():
        words = re.match(r"\t(?:@!?%p\d+ )?([a-z][\w.:]*)\s*([^;/]*)", line)
        if not words or words[1].startswith("."):
            continue
        name, operands = words.groups()
        if name.startswith("cp.async.c") and "shared" in name and operands.split(", ")[2] not in ("16", "0x10"):
            name = "cp.async.narrow"
        found[name] += 1
    return found


def matrix_loop(amdgcn: str) -> list[str]:
    """The instructions, operands included, of the innermost loop that has the most matrix instructions."""
    lines, starts, best = list[str](), dict[str, int](), list[str]()
    for text in amdgcn.splitlines():
        text = text.partition(";")[0].strip()
        if label := re.fullmatch(r"(\.\w+):", text):
            starts[label[1]] = len(lines)
        elif re.match(r"(s|v|ds|buffer|global|flat|scratch)_\w+( |$)", text):
            lines.append(text)
            if text.startswith("s_cbranch") and (start := starts.pop(text.split()[1], None)) is not None:
                starts = {name: place for name, place in starts.items() if place < start}
                best = max(best, lines[start:], key=lambda loop: sum(bool(MATRIX.match(line)) for line in loop))
                starts.clear()
    return best


def matching(found: Counter[str], pattern: re.Pattern[str]) -> dict[str, int]:
    """The instructions that `pattern` matches from their start, by name."""
    return {name: count for name, count in sorted(found.items()) if pattern.match(name)}


def waits(found: Counter[str]) -> bool:
    """Whether the code may start before the launch in front of it ends: it waits for that itself."""
    return bool(found["griddepcontrol.wait"])


def amdgcn_resources(assembly: str) -> Resources:
    """From the comments and metadata that LLVM ends a kernel with."""

    def number(pattern: str) -> int:
        found = re.search(rf"^ *;? *{pattern} *[:=] *(\d+)", assembly, re.MULTILINE)
        if found is None:
            raise ValueError(f"the assembly does not state {pattern}")
        return int(found[1])

    return Resources(
        registers=number("TotalNumVgprs"),
        spills=number(r"\.vgpr_spill_count"),
        stack=max(number("ScratchSize"), number(r"\.private_segment_fixed_size")),
        scalar_spills=number(r"\.sgpr_spill_count"),
        waves=number("Occupancy"),
    )


SIZED_VALUE = 4  # the format of an entry of .nv.info that is followed by its value
FRAME_SIZE, REGISTER_COUNT = 0x11, 0x2F  # attributes of .nv.info; each value is (symbol, number)


def cubin_resources(code: bytes) -> Resources:
    """From a cubin's `.nv.info` section. Our kernels have no local arrays: a stack frame holds spilled registers."""
    info = _section(code, b".nv.info")
    numbers, place = dict[int, int](), 0
    while place < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, place)
        place += 4
        if form != SIZED_VALUE:
            continue
        if attribute in (FRAME_SIZE, REGISTER_COUNT):
            numbers[attribute] = max(numbers.get(attribute, 0), struct.unpack_from("<I", info, place + 4)[0])
        place += size
    stack = numbers[FRAME_SIZE]
    return Resources(registers=numbers[REGISTER_COUNT], spills=stack, stack=stack)


def _section(code: bytes, wanted: bytes) -> bytes:
    """The bytes of a section of a little-endian ELF64 file."""
    (table,) = struct.unpack_from("<Q", code, 0x28)
    size, count, names = struct.unpack_from("<HHH", code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", code, table + size * number) for number in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        if code[start : code.index(b"\0", start)] == wanted:
            return code[offset : offset + length]
    raise ValueError(f"the cubin has no section {wanted.decode()}")
