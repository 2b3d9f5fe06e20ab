"""What is to be measured: the plan of a tuning directory, plain data that travels with the artifacts.

DIR/plan.json               this
DIR/variants/NAME.moel      the table in force, and each candidate: an artifact with random weights, made at load
DIR/measurements.jsonl      journal.py
DIR/TARGET.json             the table that came out
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moeloom.version import VERSION

SCHEMA = 1
IN_FORCE = "in-force"
"""The variant without a change: what the others are measured against."""
SEED = 1
"""Of the weights of every variant."""
TOKENS = (1, 4, 16, 64, 256, 1024)


class TuningError(Exception):
    """A tuning directory, a table or a request that does not fit. One line: found, wanted, way out."""


@dataclass(frozen=True)
class Row:
    """A setting (lowering/settings.py) as plain data, and the params that it takes the place of."""

    what: str
    when: Mapping[str, Any]
    params: Mapping[str, int]
    replaces: Mapping[str, int]

    @property
    def key(self) -> tuple:
        """What two rows have in common that cannot both hold."""
        return (self.what, tuple(sorted(self.when.items())))

    def __str__(self) -> str:
        facts = ", ".join(_fact(name, value) for name, value in self.when.items())
        changes = (f"{name} {self.replaces.get(name, 'none')} -> {v}" for name, v in self.changes.items())
        return f"{self.what}{f' ({facts})' if facts else ''}: {', '.join(changes)}"

    @property
    def changes(self) -> dict[str, int]:
        return {name: value for name, value in self.params.items() if self.replaces.get(name) != value}


def _fact(name: str, value: Any) -> str:
    return {True: name, False: f"not {name}"}[value] if isinstance(value, bool) else f"{name} {value}"


@dataclass(frozen=True)
class Candidate:
    """A variant: the table in force with other rows."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Threshold:
    """A number of a row up to which the first side of an alternative is taken: measured by forcing each side.

    `value` of `param` is in force and stands for M up to value * numerator // denominator. `choice` is the
    alternative's; with "fusion" only those of `stages`.
    """

    name: str
    row: Row
    param: str
    choice: str
    stages: tuple[int, ...]
    numerator: int
    denominator: int

    @property
    def value(self) -> int:
        return self.row.replaces[self.param]

    def limit(self, value: int) -> int:
        """The largest M of the first side."""
        return value * self.numerator // self.denominator


@dataclass(frozen=True)
class Request:
    """What is tuned. `model` is as `moeloom compile` takes it, absolute; for a `shape` it is config.json, in DIR.

    `options` are compile's; `in_force` are settings of an earlier table, {"what", "when", "params"}, that stand before
    the target's own. `what` names the settings to try, all where it is empty.
    """

    model: str
    target: str
    shape: Mapping[str, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = TOKENS
    in_force: tuple[Mapping[str, Any], ...] = ()
    what: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`entries` are the layers that take turns, all of one program; `tools` compiled the variants."""

    request: Request
    entries: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    thresholds: tuple[Threshold, ...]
    tools: Mapping[str, str]

    def write(self, directory: Path) -> None:
        write_json(directory / "plan.json", {"schema": SCHEMA, "moeloom": VERSION, **asdict(self)})


def artifact(directory: Path, name: str) -> Path:
    """Where a variant is."""
    return directory / "variants" / f"{name}.moel"


def read(directory: Path) -> Plan | None:
    """The plan of a directory, None where it has none yet. TuningError for one of another version."""
    path = directory / "plan.json"
    if not path.is_file():
        return None
    raw = json.loads(path.read_text())
    found = (raw.get("schema"), raw.get("moeloom"))
    if found != (SCHEMA, VERSION):
        raise TuningError(
            f"{path} has schema {found[0]} of moeloom {found[1]}; this is schema {SCHEMA} of {VERSION}: name another -o"
        )
    request = {**raw["request"], "tokens": tuple(raw["request"]["tokens"])}
    request |= {name: tuple(request[name]) for name in ("in_force", "what")}
    return Plan(
        Request(**request),
        tuple(raw["entries"]),
        tuple(Candidate(one["name"], tuple(Row(**row) for row in one["rows"])) for one in raw["candidates"]),
        tuple(
            Threshold(**{**one, "row": Row(**one["row"]), "stages": tuple(one["stages"])}) for one in raw["thresholds"]
        ),
        raw["tools"],
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
