"""moeloom/tuning/interrupts.py: an interrupt that a destructor swallowed."""

import signal

import pytest

from moeloom.tuning.budget import Budget
from moeloom.tuning.interrupts import remembered


class Swallows:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_interrupt_ends_the_next_step() -> None:
    with remembered() as check:
        budget = Budget(60, check)
        assert not budget.over
        one = Swallows()
        del one
        with pytest.raises(KeyboardInterrupt):
            _ = budget.over
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_interrupts_are_ignored_they_stay_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembered() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
