"""Compilation in worker processes: what they make is kept by content, and a crash becomes an error of one line.

A worker is a module that ends in `serve(compile)`. Jobs reach it as JSON lines on stdin; a JSON line goes back for each
one. A compiler that aborts takes a worker with it and not us, and one that prints `error:` and returns has failed too.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from moeloom.lowering.cache import hit, trim

ERROR = re.compile(r"\berror *:", re.IGNORECASE)


class CompileError(Exception):
    """A kernel, a compiler or a linker does not do what a target needs. One line."""


@dataclass(frozen=True)
class Job:
    """One thing to make, a file or a folder. `name` is how an error calls it: "kernel quant_0 for gfx950".

    `work` is what the worker gets, JSON. `key` is everything that the thing depends on, with its suffix; `costly` jobs
    are started first.
    """

    name: str
    work: Mapping[str, Any]
    key: str
    costly: bool = False


def content_key(work: Mapping[str, Any], compiler: str) -> str:
    """A key that changes with the job and with `compiler` (see `sources`)."""
    return hashlib.sha256((json.dumps(work, sort_keys=True) + compiler).encode()).hexdigest()


@cache
def sources(folder: Path, package: str) -> str:
    """A hash of the Python files of `folder` and of the version of the compiler `package`."""
    digest = hashlib.sha256(version(package).encode())
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def make(
    module: str,
    jobs: Sequence[Job],
    folder: Path,
    progress: Callable[[int, int], None],
    environment: Mapping[str, str] = os.environ,
) -> list[Path]:
    """What every job makes, in order, made by workers that run `module` where `folder` lacks it.

    environment: of the workers. CompileError when one fails; nothing of its job is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / job.key for job in jobs]
    wanted = dict(zip(paths, jobs, strict=True))
    missing = [(path, job) for path, job in wanted.items() if not hit(path)]
    # Long ones first, so that no worker is left alone with one at the end.
    left = deque(sorted(missing, key=lambda item: not item[1].costly))
    lock, done = Lock(), len(wanted) - len(missing)
    progress(done, len(wanted))

    def finished() -> None:
        nonlocal done
        with lock:
            done += 1
            progress(done, len(wanted))

    workers = min(len(os.sched_getaffinity(0)), len(missing))
    if workers:
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(_drive, module, left, folder, finished, environment) for _ in range(workers)]:
                future.result()
        trim(folder)
    return paths


def _drive(
    module: str,
    left: deque[tuple[Path, Job]],
    folder: Path,
    finished: Callable[[], None],
    environment: Mapping[str, str],
) -> None:
    """Feed one worker until nothing is left; after a failure nothing is left for the others either."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch, open(Path(scratch, "stderr"), "a+") as complaints:
        worker = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            # What a compiler leaves behind goes with the folder.
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": scratch},
        )
        made = Path(scratch, "made")
        with worker:
            try:
                while (item := _next(left)) is not None:
                    path, job = item
                    problem = _ask(worker, job, made, complaints)
                    if problem:
                        raise CompileError(f"compiling {job.name} failed: {problem}")
                    _publish(made, path)
                    finished()
            except BaseException:
                left.clear()
                raise
            finally:
                worker.kill()  # it has nothing left to say, and a compiler takes its time to end


def _next(left: deque[tuple[Path, Job]]) -> tuple[Path, Job] | None:
    with suppress(IndexError):
        return left.popleft()
    return None


def _ask(worker: subprocess.Popen[str], job: Job, made: Path, complaints: TextIO) -> str:
    """Have the worker make `made`; the line that says why it could not, or ""."""
    assert worker.stdin is not None and worker.stdout is not None
    start = complaints.seek(0, os.SEEK_END)
    with suppress(BrokenPipeError):
        print(json.dumps([job.work, str(made)]), file=worker.stdin, flush=True)
    reply = worker.stdout.readline()
    complaints.seek(start)
    said = complaints.read()
    if not reply:
        return one_line(said) or f"the compiler ended with {worker.wait()}"
    problem, complaint = json.loads(reply)["problem"], one_line(said) if ERROR.search(said) else ""
    if complaint and complaint not in problem:
        problem += f": {complaint}" if problem else complaint
    return problem or ("" if made.exists() else "the compiler wrote nothing")


def one_line(said: str) -> str:
    """The last line that calls itself an error, or the last one: what comes before is context."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if ERROR.search(line)), lines[-1] if lines else "")


def _publish(made: Path, path: Path) -> None:
    """Put what was made into its place, whole."""
    try:
        made.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(made)  # a folder that another process has put there first


def serve(compile: Callable[[Mapping[str, Any], Path], None]) -> None:
    """A worker: calls compile(work, path) for each job until stdin ends."""
    # Compilers print what they like on stdout; the replies have a channel of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Between jobs alone: a kernel makes so many objects that searching the imported modules for cycles costs a tenth.
    gc.disable()
    gc.freeze()
    for line in sys.stdin:
        work, path = json.loads(line)
        problem = ""
        try:
            compile(work, Path(path))
        except CompileError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {one_line(str(error))}"
        print(json.dumps({"problem": problem}), file=replies, flush=True)
        gc.collect()
