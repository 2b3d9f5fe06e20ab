"""The table that comes out of a directory, as plain data (its format: table.py)."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeloom.tuning.journal import Journal
from moeloom.tuning.plan import Plan, Row, TuningError, write_json
from moeloom.tuning.select import CONTROL, LEAST_NOISE, ROUNDS, Outcome, measured, noise
from moeloom.version import VERSION

SCHEMA = 1
KIND = "moeloom tuned table"
RULE = (
    f"a row wins by more than the noise and {LEAST_NOISE:.0%} (geometric mean over the tokens, median of {ROUNDS} "
    "rounds), faster in every round, nowhere slower by more than that, with right numbers"
)


def record(plan: Plan, journal: Journal, outcome: Outcome) -> dict[str, Any]:
    """Everything that was found, the rows first to last as they were chosen; rows of the table in force follow."""
    if journal.machine is None:
        raise TuningError(f"{journal.path} has no measurements; run moeloom tune where the device is")
    machine = {name: value for name, value in journal.machine.items() if name != "event"}
    new = [_row(row, plan, journal) for row in outcome.rows]
    replaced = {row.key for row in outcome.rows}
    old = [Row(**row, replaces={}) for row in plan.request.in_force]
    new += [{**asdict(row), "measured": [], "carried": True} for row in old if row.key not in replaced]
    together = outcome.together
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "target": plan.request.target,
        "moeloom": VERSION,
        "tools": dict(plan.tools),
        "machine": machine,
        "model": dict(plan.request.shape) if plan.request.shape else plan.request.model,
        "options": dict(plan.request.options),
        "tokens": list(plan.request.tokens),
        "rule": RULE,
        "noise": {str(m): noise(journal, [m]) for m in sorted(journal.times(CONTROL))},
        "rows": new,
        "together": together
        and {
            "ratio": together.ratio,
            "state": together.state,
            "reason": together.reason,
            "measured": measured(together.candidate.name, journal),
        },
        "kept": [
            {"row": str(v.candidate.rows[0]), "state": v.state, "ratio": v.ratio, "reason": v.reason}
            for v in outcome.verdicts
            if v.state in ("even", "slower", "same")
        ],
        "refused": _refused(plan, journal),
        "unfinished": list(outcome.unfinished),
    }


def _row(row: Row, plan: Plan, journal: Journal) -> dict[str, Any]:
    """A row with what it and the row that it replaces took; where a threshold made it, what the two sides took."""
    candidates = [one for one in plan.candidates if one.rows[0].key == row.key]
    trials = [one.name for one in candidates if one.rows[0].changes.items() <= row.changes.items()]
    content = {**asdict(row), "measured": [found for name in trials for found in measured(name, journal)]}
    moved = [one.name for one in plan.thresholds if one.row.key == row.key and one.param in row.changes]
    sides = [found for name in moved for found in measured(name, journal)]
    if sides:
        content["sides"] = [
            {**{name: one[name] for name in ("tokens", "ratio", "rounds")}, "first": first, "second": second}
            for one, first, second in ((one, one["seconds"], one["before"]) for one in sides)
        ]
    return content


def _refused(plan: Plan, journal: Journal) -> list[dict[str, str]]:
    rows = [(one.name, str(one.rows[0])) for one in plan.candidates]
    rows += [(one.name, f"{one.name} at {one.value}") for one in plan.thresholds]
    return [{"row": row, "reason": reason} for name, row in rows if (reason := journal.refused(name))]


def write(directory: Path, content: Mapping[str, Any]) -> Path:
    """The table as DIR/TARGET.json."""
    path = directory / f"{content['target']}.json"
    write_json(path, content)
    return path
