"""moeloom/tuning/journal.py: what a run that was killed leaves, and who may write."""

import json
import subprocess
import sys

import pytest

from moeloom.tuning.journal import MOST_STARTS, Journal, exclusive
from moeloom.tuning.plan import TuningError


def test_a_torn_line_goes_and_the_rest_stays(tmp_path):
    path = tmp_path / "m.jsonl"
    journal = Journal(path)
    journal.append("time", trial="a", tokens=4, round=0, seconds=1.0, before=2.0)
    with path.open("a") as file:
        file.write('{"event": "time", "trial": "a", "tok')
    again = Journal(path)
    again.append("time", trial="a", tokens=4, round=1, seconds=1.0, before=2.0)
    assert again.times("a") == {4: {0: (1.0, 2.0), 1: (1.0, 2.0)}}
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"event": "end"}\nfrob\n')
    with pytest.raises(TuningError, match=r"m.jsonl:2 is no JSON"):
        Journal(tmp_path / "m.jsonl")


def test_a_trial_that_ends_every_run_is_left_out(tmp_path):
    journal = Journal(tmp_path / "m.jsonl")
    for lost in range(MOST_STARTS):
        journal.leave_out_killers()
        assert journal.refused("a") is None, lost
        journal.append("start", trial="a")
        journal.append("start", trial="b")
        journal.append("end", trial="b")
    journal.leave_out_killers()
    assert journal.refused("a") == "3 runs ended while it was at work" and journal.refused("b") is None


def test_one_run_at_a_time(tmp_path):
    imports = "from moeloom.tuning.journal import exclusive\nfrom pathlib import Path\n"
    code = f"{imports}with exclusive(Path({str(tmp_path)!r})): pass"
    with exclusive(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another moeloom tune is at work" in done.stderr
    subprocess.run([sys.executable, "-c", code], check=True)
