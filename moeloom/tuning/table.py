"""Tuned tables: read, checked against what this version knows, put before a target's own rows.

    {"schema": 1, "kind": "moeloom tuned table", "target": "sm_90", "moeloom": "0.1.0", "tools": {...},
     "machine": {"device": "NVIDIA H200", ..., "date": "2026-11-24T23:00:00+00:00"}, "model": ..., "options": {...},
     "tokens": [1, 4, ...], "rule": "...",
     "rows": [{"what": "gate_up", "when": {"block": 64, ...}, "params": {...}, "replaces": {...},
               "measured": [{"tokens": 512, "seconds": ..., "before": ..., "rounds": 3}]}],
     "together": null | {"ratio": 0.93, "measured": [...]}, "kept": [...], "refused": [...]}

A row is a setting (lowering/settings.py); `before` are the seconds of the table that was in force.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeloom.lowering.settings import Setting, SettingError, apply, check, tile_origin
from moeloom.lowering.targets import TARGETS, Target
from moeloom.tuning.plan import TuningError
from moeloom.tuning.record import KIND, SCHEMA


@dataclass(frozen=True)
class Tuning:
    """Settings for a target, and `about`, where they come from: file, sha256, device, date, model."""

    target: str
    settings: tuple[Setting, ...]
    about: Mapping[str, Any]

    def applied(self) -> Target:
        """The target's row with these settings first."""
        return apply(TARGETS[self.target], self.settings)

    def manifest(self) -> dict[str, Any]:
        """What an artifact says of it."""
        return {**self.about, "settings": [asdict(setting) for setting in self.settings]}

    def mark(self, kernels: Mapping[str, dict[str, Any]]) -> None:
        """Note of each kernel of a manifest where its tile comes from."""
        for kernel in kernels.values():
            origin = tile_origin(self.settings, kernel["template"], kernel["params"])
            if origin is not None:
                kernel["tile"] = origin


Given = str | Path | Tuning


def read(path: str | Path) -> Tuning:
    """The table at `path`; TuningError, one line, where it is none or knows things that this version does not."""
    path = Path(path)
    try:
        text = path.read_bytes()
        raw = json.loads(text)
    except (OSError, ValueError) as error:
        raise TuningError(f"{path} is no tuned table: {error}; make one by moeloom tune") from None
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise TuningError(f"{path} is no tuned table (its kind is not {KIND!r}); make one by moeloom tune")
    if raw.get("schema") != SCHEMA:
        raise TuningError(f"{path} has schema {raw.get('schema')!r}; this version reads {SCHEMA}: tune again")
    name = raw.get("target")
    if name not in TARGETS:
        raise TuningError(f"{path} is for target {name!r}; this version compiles for {', '.join(TARGETS)}")
    try:
        settings = tuple(_setting(row) for row in raw["rows"])
        about = {"device": raw["machine"]["device"], "date": raw["machine"]["date"], "moeloom": raw["moeloom"]}
        about |= {"model": raw["model"], "tokens": raw["tokens"]}
    except (KeyError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise TuningError(f"{path} {what}; tune again") from None
    for number, setting in enumerate(settings, 1):
        try:
            check(TARGETS[name], setting)
        except SettingError as error:
            raise TuningError(f"{path}, row {number}: {error}; take the row out, or tune again") from None
    return Tuning(name, settings, {"file": path.name, "sha256": hashlib.sha256(text).hexdigest(), **about})


def _setting(row: Mapping[str, Any]) -> Setting:
    when, params = dict(row["when"]), dict(row["params"])
    if not isinstance(row["what"], str) or not all(isinstance(value, str | int) for value in when.values()):
        raise TypeError(f"a row is for {row['what']!r} where {when!r}")
    return Setting(row["what"], when, params)


def by_target(tables: Given | Sequence[Given], targets: Sequence[str]) -> dict[str, Tuning]:
    """The tables for `targets` by target; TuningError for one of another target, and for two of the same."""
    given = [tables] if isinstance(tables, str | Path | Tuning) else tables
    found: dict[str, Tuning] = {}
    for one in given:
        tuning = one if isinstance(one, Tuning) else read(one)
        name = tuning.about.get("file", "a table")
        if tuning.target not in targets:
            raise TuningError(
                f"{name} is tuned for {tuning.target}; you compile for {', '.join(targets)}: add --target "
                f"{tuning.target}, or leave it out"
            )
        if tuning.target in found:
            raise TuningError(f"{name} is the second table for {tuning.target}; give one")
        found[tuning.target] = tuning
    return found
