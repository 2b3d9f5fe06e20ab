"""moeloom/tuning/interrupts.py: an interrupt that a destructor swallowed."""

import signal
import sys
from collections.abc import Iterator

import pytest

from moeloom.tuning.budget import Budget
from moeloom.tuning.interrupts import remembered


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """As where Python starts; a shell's background jobs have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Swallows:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Fails:
    def __del__(self) -> None:
        raise ValueError("of its own")


def test_a_lost_interrupt_ends_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And Python, which drops it, says nothing of it; of other errors it does."""
    said: list[type[BaseException]] = []

    def hook(what: "sys.UnraisableHookArgs") -> None:
        said.append(what.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", hook)
    with remembered() as check:
        budget = Budget(60, check)
        assert not budget.over
        one, other = Swallows(), Fails()
        del one, other
        with pytest.raises(KeyboardInterrupt):
            _ = budget.over
    assert said == [ValueError]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and sys.unraisablehook is hook


def test_where_interrupts_are_ignored_they_stay_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with remembered() as check:
        signal.raise_signal(signal.SIGINT)
        check()
