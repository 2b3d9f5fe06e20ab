"""Compilation in worker processes: what they make is kept by content, and a crash becomes an error of one line."""

from __future__ import annotations

import heapq
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType

from moeloom.lowering.cache import hit, trim
from moeloom.lowering.jobs import CompileError, Job
from moeloom.lowering.processes import Worker, Zygote

MOST_AHEAD = 16
"""Workers that are started before it is known how much there is to do."""


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
        self._zygotes: list[Zygote] = []
        self._idle: dict[str, list[Worker]] = {}
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
            for zygote in self._zygotes:
                zygote.stop()
        self._threads.shutdown()
        for zygote in self._zygotes:
            zygote.close()

    def start(self, module: str, environment: Mapping[str, str]) -> None:
        """Have workers that run `module` get ready in the background, one a CPU."""
        with self._lock:
            self._start(module, environment, MOST_AHEAD)

    def _start(self, module: str, environment: Mapping[str, str], most: int) -> list[Worker]:
        """Those that wait, after `most` new ones at most."""
        self._zygotes.append(Zygote(module, self.folder, environment, min(_cpus(), most)))
        idle = self._idle.setdefault(module, [])
        idle += self._zygotes[-1].workers
        return idle

    def order(self, module: str, jobs: Sequence[Job], environment: Mapping[str, str]) -> list[Future[None]]:
        """Have workers that run `module` in `environment` make what `folder` lacks of `jobs`, in the background: a
        future for each such thing, which raises CompileError where it failed. What is ordered twice is made once."""
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
            waiting = sum(other.module == order.module for other in self._queue)
            idle = self._idle.get(order.module) or self._start(order.module, order.environment, 1 + waiting)
            worker = idle.pop(0)
        problem = worker.ask(order.job)
        if problem:
            worker.end()
            raise CompileError(f"compiling {order.job.name} failed: {problem}")
        _publish(worker.made, self.folder / order.job.key)
        with self._lock:
            self._idle[order.module].append(worker)


@dataclass(order=True, frozen=True)
class _Order:
    """A job that waits for a worker: what costs most first, then what was ordered first."""

    negative_cost: int
    number: int
    job: Job = field(compare=False)
    module: str = field(compare=False)
    environment: Mapping[str, str] = field(compare=False)
    future: Future[None] = field(compare=False)


def _stop(done: Future[None], orders: Sequence[Future[None]]) -> None:
    """After a failure, begin none of `orders` any more."""
    if not done.cancelled() and done.exception() is not None:
        for order in orders:
            order.cancel()


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _publish(made: Path, path: Path) -> None:
    """Put what was made into its place, whole."""
    try:
        made.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(made)  # a folder that another process has put there first
