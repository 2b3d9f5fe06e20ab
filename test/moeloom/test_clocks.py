"""moeloom/clocks.py against a library of the same interface, and where there is none."""

import ctypes
import subprocess
import time
from pathlib import Path

import pytest
import torch

from moeloom import clocks
from moeloom.clocks import NoClocks, Readings


@pytest.fixture
def library(tmp_path, monkeypatch):
    path = tmp_path / "libnvml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, Path(__file__).with_name("nvml.c")], check=True)
    monkeypatch.setattr(clocks, "LIBRARY", str(path))
    return path


def test_reads_what_there_is(library):
    sensors, readings = clocks.of_uuid("1234"), Readings()
    for _ in range(3):
        sensors.read(readings)
    assert readings.summary() == {
        "sm_mhz": 1900,
        "memory_mhz": 3201,
        "watts": 650.5,
        "sm_mhz_range": [1800, 2000],
        "throttled": ["software power cap"],
        "samples": 3,
    }


def test_power_over_a_second_where_there_is_none_of_the_moment(library):
    sensors, readings = clocks.of_uuid("1234"), Readings()
    ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "instant").value = 0
    sensors.read(readings)
    assert readings.watts == [600.0]


def test_samples_while_a_block_runs(library):
    readings = Readings()
    with clocks.of_uuid("1234").watch(readings):
        while len(readings.sm_mhz) < 3:
            time.sleep(0.001)
    count = len(readings.sm_mhz)
    time.sleep(3 * clocks.INTERVAL_SECONDS)
    assert len(readings.sm_mhz) == count


def test_not_to_be_had(library, monkeypatch):
    with pytest.raises(NoClocks, match=r"GPU-99 are not to be had: .* answers 6"):
        clocks.of_uuid("99")
    monkeypatch.setattr(clocks, "LIBRARY", "libnone.so.1")
    with pytest.raises(NoClocks, match=r"libnone\.so\.1"):
        clocks.of_uuid("1234")
    with pytest.raises(NoClocks, match="of cpu are not to be had"):
        clocks.open_clocks(torch.device("cpu"))
    assert Readings().summary() == {}
