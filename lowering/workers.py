"""Compilation in worker processes: what they make is kept by content, and a crash becomes an error of one line.

A worker is a module that ends in `serve(compile)`. It says READY; then jobs reach it as JSON lines on stdin, and a JSON
line goes back for each one. A compiler that aborts takes a worker with it and not us, and one that prints `error:` and
returns has failed too.
"""

from __future__ import annotations

import gc
import hashlib
import heapq
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any

from moeloom.lowering.cache import hit, trim

ERROR = re.compile(r"\berror *:", re.IGNORECASE)
READY = "ready"
MOST_AHEAD = 8
"""Workers that are started before it is known how much there is to do."""


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
    workers: Workers | None = None,
) -> list[Path]:
    """What every job makes, in order, made by workers that run `module` where `folder` lacks it.

    environment: of the workers. `workers`, of the same folder, are used and left, else there are some for this alone.
    CompileError when one fails; nothing of its job is left, and none that waits is begun.
    """
    wanted = list(dict.fromkeys(folder / job.key for job in jobs))
    with nullcontext(workers) if workers else Workers(folder) as own:
        orders = own.order(module, jobs, environment)
        for order in orders:
            order.add_done_callback(lambda done: _stop(done, orders))
        done = len(wanted) - len(orders)
        progress(done, len(wanted))
        for order in as_completed(orders):
            if not order.cancelled():
                order.result()
                done += 1
                progress(done, len(wanted))
    if orders:
        trim(folder)
    return [folder / job.key for job in jobs]


class Workers:
    """Processes that make things in `folder`, of several modules; who is done waits for more. Closed, they end.

    As many as there are CPUs work at a time, on what costs most of all that is ordered.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock, self._closed = Lock(), False
        self._alive: set[_Worker] = set()
        self._idle: dict[str, list[_Worker]] = {}
        self._starting: dict[str, Thread] = {}
        self._ordered: dict[Path, Future[None]] = {}
        self._queue: list[_Order] = []
        self._number = 0
        self._threads = ThreadPoolExecutor(_cpus())

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
            self._queue.clear()
            for worker in self._alive:
                worker.kill()
        for thread in self._starting.values():
            thread.join()
        self._threads.shutdown()
        for worker in self._alive:
            worker.end()

    def start(self, module: str, environment: Mapping[str, str]) -> None:
        """Start workers that run `module`, one a CPU, until the first is taken: in the background and one after
        another, since who calls this has something else to do."""
        self._starting[module] = Thread(target=self._start, args=(module, environment), daemon=True)
        self._starting[module].start()

    def _start(self, module: str, environment: Mapping[str, str]) -> None:
        for number in range(min(_cpus(), MOST_AHEAD)):
            with self._lock:
                idle = self._idle.setdefault(module, [])
                if self._closed or len(idle) < number:
                    return
                worker = self._new(module, environment)
                idle.append(worker)
            worker.wait_until_ready()

    def order(self, module: str, jobs: Sequence[Job], environment: Mapping[str, str]) -> list[Future[None]]:
        """Have workers that run `module` in `environment` make what `folder` lacks of `jobs`, in the background: a
        future for each thing, whose result is a CompileError or None. What is ordered twice is made once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        futures = []
        with self._lock:
            for path, job in {self.folder / job.key: job for job in jobs}.items():
                future = self._ordered.get(path)
                if future is None or future.done():
                    if hit(path):
                        continue
                    future = self._ordered[path] = Future()
                    self._number += 1
                    order = _Order(-job.cost, self._number, job, module, environment, future)
                    heapq.heappush(self._queue, order)
                    self._threads.submit(self._make_next)
                futures.append(future)
        return futures

    def _make_next(self) -> None:
        """Make what costs most of what is ordered, unless it is not wanted any more."""
        with self._lock:
            order = heapq.heappop(self._queue) if self._queue else None  # closed
        if order is None or not order.future.set_running_or_notify_cancel():
            return
        try:
            self._make(order)
        except BaseException as error:
            order.future.set_exception(error)
        else:
            order.future.set_result(None)

    def _make(self, order: _Order) -> None:
        with self._lock:
            if self._closed:
                raise CompileError(f"compiling {order.job.name} was given up")
            worker = self._take(order.module, order.environment)
        problem = worker.ask(order.job)
        if problem:
            with self._lock:
                self._alive.discard(worker)
            worker.end()
            raise CompileError(f"compiling {order.job.name} failed: {problem}")
        _publish(worker.made, self.folder / order.job.key)
        with self._lock:
            self._idle.setdefault(worker.module, []).append(worker)

    def _take(self, module: str, environment: Mapping[str, str]) -> _Worker:
        """A worker that runs `module`: one that waits, or a new one."""
        idle = self._idle.get(module)
        return idle.pop(0) if idle else self._new(module, environment)

    def _new(self, module: str, environment: Mapping[str, str]) -> _Worker:
        worker = _Worker(module, self.folder, environment)
        self._alive.add(worker)
        return worker


@dataclass(order=True, frozen=True)
class _Order:
    """A job that waits for a worker: what costs most first, then what was ordered first."""

    negative_cost: int
    number: int
    job: Job = field(compare=False)
    module: str = field(compare=False)
    environment: Mapping[str, str] = field(compare=False)
    future: Future[None] = field(compare=False)


class _Worker:
    def __init__(self, module: str, folder: Path, environment: Mapping[str, str]):
        self.module = module
        self._lock, self._said = Lock(), ""
        with ExitStack() as opened:
            scratch = opened.enter_context(tempfile.TemporaryDirectory(dir=folder))
            self.made = Path(scratch, "made")
            self._complaints = opened.enter_context(open(Path(scratch, "stderr"), "a+"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
                # What a compiler leaves behind goes with the folder.
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": scratch},
            )
            self._opened = opened.pop_all()

    def wait_until_ready(self) -> bool:
        """False where it has ended instead."""
        with self._lock:
            if not self._said:
                assert self._process.stdout is not None
                self._said = self._process.stdout.readline() or "nothing"
            return self._said.strip() == READY

    def ask(self, job: Job) -> str:
        """Have it make `made`; the line that says why it could not, or ""."""
        process, complaints = self._process, self._complaints
        assert process.stdin is not None and process.stdout is not None
        start = complaints.seek(0, os.SEEK_END) if self.wait_until_ready() else 0
        with suppress(BrokenPipeError):
            print(json.dumps([job.work, str(self.made)]), file=process.stdin, flush=True)
        reply = process.stdout.readline()
        complaints.seek(start)
        said = complaints.read()
        if not reply:
            return one_line(said) or f"the compiler ended with {process.wait()}"
        problem, complaint = json.loads(reply)["problem"], one_line(said) if ERROR.search(said) else ""
        if complaint and complaint not in problem:
            problem += f": {complaint}" if problem else complaint
        return problem or ("" if self.made.exists() else "the compiler wrote nothing")

    def kill(self) -> None:
        self._process.kill()  # it has nothing left to say, and a compiler takes its time to end

    def end(self) -> None:
        self.kill()
        with suppress(BrokenPipeError), self._opened, self._process:  # it may not have read its last job
            pass


def _stop(done: Future[None], orders: Sequence[Future[None]]) -> None:
    """After a failure, begin none of `orders` any more."""
    if not done.cancelled() and done.exception() is not None:
        for order in orders:
            order.cancel()


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


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
    print(READY, file=replies, flush=True)
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
