"""What a GPU's clocks, power and temperature do while something runs, read through NVIDIA's management library.

Only reads. Where the library or the GPU answers nothing, `open_clocks` says why in a line.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"
INTERVAL_SECONDS = 0.01
SM_CLOCK, MEMORY_CLOCK = 1, 2  # nvmlClockType_t
POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT; the plain call averages over a second
REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
"""nvmlClocksThrottleReasons: why the clock is not higher."""


class NoClocks(Exception):
    """Clocks and power are not to be had. One line: why."""


class FieldValue(ctypes.Structure):
    """nvmlFieldValue_t."""

    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("kind", ctypes.c_uint),
        ("status", ctypes.c_uint),
        ("value", ctypes.c_uint * 2),
    )


@dataclass
class Readings:
    """Samples of one stretch of time."""

    sm_mhz: list[int] = field(default_factory=list)
    memory_mhz: list[int] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    celsius: list[int] = field(default_factory=list)
    reasons: int = 0

    def summary(self) -> dict[str, Any]:
        """Medians, the range of the SM clock, the reasons seen; empty without samples."""
        if not self.sm_mhz:
            return {}
        medians = {name: median(values) for name, values in asdict(self).items() if isinstance(values, list) and values}
        lowest, highest = min(self.sm_mhz), max(self.sm_mhz)
        reasons = [text for bit, text in REASONS.items() if self.reasons & bit]
        return medians | {"sm_mhz_range": [lowest, highest], "throttled": reasons, "samples": len(self.sm_mhz)}


class Clocks:
    """A GPU's sensors."""

    def __init__(self, code: ctypes.CDLL, handle: ctypes.c_void_p):
        self._code, self._handle = code, handle

    def read(self, into: Readings) -> None:
        """One sample; what the GPU does not tell is left out."""
        self._append(into.sm_mhz, "nvmlDeviceGetClockInfo", SM_CLOCK)
        self._append(into.memory_mhz, "nvmlDeviceGetClockInfo", MEMORY_CLOCK)
        self._append(into.celsius, "nvmlDeviceGetTemperature", 0)
        reasons = ctypes.c_ulonglong()
        if self._call("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.byref(reasons)):
            into.reasons |= reasons.value
        power = self._power()
        if power is not None:
            into.watts.append(power)

    def _power(self) -> float | None:
        """Watts now, or over the last second where the GPU knows no better."""
        asked = FieldValue(field=POWER_INSTANT)
        if self._call("nvmlDeviceGetFieldValues", 1, ctypes.byref(asked)) and asked.status == 0:
            return asked.value[0] / 1e3
        milliwatts = ctypes.c_uint()
        return milliwatts.value / 1e3 if self._call("nvmlDeviceGetPowerUsage", ctypes.byref(milliwatts)) else None

    def _append(self, values: list[int], name: str, kind: int) -> None:
        found = ctypes.c_uint()
        if self._call(name, kind, ctypes.byref(found)):
            values.append(found.value)

    def _call(self, name: str, *arguments: Any) -> bool:
        entry: Callable[..., int] | None = getattr(self._code, name, None)
        return entry is not None and entry(self._handle, *arguments) == 0

    @contextmanager
    def watch(self, readings: Readings) -> Iterator[None]:
        """Samples from another thread for as long as the block runs."""
        over = threading.Event()

        def sample() -> None:
            while not over.wait(INTERVAL_SECONDS):
                self.read(readings)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def open_clocks(device: torch.device) -> Clocks:
    """The sensors of a CUDA device; NoClocks where there are none."""
    if device.type != "cuda" or torch.version.cuda is None:
        raise NoClocks(f"clocks and power of {device.type} are not to be had")
    return of_uuid(str(torch.cuda.get_device_properties(device).uuid))


def of_uuid(uuid: str) -> Clocks:
    """The sensors of the GPU whose UUID this is, without the prefix `GPU-`; NoClocks where there are none."""
    try:
        code = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoClocks(f"clocks and power are not to be had: {error}") from None
    handle = ctypes.c_void_p()
    status = code.nvmlInit_v2() or code.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle))
    if status:
        raise NoClocks(f"clocks and power of GPU-{uuid} are not to be had: {LIBRARY} answers {status}")
    return Clocks(code, handle)
