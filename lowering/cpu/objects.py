"""Object files of kernels, compiled side by side in worker processes and kept by content.

A worker is this file run as a module: jobs as JSON lines on stdin, a line back for each one done. So a compiler that
aborts takes a worker with it and becomes an error of one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .compile import RUN, CompileError, write_object
from .templates import TEMPLATES
from .tiers import BEST_FIRST

DONE = "done\n"
COSTLY = ("gate_up", "down", "experts_one_stage")


@dataclass(frozen=True)
class Job:
    """One object file: kernel `name` of `template` with `params` for a tier; template "" is moeloom_run."""

    name: str
    template: str
    params: Mapping[str, Any]
    tier: str

    def key(self) -> str:
        """What the object depends on: this job, the code that builds kernels, and the compiler."""
        text = json.dumps(asdict(self), sort_keys=True) + _compiler()
        return hashlib.sha256(text.encode()).hexdigest()


@cache
def _compiler() -> str:
    digest = hashlib.sha256(version("torch-mlir").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def default_folder() -> Path:
    """Where objects are kept between compilations."""
    return Path.home() / ".cache" / "moeloom" / "objects"


def jobs(kernels: Mapping[str, Mapping], tier: str) -> list[Job]:
    """The objects of one library."""
    return [Job(RUN, "", {}, tier), *(Job(name, k["template"], k["params"], tier) for name, k in kernels.items())]


def make(wanted: Sequence[Job], folder: Path, progress: Callable[[int, int], None]) -> list[Path]:
    """The object file of every job, in order, made where `folder` lacks it. CompileError when a worker fails."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{job.key()}.o" for job in wanted]
    missing = [(job, path) for job, path in zip(wanted, paths, strict=True) if not path.exists()]
    # Long ones first, so that no worker is left alone with one at the end.
    missing.sort(key=lambda item: item[0].template not in COSTLY)
    lock, left = threading.Lock(), iter(missing)
    done = len(wanted) - len(missing)
    progress(done, len(wanted))

    def next_job() -> tuple[Job, Path] | None:
        with lock:
            return next(left, None)

    def finished() -> None:
        nonlocal done
        with lock:
            done += 1
            progress(done, len(wanted))

    workers = min(len(os.sched_getaffinity(0)), len(missing))
    if workers:
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(_drive, next_job, finished) for _ in range(workers)]:
                future.result()
    return paths


def _drive(next_job: Callable[[], tuple[Job, Path] | None], finished: Callable[[], None]) -> None:
    """Feed one worker process until there is nothing left."""
    with tempfile.TemporaryFile("w+") as complaints:
        worker = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert worker.stdin is not None and worker.stdout is not None
        with worker:
            while (item := next_job()) is not None:
                job, path = item
                with suppress(BrokenPipeError):
                    print(json.dumps([asdict(job), str(path)]), file=worker.stdin, flush=True)
                if worker.stdout.readline() != DONE:
                    worker.kill()
                    worker.wait()
                    complaints.seek(0)
                    last = (complaints.read().strip().splitlines() or [f"it ended with {worker.returncode}"])[-1]
                    raise CompileError(f"compiling kernel {job.name} for tier {job.tier} failed: {last}")
                finished()


def _work() -> None:
    """Make the objects that stdin asks for; each appears whole or not at all."""
    tiers = {tier.name: tier for tier in BEST_FIRST}
    for line in sys.stdin:
        job, path = json.loads(line)
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
            made = Path(folder) / "made.o"
            kernels = {job["name"]: (TEMPLATES[job["template"]], job["params"])} if job["template"] else {}
            write_object(kernels, tiers[job["tier"]], made)
            made.rename(path)
        print(DONE, end="", flush=True)


if __name__ == "__main__":
    _work()
