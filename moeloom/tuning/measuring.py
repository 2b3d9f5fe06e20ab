"""The measuring step: every trial in rounds, until all is measured that can change the outcome, or time is up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.executable import Executable
from moeloom.tuning import plan as plans
from moeloom.tuning import select
from moeloom.tuning.budget import Budget
from moeloom.tuning.journal import Journal
from moeloom.tuning.plan import IN_FORCE, Candidate, Plan, Threshold, TuningError
from moeloom.tuning.trial import Trials

Progress = Callable[[str, int, int], None]
SAME_MACHINE = ("device", "tier")


class WrongNumbers(Exception):
    """The table in force itself gives wrong numbers here: nothing can be compared with it."""


class Measuring:
    """The trials of a plan on this machine, their events in its journal."""

    def __init__(self, trials: Trials, journal: Journal, budget: Budget):
        self.trials, self.journal, self.budget, self.plan = trials, journal, budget, trials.plan
        self._same_machine()
        self.journal.leave_out_killers()
        self.journal.append("machine", **trials.machine)
        self._check_in_force()

    def _same_machine(self) -> None:
        before, now = self.journal.machine, self.trials.machine
        if before is not None and any(before.get(name) != now.get(name) for name in SAME_MACHINE):
            raise TuningError(
                f"{self.journal.path} has measurements of {before['device']}, this is {now['device']}: go on there, "
                "move that file away, or name another -o"
            )

    def _check_in_force(self) -> None:
        """Once, at the fewest tokens."""
        m = min(self.plan.request.tokens)
        if m in self.journal.checked(IN_FORCE):
            return
        failed = self.trials.failures(self.trials.in_force, m)
        self.journal.append("check", trial=IN_FORCE, tokens=m, failed=failed)
        if failed:
            raise WrongNumbers(
                f"the table in force gives wrong numbers on {self.trials.machine['device']}: {failed[0]}"
            )

    def control(self, number: int) -> None:
        """Round `number` of the table in force against itself: the noise."""
        tokens = self.plan.request.tokens
        if self.journal.tokens(select.CONTROL) is None:
            self.journal.append("tokens", trial=select.CONTROL, tokens=list(tokens))
        if all(number in self.journal.times(select.CONTROL).get(m, {}) for m in tokens):
            return
        with self.trials.candidate(IN_FORCE) as again:
            self._round(select.CONTROL, again, self.trials.in_force, number)

    def threshold(self, threshold: Threshold, number: int) -> None:
        """Round `number` of a threshold; with the last one, the numbers of a side that is to be moved to."""
        if self.journal.refused(threshold.name):
            return
        with self._guarded(threshold.name):
            one, other = self.trials.sides(threshold)
            tokens = self._tokens(threshold.name, one, other)
            self._round(threshold.name, one, other, number)
            if select.moved(threshold, self.journal) is not None:
                self._check(threshold.name, tokens, lambda m: self._side_failures(threshold, one, other, m))

    def _side_failures(self, threshold: Threshold, one: Executable, other: Executable, m: int) -> list[str]:
        failed = self.trials.failures(one, m) + self.trials.failures(other, m)
        # Plans for few and for many tokens add in another order; the other choices are the same numbers.
        return failed + (self.trials.differences(one, other, m) if threshold.choice != "tokens" else [])

    def candidate(self, candidate: Candidate, number: int) -> None:
        """Round `number` of a candidate: numbers at the fewest tokens, times, then numbers everywhere if it may win."""
        if not plans.artifact(self.trials.directory, candidate.name).exists():
            return
        state = select.judge(candidate, self.journal).state
        if state != "unfinished":
            return
        with self._guarded(candidate.name), self.trials.candidate(candidate.name) as own:
            tokens = self._tokens(candidate.name, own, self.trials.in_force)
            self._check(candidate.name, tokens[:1], lambda m: self.trials.failures(own, m))
            if self.journal.refused(candidate.name):
                return
            self._round(candidate.name, own, self.trials.in_force, number)
            if select.judge(candidate, self.journal).state == "unfinished" and self._timed(candidate.name, tokens):
                self._check(candidate.name, tokens, lambda m: self.trials.failures(own, m))

    def _timed(self, name: str, tokens: tuple[int, ...]) -> bool:
        """Whether every round is there: then a candidate that is still unfinished lacks only checks."""
        times = self.journal.times(name)
        return all(len(times.get(m, ())) >= select.ROUNDS for m in tokens)

    def _tokens(self, name: str, one: Executable, other: Executable) -> tuple[int, ...]:
        known = self.journal.tokens(name)
        if known is None:
            known = tuple(sorted(self.trials.differing(one, other)))
            self.journal.append("tokens", trial=name, tokens=list(known))
        return known

    def _round(self, name: str, one: Executable, other: Executable, number: int) -> None:
        for m in self.journal.tokens(name) or ():
            if self.budget.over:
                return
            if number not in self.journal.times(name).get(m, {}):
                seconds, before = self.trials.seconds(one, other, m, number)
                self.journal.append("time", trial=name, tokens=m, round=number, seconds=seconds, before=before)

    def _check(self, name: str, tokens: tuple[int, ...], failures: Callable[[int], list[str]]) -> None:
        for m in tokens:
            if self.budget.over or self.journal.refused(name):
                return
            if m not in self.journal.checked(name):
                self.journal.append("check", trial=name, tokens=m, failed=failures(m))

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """A trial that cannot run is out, with the reason; one that takes the GPU with it ends the run too."""
        self.journal.append("start", trial=name)
        try:
            yield
        except (ArtifactError, LaunchError, RuntimeError) as error:
            self.journal.append("refused", trial=name, reason=" ".join(str(error).split())[:300])
            if not self.trials.alive():
                raise TuningError(f"{name} broke the GPU's context and is left out; run again to go on") from error
        finally:
            self.journal.append("end", trial=name)


def measure(
    directory: Path,
    plan: Plan,
    journal: Journal,
    budget: Budget,
    progress: Progress,
    prepare: Callable[..., Any],
    **load: Any,
) -> None:
    """Run what the journal lacks; returns when nothing is left or the budget is over.

    `prepare(candidate)` is called before a candidate's first round, to compile it where that is possible.
    """
    trials = Trials(directory, plan, **load)
    try:
        measuring = Measuring(trials, journal, budget)
        total = len(plan.thresholds) + len(plan.candidates)
        trials_of_round: list[Threshold | Candidate] = [*plan.thresholds, *plan.candidates]
        for number in range(select.ROUNDS):
            measuring.control(number)
            for done, trial in enumerate(trials_of_round):
                progress(f"round {number + 1} of {select.ROUNDS}", done, total)
                if budget.over:
                    return
                if isinstance(trial, Threshold):
                    measuring.threshold(trial, number)
                else:
                    prepare(trial)
                    measuring.candidate(trial, number)
            progress(f"round {number + 1} of {select.ROUNDS}", total, total)
        whole = select.together(select.winners(plan, journal))
        for number in range(select.ROUNDS if whole is not None else 0):
            assert whole is not None
            progress("together", number, select.ROUNDS)
            if budget.over:
                return
            prepare(whole)
            measuring.candidate(whole, number)
    finally:
        trials.close()
