"""Worker processes: one imports what a module compiles with and forks, and each fork makes one thing after another.

That module ends in `serve(compile)`. A fork says its process id; then jobs reach it as JSON lines, and a JSON line goes
back for each. A compiler that aborts takes a fork with it and not us, and one that prints `error:` and returns has
failed too.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from moeloom.lowering.jobs import CompileError, Job

COMPLAINTS = "stderr"
ERROR = re.compile(r"\berror *:", re.IGNORECASE)


class Zygote:
    """The process that imports `module` and forks into `count` workers, which write in one folder of `folder`."""

    def __init__(self, module: str, folder: Path, environment: Mapping[str, str], count: int):
        with ExitStack() as opened, ExitStack() as theirs:
            scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            self._complaints = opened.enter_context(open(scratch / COMPLAINTS, "a+"))
            self.workers: list[Worker] = []
            places = {}
            for number in range(count):
                own = scratch / str(number)
                own.mkdir()
                channel, other = socket.socketpair()
                places[theirs.enter_context(other).fileno()] = own
                opened.enter_context(channel)
                complaints = opened.enter_context(open(own / COMPLAINTS, "a+"))
                replies = opened.enter_context(channel.makefile())
                self.workers.append(Worker(self, own / "made", channel, replies, complaints))
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *(f"{channel}={own}" for channel, own in places.items())],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=tuple(places),
                # What a compiler leaves behind goes with the folder.
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)},
            )
            self._opened = opened.pop_all()

    def last_words(self) -> str:
        """Why it has ended without a fork."""
        code = self._process.wait()
        self._complaints.seek(0)
        return one_line(self._complaints.read()) or f"the compiler ended with {code}"

    def stop(self) -> None:
        """End it and its forks, whatever they do: they have nothing left to say, and a compiler takes its time."""
        self._process.terminate()

    def close(self) -> None:
        """`stop`, and leave nothing."""
        self.stop()
        self._process.wait()
        self._opened.close()


class Worker:
    """A fork, from our side. `made` is where it makes things."""

    def __init__(self, zygote: Zygote, made: Path, channel: socket.socket, replies: TextIO, complaints: TextIO):
        self.zygote, self.made = zygote, made
        self._channel, self._replies, self._complaints = channel, replies, complaints
        self._process = 0

    def ask(self, job: Job) -> str:
        """Have it make `made`; the line that says why it could not, or ""."""
        start = self._complaints.seek(0, os.SEEK_END)
        reply: dict[str, Any] = {"ready": self._process} if self._process else self._reply()
        if not reply:
            return self.zygote.last_words()
        self._process = reply.get("ready", 0)
        if self._process:
            with suppress(ConnectionError):
                self._channel.sendall(f"{json.dumps([job.work, str(self.made)])}\n".encode())
            reply = self._reply()
        self._complaints.seek(start)
        said = self._complaints.read()
        if "problem" not in reply:
            self._process = 0
            return one_line(said) or f"the compiler ended with {reply.get('ended', 'its parent')}"
        problem, complaint = reply["problem"], one_line(said) if ERROR.search(said) else ""
        if complaint and complaint not in problem:
            problem += f": {complaint}" if problem else complaint
        return problem or ("" if self.made.exists() else "the compiler wrote nothing")

    def _reply(self) -> dict[str, Any]:
        """The next; empty where the other side is gone."""
        try:
            return json.loads(self._replies.readline() or "{}")
        except ConnectionError:
            return {}

    def end(self) -> None:
        """After it has failed: have it gone."""
        if self._process:
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            while self._reply():
                pass


def one_line(said: str) -> str:
    """The last line that calls itself an error, or the last one: what comes before is context."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if ERROR.search(line)), lines[-1] if lines else "")


def serve(compile: Callable[[Mapping[str, Any], Path], None]) -> None:
    """A zygote: forks into a worker for each "descriptor=folder" of the command line, and tells how each has ended.

    A worker calls compile(work, path) for each job until there are no more.
    """
    # Between jobs alone: a kernel makes so many objects that searching the imported modules for cycles costs a tenth.
    gc.disable()
    gc.freeze()
    places = [argument.split("=", 1) for argument in sys.argv[1:]]
    channels = [(socket.socket(fileno=int(descriptor)), Path(scratch)) for descriptor, scratch in places]
    forks: dict[int, socket.socket] = {}

    def stop(*_: object) -> None:
        for process in forks:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for channel, scratch in channels:
        process = os.fork()
        if process == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            for other, _ in channels:
                if other is not channel:
                    other.close()
            _work(compile, channel, scratch)
        forks[process] = channel
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while forks:
        process, status = os.wait()
        with forks.pop(process) as channel, suppress(ConnectionError):
            channel.sendall(f'{{"ended": {os.waitstatus_to_exitcode(status)}}}\n'.encode())


def _work(compile: Callable[[Mapping[str, Any], Path], None], channel: socket.socket, scratch: Path) -> NoReturn:
    """A fork: it does not return."""
    code = 1
    try:
        os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None
        # Compilers print what they like, on stdout too.
        complaints = os.open(scratch / COMPLAINTS, os.O_WRONLY | os.O_APPEND)
        os.dup2(complaints, 1)
        os.dup2(complaints, 2)
        replies = channel.makefile("w")
        print(json.dumps({"ready": os.getpid()}), file=replies, flush=True)
        for line in channel.makefile():
            print(json.dumps({"problem": _problem(compile, *json.loads(line))}), file=replies, flush=True)
            gc.collect()
        code = 0
    except ConnectionError:  # nobody is there any more
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _problem(compile: Callable[[Mapping[str, Any], Path], None], work: Mapping[str, Any], path: str) -> str:
    try:
        compile(work, Path(path))
    except CompileError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(str(error))}"
    return ""
