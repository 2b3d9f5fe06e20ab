"""`moeloom tune`: compile, measure and select, together on one machine or each where it can be done."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moeloom.shape import Shape
from moeloom.tuning import measuring, record, select
from moeloom.tuning import plan as plans
from moeloom.tuning.budget import Budget
from moeloom.tuning.journal import Journal, exclusive
from moeloom.tuning.plan import Candidate, Plan, Request, TuningError, write_json

Step = Literal["compile", "measure", "select"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuned:
    """`table` is the content of the table at `path`, None where only variants were compiled. `compiled` of `variants`,
    all winners at once among them, exist or were refused; `unfinished` counts the trials that are left to measure."""

    path: Path | None
    table: dict[str, Any] | None
    variants: int
    compiled: int
    unfinished: int


def request_of(
    directory: Path, *, model: str | None, shape: Shape | None, target: str | None, **wanted: Any
) -> Request:
    """What to tune: the request of the directory's plan, or a new one. TuningError where both are given and differ.

    wanted: tokens, in_force, what and options of `moeloom.compile`, None for those not given.
    """
    found = plans.read(directory)
    before = None if found is None else found.request
    own = ("tokens", "in_force", "what")
    options = {name: value for name, value in wanted.items() if name not in own and value is not None}
    if before is None:
        if target is None or (model is None) == (shape is None):
            raise TuningError(f"{directory} has no plan yet: give --target, and either a MODEL or a --shape")
        given = None if shape is None else dict(vars(shape))
        path = "config.json" if model is None else _absolute(model)
        tokens = tuple(sorted(set(wanted["tokens"] or plans.TOKENS)))
        in_force, what = tuple(wanted["in_force"] or ()), tuple(wanted["what"] or ())
        return Request(path, target, given, options, tokens, in_force, what)
    asked = {
        "MODEL": (model and _absolute(model), before.model),
        "--shape": (shape and dict(vars(shape)), before.shape),
        "--target": (target, before.target),
        "--tokens": (wanted["tokens"] and tuple(sorted(set(wanted["tokens"]))), before.tokens),
        "--what": (wanted["what"], before.what),
        "--tuning": (wanted["in_force"], before.in_force),
        **{f"--{name.replace('_', '-')}": (value, before.options.get(name)) for name, value in options.items()},
    }
    for name, (now, then) in asked.items():
        if now and json.dumps(now) != json.dumps(then):
            raise TuningError(
                f"{directory} was planned with {name} {then}, not {now}: leave it out, or name another -o"
            )
    return before


def _absolute(model: str) -> str:
    path = Path(model)
    return str(path.absolute()) if path.exists() else model


def tune(
    directory: Path, request: Request, *, only: Step | None = None, budget: Budget, progress: Progress, **load: Any
) -> Tuned:
    """Go on with `directory` until all is done or the budget is over; `load` is as in `moeloom.load`.

    Without `only` this needs the compiler and the device. A run that was interrupted, killed or out of time is gone on
    with by the next one, here or, for another step, elsewhere. Raises TuningError, measuring.WrongNumbers and the
    errors of `moeloom.compile` for the table in force.
    """
    with exclusive(directory):
        journal = Journal(directory / "measurements.jsonl")
        if only in (None, "compile"):
            plan, prepare = _compiler(directory, request, journal, budget, progress, every=only is not None)
        else:
            plan, prepare = _planned(directory), _nothing
        if only in (None, "measure"):
            measuring.measure(directory, plan, journal, budget, progress, prepare, **load)
        if only == "compile":
            return _state(directory, plan, journal, None)
        return _state(directory, plan, journal, record.record(plan, journal, select.select(plan, journal)))


def _nothing(candidate: Candidate) -> None:
    """Where there is no compiler: only what is compiled is measured."""


def _planned(directory: Path) -> Plan:
    plan = plans.read(directory)
    if plan is None:
        raise TuningError(f"{directory} has no plan.json; run moeloom tune MODEL -o {directory} --only compile first")
    return plan


def _compiler(
    directory: Path, request: Request, journal: Journal, budget: Budget, progress: Progress, every: bool
) -> tuple[Plan, Callable[[Candidate], None]]:
    """The plan, and what compiles a candidate; with `every` all of them, and the winners so far as one."""
    from moeloom.tuning.variants import Variants

    if request.shape is not None:
        write_json(directory / "config.json", Shape(**request.shape).config())
    variants = Variants(directory, request, progress)
    plan = variants.plan()

    def prepare(candidate: Candidate) -> None:
        variants.make(candidate, journal)

    if every:
        whole = select.together(select.winners(plan, journal))
        wanted = [*plan.candidates, *([] if whole is None else [whole])]
        for done, candidate in enumerate(wanted):
            progress("variants", done, len(wanted))
            if budget.over:
                break
            prepare(candidate)
        else:
            progress("variants", len(wanted), len(wanted))
    return plan, prepare


def _state(directory: Path, plan: Plan, journal: Journal, table: dict[str, Any] | None) -> Tuned:
    whole = select.together(select.winners(plan, journal))
    names = [one.name for one in (*plan.candidates, *([] if whole is None else [whole]))]
    compiled = sum(bool(plans.artifact(directory, name).exists() or journal.refused(name)) for name in names)
    unfinished = len(select.select(plan, journal).unfinished)
    path = None if table is None else record.write(directory, table)
    return Tuned(path, table, len(names), compiled, unfinished)
