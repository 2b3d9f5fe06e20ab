"""Which trials win: measurements in, rows of a table out.

The rule. The noise is what the table in force shows against itself, loaded twice and timed in the same rounds: the most
of any round, and at least LEAST_NOISE. A candidate is timed in turns with the table in force, in ROUNDS rounds with
other inputs, at every M of the plan at which it launches anything else. It wins if, taking the median over the rounds,
the geometric mean over these M of its time to that of the table in force is below 1 by more than the noise; if every
round by itself says that it is faster; if it is nowhere slower by more than the noise; and if its numbers are right at
each of these M. Of several for one row the fastest does. One that the first round does not call faster is dropped.

A threshold is timed with either side forced. An M counts for a side that is faster there by more than the noise and in
every round. The threshold moves only if that leaves fewer M (weighed by how much they lose) on the wrong side, and no
further than it must: to a measured M.

Anything else leaves the table as it is.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import mean, median
from typing import Any, Literal

from moeloom.tuning.journal import Journal, Times
from moeloom.tuning.plan import Candidate, Plan, Row, Threshold

LEAST_NOISE = 0.02
CONTROL = "control"
"""The trial that times the table in force against itself."""
ROUNDS = 3
State = Literal["wins", "even", "slower", "refused", "same", "unfinished"]


@dataclass(frozen=True)
class Verdict:
    """Where a candidate stands. `ratio` is the geometric mean of its time to that in force, as far as measured."""

    candidate: Candidate
    state: State
    ratio: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """`rows` come into the table, `verdicts` are on every candidate. `together` is the verdict on all rows at once,
    None where that does not apply or was not measured; `alone`: only the best row came in because of it."""

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    unfinished: tuple[str, ...]
    together: Verdict | None = None
    alone: bool = False


def ratios(times: Times) -> dict[int, float]:
    """At each M the median over the rounds of first to second time."""
    return {m: median(own / other for own, other in rounds.values()) for m, rounds in times.items()}


def geometric(values: Sequence[float]) -> float:
    return exp(mean(map(log, values)))


def noise(journal: Journal, tokens: Sequence[int]) -> float | None:
    """How far the table in force is from itself at these M, as a part of its time; None while rounds are left."""
    times = journal.times(CONTROL)
    if any(len(times.get(m, ())) < ROUNDS for m in tokens):
        return None
    rounds = [geometric([own / other for own, other in (times[m][r] for m in tokens)]) for r in range(ROUNDS)]
    return max(LEAST_NOISE, exp(max(abs(log(ratio)) for ratio in rounds)) - 1)


def promising(times: Times) -> bool:
    """Whether the first round calls it faster."""
    return geometric([rounds[0][0] / rounds[0][1] for rounds in times.values() if 0 in rounds]) < 1


def judge(candidate: Candidate, journal: Journal) -> Verdict:
    """The rule, for one candidate."""
    refused, tokens, times = (
        journal.refused(candidate.name),
        journal.tokens(candidate.name),
        journal.times(candidate.name),
    )
    if refused:
        return Verdict(candidate, "refused", reason=refused)
    if tokens is not None and not tokens:
        return Verdict(candidate, "same", reason="it launches nothing else at these numbers of tokens")
    first = {m for m, rounds in times.items() if 0 in rounds}
    if tokens is None or first != set(tokens):
        return Verdict(candidate, "unfinished")
    found = ratios(times)
    ratio = geometric(list(found.values()))
    if not promising(times):
        return Verdict(candidate, "slower", ratio)
    margin = noise(journal, tokens)
    if margin is None or any(len(times[m]) < ROUNDS for m in tokens):
        return Verdict(candidate, "unfinished", ratio)
    steady = all(geometric([own / other for own, other in (times[m][r] for m in tokens)]) < 1 for r in range(ROUNDS))
    slower = any(own > 1 + (noise(journal, [m]) or 0) for m, own in found.items())
    if ratio >= 1 - margin or slower or not steady:
        return Verdict(candidate, "even", ratio)
    return Verdict(candidate, "wins" if journal.checked(candidate.name) >= set(tokens) else "unfinished", ratio)


def sides(threshold: Threshold, journal: Journal) -> dict[int, float] | None:
    """log(first / second) at each M that counts for a side: below 0 the first is faster. None while rounds are left."""
    tokens, times = journal.tokens(threshold.name), journal.times(threshold.name)
    if tokens is None or any(len(times.get(m, ())) < ROUNDS for m in tokens):
        return None
    found = {}
    for m, ratio in ratios(times).items():
        margin = noise(journal, [m])
        if margin is None:
            return None
        all_rounds = [own / other for own, other in times[m].values()]
        if (ratio < 1 - margin and max(all_rounds) < 1) or (ratio > 1 + margin and min(all_rounds) > 1):
            found[m] = log(ratio)
    return found


def cut(threshold: Threshold, found: dict[int, float], tokens: Sequence[int]) -> int:
    """The value that leaves the least on the wrong side: of those that stand for a measured M the nearest to that in
    force, which stays where none does better."""

    def loss(value: int) -> float:
        return sum(abs(gain) for m, gain in found.items() if (gain < 0) != (m <= threshold.limit(value)))

    # 0 rows of a plan for decoding mean that it holds for every M.
    least = 1 if threshold.choice == "tokens" else 0
    values = {m * threshold.denominator // threshold.numerator for m in tokens} | {least}
    tried = sorted((value for value in values if value >= least), key=lambda value: abs(value - threshold.value))
    return min([threshold.value, *tried], key=loss)  # the first of equals


def moved(threshold: Threshold, journal: Journal) -> Row | None:
    """The row that a threshold wants, None where it stays; its numbers may yet be unchecked."""
    found = sides(threshold, journal)
    if found is None or journal.refused(threshold.name):
        return None
    value = cut(threshold, found, journal.tokens(threshold.name) or ())
    row = replace(threshold.row, params={**threshold.row.replaces, threshold.param: value})
    return row if value != threshold.value else None


def winners(plan: Plan, journal: Journal) -> tuple[Row, ...]:
    """A row a winner, the fastest for each thing it changes; a threshold joins the row that it is a number of."""
    found: dict[tuple, Row] = {}
    verdicts = [v for v in (judge(one, journal) for one in plan.candidates) if v.state == "wins"]
    for verdict in sorted(verdicts, key=lambda v: v.ratio or 1):
        (row,) = verdict.candidate.rows
        found.setdefault(row.key, row)
    for threshold in plan.thresholds:
        wanted = moved(threshold, journal)
        if wanted is not None and journal.checked(threshold.name) >= set(journal.tokens(threshold.name) or ()):
            before = found.get(wanted.key, wanted)
            found[wanted.key] = replace(wanted, params={**before.params, **wanted.changes})
    return tuple(found.values())


def together(rows: Sequence[Row]) -> Candidate | None:
    """All winners as one variant; None where there are fewer than two."""
    if len(rows) < 2:
        return None
    plain = sorted(json.dumps([row.what, row.when, row.params], sort_keys=True) for row in rows)
    return Candidate(f"together.{hashlib.sha256(''.join(plain).encode()).hexdigest()[:8]}", tuple(rows))


def select(plan: Plan, journal: Journal) -> Outcome:
    """What the table becomes, as far as things are measured."""
    verdicts = tuple(judge(one, journal) for one in plan.candidates)
    unfinished = [v.candidate.name for v in verdicts if v.state == "unfinished"]
    unfinished += [one.name for one in plan.thresholds if _unfinished(one, journal)]
    rows = winners(plan, journal)
    whole = together(rows)
    if whole is None:
        return Outcome(rows, verdicts, tuple(unfinished))
    verdict = judge(whole, journal)
    if verdict.state == "unfinished":
        return Outcome(rows, verdicts, (*unfinished, whole.name))
    if verdict.state == "wins":
        return Outcome(rows, verdicts, tuple(unfinished), verdict)
    best = min((v for v in verdicts if v.state == "wins"), key=lambda v: v.ratio or 1, default=None)
    alone = best.candidate.rows if best else ()
    return Outcome(alone, verdicts, tuple(unfinished), verdict, alone=True)


def _unfinished(threshold: Threshold, journal: Journal) -> bool:
    if journal.refused(threshold.name):
        return False
    if sides(threshold, journal) is None:
        return True
    tokens = set(journal.tokens(threshold.name) or ())
    return moved(threshold, journal) is not None and not journal.checked(threshold.name) >= tokens


def measured(name: str, journal: Journal) -> list[dict[str, Any]]:
    """What a trial took, a row an M: medians over the rounds."""
    return [
        {
            "tokens": m,
            "seconds": median(own for own, _ in rounds.values()),
            "before": median(other for _, other in rounds.values()),
            "ratio": median(own / other for own, other in rounds.values()),
            "rounds": len(rounds),
        }
        for m, rounds in sorted(journal.times(name).items())
    ]
