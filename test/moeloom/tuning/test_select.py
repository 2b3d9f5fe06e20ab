"""moeloom/tuning/select.py: given measurements, which rows come out. The numbers are the input, so they are made up."""

from pathlib import Path

import pytest

from moeloom.tuning.journal import Journal
from moeloom.tuning.plan import Candidate, Plan, Request, Row, Threshold
from moeloom.tuning.select import CONTROL, judge, measured, moved, select, together, winners

TOKENS = (1, 16, 64)
TILE = {"block_n": 64, "num_warps": 4}


def candidate(name: str, what: str = "gate_up", **params: int) -> Candidate:
    return Candidate(name, (Row(what, {"block": 64}, TILE | params, TILE),))


FUSION = Threshold(
    "fusion.stage-1.rows", Row("fusion", {"stage": 1}, {"rows": 64}, {"rows": 64}), "rows", "fusion", (1,), 1, 4
)
PLAN_ROW = {"block": 8, "rows": 8, "stages": 2}
DECODE = Threshold(
    "plan.rows", Row("plan", {"layout": "stream", "number": 0}, PLAN_ROW, PLAN_ROW), "rows", "tokens", (), 128, 4
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """One where the table in force measured itself within one percent."""
    found = Journal(tmp_path / "measurements.jsonl")
    timed(found, CONTROL, 1.0, 0.99, 1.01, checks=False)
    return found


def timed(
    journal: Journal, name: str, *rounds: float, tokens=TOKENS, at: dict[int, float] | None = None, checks: bool = True
) -> None:
    """Rounds of times of `rounds` times that of the table in force, at some M another."""
    journal.append("tokens", trial=name, tokens=list(tokens))
    for number, ratio in enumerate(rounds):
        for m in tokens:
            own = (at or {}).get(m, ratio)
            journal.append("time", trial=name, tokens=m, round=number, seconds=2e-3 * own, before=2e-3)
    for m in tokens if checks else ():
        journal.append("check", trial=name, tokens=m, failed=[])


def plan(*candidates: Candidate, thresholds: tuple[Threshold, ...] = ()) -> Plan:
    return Plan(Request("m", "sm_90", tokens=TOKENS), ("layer",), candidates, thresholds, {})


def test_a_faster_row_wins(journal):
    own = candidate("wide", block_n=128)
    timed(journal, "wide", 0.9, 0.95, 0.93)
    verdict = judge(own, journal)
    assert (verdict.state, round(verdict.ratio, 6)) == ("wins", 0.93)
    outcome = select(plan(own), journal)
    assert outcome.rows == own.rows and not outcome.unfinished
    assert [(one["tokens"], one["rounds"]) for one in measured("wide", journal)] == [(m, 3) for m in TOKENS]
    assert measured("wide", journal)[0]["seconds"] == pytest.approx(2e-3 * 0.93)


@pytest.mark.parametrize(
    ("rounds", "at", "state"),
    [
        ((0.985, 0.985, 0.985), {}, "even"),  # faster, by less than 2 %
        ((0.9, 0.9, 1.001), {}, "even"),  # a round says otherwise
        ((0.9, 0.9, 0.9), {64: 1.03}, "even"),  # slower somewhere
        ((0.9, 0.9, 0.9), {64: 1.01}, "wins"),  # within the noise there
        ((1.001, 0.5, 0.5), {}, "slower"),  # dropped after the first round
        ((0.9, 0.9), {}, "unfinished"),
    ],
)
def test_what_is_no_clear_gain_changes_nothing(journal, rounds, at, state):
    own = candidate("wide", block_n=128)
    timed(journal, "wide", *rounds, at=at)
    assert judge(own, journal).state == state
    assert bool(select(plan(own), journal).rows) == (state == "wins")


def test_a_gain_below_the_measured_noise_is_none(tmp_path):
    noisy = Journal(tmp_path / "noisy.jsonl")
    timed(noisy, CONTROL, 1.0, 1.15, 1.0, checks=False)
    timed(noisy, "wide", 0.9, 0.9, 0.9)
    assert judge(candidate("wide", block_n=128), noisy).state == "even"
    timed(noisy, "wider", 0.8, 0.8, 0.8)
    assert judge(candidate("wider", block_n=256), noisy).state == "wins"
    without = Journal(tmp_path / "without.jsonl")
    timed(without, "wide", 0.9, 0.9, 0.9)
    assert judge(candidate("wide", block_n=128), without).state == "unfinished"


def test_unchecked_and_wrong_numbers_do_not_win(journal):
    own = candidate("wide", block_n=128)
    timed(journal, "wide", 0.5, 0.5, 0.5, checks=False)
    assert judge(own, journal).state == "unfinished" and not winners(plan(own), journal)
    for m in TOKENS[:2]:
        journal.append("check", trial="wide", tokens=m, failed=[])
    assert judge(own, journal).state == "unfinished"
    journal.append("check", trial="wide", tokens=64, failed=["relative L2 0.3 to reference, limit 0.005"])
    verdict = judge(own, journal)
    assert verdict.state == "refused" and verdict.reason.startswith("wrong numbers at M = 64: relative L2 0.3")
    assert not select(plan(own), journal).rows


def test_the_fastest_of_a_row_and_one_for_each_row(journal):
    wide, wider, warps = candidate("a", block_n=128), candidate("b", block_n=256), candidate("c", "down", num_warps=8)
    for name, ratio in (("a", 0.9), ("b", 0.8), ("c", 0.95)):
        timed(journal, name, ratio, ratio, ratio)
    outcome = select(plan(wide, wider, warps), journal)
    assert outcome.rows == (*wider.rows, *warps.rows)
    whole = together(outcome.rows)
    assert whole is not None and outcome.unfinished == (whole.name,)
    timed(journal, whole.name, 0.78, 0.78, 0.78)
    done = select(plan(wide, wider, warps), journal)
    assert done.rows == outcome.rows and not done.unfinished and done.together.state == "wins"


def test_winners_that_do_not_win_together_leave_the_best_one(journal):
    wide, warps = candidate("a", block_n=128), candidate("c", "down", num_warps=8)
    timed(journal, "a", 0.9, 0.9, 0.9)
    timed(journal, "c", 0.95, 0.95, 0.95)
    whole = together(winners(plan(wide, warps), journal))
    assert whole is not None
    timed(journal, whole.name, 1.2)
    outcome = select(plan(wide, warps), journal)
    assert outcome.alone and outcome.rows == wide.rows and outcome.together.state == "slower"


@pytest.mark.parametrize(
    ("ratios", "rows"),
    [
        ({1: 0.9, 16: 0.9, 64: 1.2}, None),  # 64 rows are M = 16: as it is
        ({1: 0.9, 16: 1.2, 64: 1.3}, 4),
        ({1: 1.2, 16: 1.2, 64: 1.3}, 0),
        ({1: 0.9, 16: 0.9, 64: 0.9}, 256),
        ({1: 0.99, 16: 1.2, 64: 1.3}, 4),  # M = 1 is even: no further than need be
        ({1: 0.99, 16: 1.01, 64: 1.01}, None),
        ({1: 1.03, 16: 0.5, 64: 1.01}, None),  # losing a little at 1 is better than a lot at 16
    ],
)
def test_a_threshold_moves_to_where_the_sides_cross(journal, ratios, rows):
    timed(journal, FUSION.name, 1, 1, 1, at=ratios)
    row = moved(FUSION, journal)
    assert (row and row.params) == (None if rows is None else {"rows": rows})
    assert select(plan(thresholds=(FUSION,)), journal).rows == (() if row is None else (row,))


def test_a_threshold_waits_for_its_checks(journal):
    timed(journal, FUSION.name, 1, 1, 1, at={1: 1.2, 16: 1.2}, checks=False)
    assert moved(FUSION, journal) is not None
    outcome = select(plan(thresholds=(FUSION,)), journal)
    assert not outcome.rows and outcome.unfinished == (FUSION.name,)
    journal.append("check", trial=FUSION.name, tokens=1, failed=["the bytes of its two sides differ"])
    outcome = select(plan(thresholds=(FUSION,)), journal)
    assert not outcome.rows and not outcome.unfinished


def test_rows_of_a_plan_are_rows_an_expert_and_never_all(journal):
    timed(journal, DECODE.name, 1, 1, 1, at={1: 0.9, 16: 1.2, 64: 1.3})
    assert moved(DECODE, journal).params == {"block": 8, "rows": 1, "stages": 2}  # 0 would be every M


def test_a_block_and_a_threshold_of_one_plan_join(journal):
    block = Candidate("block", (Row("plan", {"layout": "stream", "number": 0}, PLAN_ROW | {"block": 16}, PLAN_ROW),))
    timed(journal, "block", 0.9, 0.9, 0.9)
    timed(journal, DECODE.name, 1, 1, 1, at={64: 1.3})
    outcome = select(plan(block, thresholds=(DECODE,)), journal)
    assert [row.params for row in outcome.rows] == [{"block": 16, "rows": 1, "stages": 2}]
