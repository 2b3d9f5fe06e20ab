"""moeloom/tuning/table.py: tables are read with suspicion, and used for the target they are for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from moeloom.lowering.targets import TARGETS
from moeloom.tuning.plan import TuningError
from moeloom.tuning.table import by_target, read

ROW = {"what": "fusion", "when": {"stage": 1}, "params": {"rows": 0}, "replaces": {"rows": 4}}
TABLE = {
    "schema": 1,
    "kind": "moeloom tuned table",
    "target": "cpu",
    "moeloom": "0.1.0",
    "machine": {"device": "some CPU, 2 threads", "date": "2026-11-24T23:00:00+00:00"},
    "model": {"hidden": 64},
    "tokens": [1],
    "rows": [ROW],
}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_table_is_applied_and_says_where_it_is_from(tmp_path):
    path = written(tmp_path / "cpu.json", TABLE)
    tuning = read(path)
    assert tuning.applied().fused_rows == (0, TARGETS["cpu"].fused_rows[1])
    said = tuning.manifest()
    assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (said["file"], said["device"]) == ("cpu.json", "some CPU, 2 threads")
    assert said["settings"] == [{name: ROW[name] for name in ("what", "when", "params")}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "frob"}, "is no tuned table"),
        ({"schema": 2}, "has schema 2; this version reads 1"),
        ({"target": "gfx1"}, "is for target 'gfx1'; this version compiles for cpu"),
        ({"rows": [ROW, ROW | {"what": "frob"}]}, "row 2: target cpu has no setting 'frob'"),
        ({"rows": [ROW | {"params": {"rows": "x"}}]}, "row 1: fusion rows is 'x'"),
        ({"rows": [ROW | {"params": {"frob": 1}}]}, "row 1: fusion has params frob; it takes rows"),
        ({"rows": [ROW | {"when": {"stage": [1]}}]}, "is malformed"),
        ({"rows": [{"what": "fusion"}]}, "lacks 'when'"),
        ({"rows": None}, "is malformed"),
        ({"machine": {}}, "lacks 'device'"),
    ],
)
def test_refusals_are_one_line(tmp_path, change, says):
    path = written(tmp_path / "t.json", TABLE | change)
    with pytest.raises(TuningError, match=says) as refusal:
        read(path)
    assert "t.json" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_what_is_no_table(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(TuningError, match="is no tuned table"):
        read(tmp_path / "t.json")
    with pytest.raises(TuningError, match="is no tuned table"):
        read(tmp_path / "none.json")


def test_a_table_a_target(tmp_path):
    path = written(tmp_path / "cpu.json", TABLE)
    assert by_target((), ["cpu"]) == {}
    assert set(by_target(path, ["sm_90", "cpu"])) == set(by_target([path], ["cpu"])) == {"cpu"}
    with pytest.raises(TuningError, match=r"cpu\.json is tuned for cpu; you compile for sm_90: add --target cpu"):
        by_target(path, ["sm_90"])
    with pytest.raises(TuningError, match=r"cpu\.json is the second table for cpu"):
        by_target([path, path], ["cpu"])
