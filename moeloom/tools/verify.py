"""`--verify-diagnostics`: compare diagnostics with the expectations written beside the code that causes them.

// expected-error@+1 {{x has rank 3}}
// expected-remark@above 2 {{stage {{[12]}}}}      a count, and a regular expression between double braces
// expected-warning@below {{...}}   expected-note@-2 {{...}}
"""

import re
from dataclasses import dataclass

from moeloom.passes.diagnostics import Diagnostic

_MARK = re.compile(
    r"expected-(?P<severity>error|warning|remark|note)"
    r"(?:@(?P<place>[+-]\d+|\d+|above|below|unknown))?\s*(?P<count>\d+)?\s*\{\{"
)


@dataclass
class Expectation:
    """`count` diagnostics of `severity` on `line` (0: none known) whose message contains a match of `pattern`."""

    written: int
    line: int
    severity: str
    pattern: re.Pattern[str]
    text: str
    count: int

    def takes(self, diagnostic: Diagnostic) -> bool:
        fits = diagnostic.severity == self.severity and line_of(diagnostic) == self.line
        return self.count > 0 and fits and bool(self.pattern.search(diagnostic.message))


def line_of(diagnostic: Diagnostic) -> int:
    """The line of a diagnostic, 0 where it has no place in a file."""
    parts = diagnostic.location.rsplit(":", 2)
    return int(parts[1]) if len(parts) == 3 else 0


def expectations(text: str) -> list[Expectation]:
    """The expectations in `text`; ValueError for one without its closing braces or with a broken expression."""
    found: list[Expectation] = []
    lines = text.split("\n")
    codes = [number for number, line in enumerate(lines, 1) if not _MARK.search(line)]
    for number, line in enumerate(lines, 1):
        at = 0
        while mark := _MARK.search(line, at):
            at = _end(line, mark.end(), number)
            body = line[mark.end() : at - 2]
            place = _line(mark["place"], number, codes)
            count = int(mark["count"] or 1)
            found.append(Expectation(number, place, mark["severity"], _pattern(body, number), body, count))
    return found


def _line(place: str | None, number: int, codes: list[int]) -> int:
    """The line that `place` names, seen from line `number`; above and below skip lines of expectations alone."""
    if place is None:
        return number
    if place == "unknown":
        return 0
    if place == "above":
        return max((line for line in codes if line < number), default=number - 1)
    if place == "below":
        return min((line for line in codes if line > number), default=number + 1)
    return number + int(place) if place[0] in "+-" else int(place)


def _end(line: str, start: int, number: int) -> int:
    """Where the message that starts at `start` ends, past its closing braces; regular expressions nest once."""
    depth, at = 1, start
    while at < len(line):
        pair = line[at : at + 2]
        if pair == "{{":
            depth, at = depth + 1, at + 2
        elif pair == "}}":
            depth, at = depth - 1, at + 2
            if not depth:
                return at
        else:
            at += 1
    raise ValueError(f"line {number}: the expected message has no closing '}}}}'")


def _pattern(body: str, number: int) -> re.Pattern[str]:
    """Text as it stands, with regular expressions between double braces."""
    pieces = re.split(r"\{\{(.*?)\}\}", body)
    text = "".join(f"(?:{piece})" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"line {number}: '{body}' is no regular expression: {error}") from None


def mismatches(text: str, diagnostics: list[Diagnostic], name: str) -> list[str]:
    """One line for each diagnostic that nothing expects and each expectation without its diagnostic."""
    wanted = expectations(text)
    wrong = []
    for diagnostic in diagnostics:
        match = next((w for w in wanted if w.takes(diagnostic)), None)
        if match is not None:
            match.count -= 1
        elif diagnostic.severity != "note":
            wrong.append(f"{diagnostic.location}: error: unexpected {diagnostic.severity}: {diagnostic.message}")
    for expectation in wanted:
        if expectation.count:
            wrong.append(
                f'{name}:{expectation.written}:1: error: expected {expectation.severity} "{expectation.text}" '
                f"was not produced{f' on line {expectation.line}' if expectation.line else ''}"
            )
    return wrong
