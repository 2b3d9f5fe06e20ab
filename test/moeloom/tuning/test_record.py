"""moeloom/tuning/record.py: what a table says beside its rows."""

from pathlib import Path

import pytest

from moeloom.tuning.journal import Journal
from moeloom.tuning.plan import Candidate, Plan, Request, Row, Threshold, TuningError
from moeloom.tuning.record import record
from moeloom.tuning.select import CONTROL, select

TILE = {"rows": 1, "num_warps": 1, "num_stages": 1}
ROUTE = Candidate("route.rows-2", (Row("route", {"experts": 8}, TILE | {"rows": 2}, TILE),))
SLOW = Candidate("route.rows-4", (Row("route", {"experts": 8}, TILE | {"rows": 4}, TILE),))
SORT = Threshold("sort.tokens", Row("sort", {}, {"tokens": 256}, {"tokens": 256}), "tokens", "sort", (), 1, 1)
IN_FORCE = (
    {"what": "sort", "when": {}, "params": {"tokens": 256}},
    {"what": "fusion", "when": {"stage": 1}, "params": {"rows": 8}},
)
PLAN = Plan(Request("m", "sm_90", tokens=(1, 4), in_force=IN_FORCE), ("layer",), (ROUTE, SLOW), (SORT,), {"torch": "2"})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """The route wins, another one is slower, the sort's sides cross below one token."""
    found = Journal(tmp_path / "m.jsonl")
    for name, ratio in ((CONTROL, 1.0), (ROUTE.name, 0.9), (SLOW.name, 1.1), (SORT.name, 1.5)):
        found.append("tokens", trial=name, tokens=[1, 4])
        for m in (1, 4):
            found.append("check", trial=name, tokens=m, failed=[])
            for number in range(3):
                found.append("time", trial=name, tokens=m, round=number, seconds=ratio, before=1.0)
    return found


def test_rows_with_what_they_took_then_those_of_the_table_before(journal):
    journal.append("machine", device="some GPU", date="2026-11-24")
    found = record(PLAN, journal, select(PLAN, journal))
    route, sort, fusion = found["rows"]
    assert route["params"]["rows"] == 2 and route["replaces"] == TILE
    assert [(one["tokens"], one["seconds"], one["before"]) for one in route["measured"]] == [(1, 0.9, 1), (4, 0.9, 1)]
    assert (sort["params"], sort["replaces"], sort["measured"]) == ({"tokens": 0}, {"tokens": 256}, [])
    assert [(one["tokens"], one["first"], one["second"]) for one in sort["sides"]] == [(1, 1.5, 1), (4, 1.5, 1)]
    assert fusion["carried"] and fusion["params"] == {"rows": 8}
    assert [(one["row"], one["state"]) for one in found["kept"]] == [("route (experts 8): rows 1 -> 4", "slower")]
    assert found["machine"] == {"device": "some GPU", "date": "2026-11-24"}
    assert found["noise"] == {"1": pytest.approx(0.02), "4": pytest.approx(0.02)} and found["together"] is None


def test_without_measurements_there_is_no_table(journal):
    with pytest.raises(TuningError, match="has no measurements; run moeloom tune where the device is"):
        record(PLAN, journal, select(PLAN, journal))
