"""What workers are asked to make, and the keys that it is kept by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


class CompileError(Exception):
    """A kernel, a compiler or a linker does not do what a target needs. One line."""


@dataclass(frozen=True)
class Job:
    """One thing to make, a file or a folder. `name` is how an error calls it: "kernel quant_0 for gfx950".

    `work` is what the worker gets, JSON. `key` is everything that the thing depends on, with its suffix. What has the
    highest `cost`, in no unit, is started first.
    """

    name: str
    work: Mapping[str, Any]
    key: str
    cost: int = 0


def content_key(work: Mapping[str, Any], compiler: str) -> str:
    """A key that changes with the job and with `compiler` (see `sources`)."""
    return hashlib.sha256((json.dumps(work, sort_keys=True) + compiler).encode()).hexdigest()


@cache
def sources(folder: Path, package: str, *more: Path) -> str:
    """A hash of the Python files of `folder`, of `more` files and of the version of the compiler `package`."""
    digest = hashlib.sha256(version(package).encode())
    for file in [*sorted(folder.glob("*.py")), *more]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
