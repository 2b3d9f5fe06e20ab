"""What was tried and measured: one JSON line an event, on disk before the next one starts."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeloom.tuning.plan import TuningError

MOST_STARTS = 3
"""Runs that may end while one variant is at work, killed or crashed, before it is left out."""
Times = dict[int, dict[int, tuple[float, float]]]
"""Seconds of one call of each of a pair, by M, by round."""


class Journal:
    """The events of a directory, and a way to add to them. Lines are in `measurements.jsonl`.

    machine  device, tier, torch, ..., date       at the start of each run that measures
    start    trial                                around each turn of a trial, with
    end      trial                                which a run that was killed lacks
    refused  trial, reason                        it does not compile, or does not run
    tokens   trial, tokens                        the M at which it launches anything else
    check    trial, tokens, failed                its numbers at one M
    time     trial, tokens, round, seconds, before   its call and that of the table in force, or a threshold's two sides
    """

    def __init__(self, path: Path):
        self.path = path
        self.events = list(_read(path))

    def append(self, event: str, **about: Any) -> None:
        """Add an event; it is on disk when this returns."""
        entry = {"event": event, **about}
        with self.path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(entry)

    def of(self, event: str, trial: str) -> Iterator[Mapping[str, Any]]:
        return (one for one in self.events if one["event"] == event and one.get("trial") == trial)

    @property
    def machine(self) -> Mapping[str, Any] | None:
        """What the measurements were made on."""
        return next((one for one in self.events if one["event"] == "machine"), None)

    def refused(self, trial: str) -> str | None:
        """Why a trial is out, None where it is not."""
        failed = [f"M = {one['tokens']}: {one['failed'][0]}" for one in self.of("check", trial) if one["failed"]]
        reasons = [one["reason"] for one in self.of("refused", trial)]
        return (reasons + [f"wrong numbers at {why}" for why in failed] + [None])[0]

    def leave_out_killers(self) -> None:
        """Refuse trials that runs did not survive, so that one that crashes the process does not do so for ever."""
        for trial in {one["trial"] for one in self.events if one["event"] == "start"}:
            lost = sum(1 for _ in self.of("start", trial)) - sum(1 for _ in self.of("end", trial))
            if lost >= MOST_STARTS and not self.refused(trial):
                self.append("refused", trial=trial, reason=f"{lost} runs ended while it was at work")

    def tokens(self, trial: str) -> tuple[int, ...] | None:
        """The M at which a trial differs; None where it was not looked at yet."""
        return next((tuple(one["tokens"]) for one in self.of("tokens", trial)), None)

    def checked(self, trial: str) -> set[int]:
        """The M at which its numbers were right."""
        return {one["tokens"] for one in self.of("check", trial) if not one["failed"]}

    def times(self, trial: str) -> Times:
        found: Times = {}
        for one in self.of("time", trial):
            found.setdefault(one["tokens"], {})[one["round"]] = (one["seconds"], one["before"])
        return found


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line. A run that was killed may have left a torn one at the end, which goes."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise TuningError(f"{path}:{number} is no JSON; take that line out, or name another -o") from None


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """One run at a time in a directory; TuningError for a second one. A dead process holds nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TuningError(
                f"another moeloom tune is at work in {directory}; wait for it, or name another -o"
            ) from None
        yield
