"""PTX text -> instructions: statements, scopes of inline assembly, registers, labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property

_COMMENT = re.compile(r"//[^\n]*")
_ENTRY = re.compile(r"\.entry\s+(\w+)\((.*?)\)", re.DOTALL)
_PARAM = re.compile(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", re.DOTALL)
_THREADS = re.compile(r"\.reqntid\s+(\d+)")
_DECLARED = re.compile(r"([%\w$]+)(?:<(\d+)>)?")
_OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_GUARD = re.compile(r"@(!?)(\S+)\s+(.*)", re.DOTALL)
COLLECTIVE = ("shfl.", "redux.", "mma.", "ldmatrix.", "stmatrix.", "bar.warp.", "wgmma.")


@dataclass(frozen=True)
class Instruction:
    """`@guard name operands`, at `line` of the text. `guard` is a predicate, taken inverted where `unless`."""

    name: str
    operands: tuple[str, ...]
    line: int
    guard: str = ""
    unless: bool = False

    @cached_property
    def parts(self) -> list[str]:
        """The name between its dots: ["add", "rn", "f32"]."""
        return self.name.split(".")

    @cached_property
    def is_collective(self) -> bool:
        """Whether `together` threads execute it at once."""
        return self.name.startswith(COLLECTIVE)

    @cached_property
    def together(self) -> int:
        """The threads of a warp, or of a warpgroup."""
        return 128 if self.name.startswith("wgmma.") else 32

    def __str__(self) -> str:
        guard = f"@{'!' if self.unless else ''}{self.guard} " if self.guard else ""
        return f"line {self.line}: {guard}{self.name} {', '.join(self.operands)}"


@dataclass
class Kernel:
    """One entry: parameter names and types in order, threads of a block, bits by register (1: a predicate), code."""

    name: str
    params: dict[str, str]
    threads: int
    registers: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


@cache
def parse(text: str) -> Kernel:
    """The one kernel of a PTX text, not to be changed: the machines of a text share it."""
    text = _COMMENT.sub("", text)
    entry, threads = _ENTRY.search(text), _THREADS.search(text)
    assert entry is not None and threads is not None, "one .entry with .reqntid is wanted"
    kernel = Kernel(entry[1], {name: kind for kind, name in _PARAM.findall(entry[2])}, int(threads[1]))
    start = text.index("{", threads.end())
    scopes: list[dict[str, str]] = []
    statements = list(_statements(text, start))
    inner = iter(_labels(statements))
    for line, statement in statements:
        if statement == "{":
            scopes.append(next(inner))
        elif statement == "}":
            scopes.pop()
        elif statement.endswith(":"):
            name = statement[:-1]
            kernel.labels[scopes[-1].get(name, name)] = len(kernel.code)
        elif statement.startswith(".reg"):
            _declare(kernel, statement, scopes)
        elif not statement.startswith("."):
            kernel.code.append(_instruction(statement, line, scopes))
    return kernel


def _labels(statements: list[tuple[int, str]]) -> list[dict[str, str]]:
    """For each scope in order, names of their own for the labels in it; the body's keep theirs."""
    found: list[dict[str, str]] = []
    within: list[dict[str, str]] = []
    for _, statement in statements:
        if statement == "{":
            found.append({})
            within.append(found[-1])
        elif statement == "}":
            within.pop()
        elif statement.endswith(":") and len(within) > 1:
            within[-1][statement[:-1]] = f"{statement[:-1]}@{len(found)}"
    return found


def _statements(text: str, place: int) -> Iterator[tuple[int, str]]:
    """Statements with their lines from `place` to the end of the body; braces of scopes and labels are their own."""
    depth, line, counted = 0, 1, 0
    while True:
        while text[place].isspace() or text[place] == ";":
            place += 1
        line, counted = line + text.count("\n", counted, place), place
        if text[place] in "{}":
            depth += 1 if text[place] == "{" else -1
            yield line, text[place]
            place += 1
            if depth == 0:
                return
            continue
        label = re.compile(r"\$?\w+:").match(text, place)
        end = label.end() if label else text.index(";", place)
        yield line, " ".join(text[place:end].split())
        place = end


def _declare(kernel: Kernel, statement: str, scopes: list[dict[str, str]]) -> None:
    _, kind, names = statement.split(maxsplit=2)
    bits = 1 if kind == ".pred" else int(re.sub(r"\D", "", kind))
    for found in names.split(","):
        name, count = _DECLARED.fullmatch(found.strip()).groups()
        for own in [name] if count is None else [f"{name}{number}" for number in range(int(count))]:
            # Names of an inner scope get a number: they hide no outer one, and each scope has registers of its own.
            scopes[-1][own] = own if len(scopes) == 1 else f"{own}@{len(kernel.registers)}"
            kernel.registers[scopes[-1][own]] = bits


def _instruction(statement: str, line: int, scopes: list[dict[str, str]]) -> Instruction:
    guard, unless = "", False
    if statement.startswith("@"):
        inverted, guard, statement = _GUARD.fullmatch(statement).groups()
        guard, unless = _resolved(guard, scopes), bool(inverted)
    name, _, rest = statement.partition(" ")
    operands = tuple(_resolved(operand, scopes) for operand in _OPERANDS.findall(rest))
    return Instruction(name, operands, line, guard, unless)


def _resolved(operand: str, scopes: list[dict[str, str]]) -> str:
    """`operand` with the names of its registers made unique."""

    def own(match: re.Match) -> str:
        return next((scope[match[0]] for scope in reversed(scopes) if match[0] in scope), match[0])

    return re.sub(r"%?[A-Za-z_]\w*", own, operand)
