"""Ctrl-C that is not lost: Python drops what a destructor, or the callback of a weak reference, raises."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """A check that raises KeyboardInterrupt where the process was interrupted since, though nobody may have noticed.

    In other threads than the main one, and where SIGINT is ignored, it never does.
    """
    came = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        came.set()
        raise KeyboardInterrupt

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        if not (came.is_set() and what.exc_type is KeyboardInterrupt):  # `check` raises that one
            report(what)

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not ours or before != signal.default_int_handler:
        yield check
        return
    report, sys.unraisablehook = sys.unraisablehook, unraisable
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = report
