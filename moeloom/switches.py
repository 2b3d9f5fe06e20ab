"""The alternatives of a program, and the same artifact with one of their sides forced."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Alternatives, Launch, Step

Side = Literal["first", "second"]
SIDES: tuple[Side, Side] = ("first", "second")
Wanted = Callable[[Alternatives], bool]


def forced(executable: Executable, which: Side, wanted: Wanted) -> Executable:
    """The same artifact on the same weights, always taking side `which` of the alternatives `wanted`, whatever M."""
    target = executable.target
    programs = {name: replace(p, steps=force(p.steps, which, wanted)) for name, p in target.programs.items()}
    changed = replace(target, programs=programs)
    return Executable(executable.manifest, changed, executable.device, executable.weights)


def force(steps: Sequence[Step], which: Side, wanted: Wanted) -> tuple[Step, ...]:
    """`steps` with one side in the place of every wanted alternative."""
    taken: list[Step] = []
    for step in steps:
        if not isinstance(step, Alternatives):
            taken.append(step)
        elif wanted(step):
            taken += force(getattr(step, which), which, wanted)
        else:
            first, second = force(step.first, which, wanted), force(step.second, which, wanted)
            taken.append(replace(step, first=first, second=second))
    return tuple(taken)


def alternatives(steps: Sequence[Step]) -> Iterator[Alternatives]:
    """Every alternative, those within others too."""
    for step in steps:
        if isinstance(step, Alternatives):
            yield step
            yield from alternatives((*step.first, *step.second))


def launches(steps: Sequence[Step]) -> Iterator[Launch]:
    """Every launch, of both sides of each alternative."""
    for step in steps:
        if isinstance(step, Alternatives):
            yield from launches((*step.first, *step.second))
        elif isinstance(step, Launch):
            yield step
