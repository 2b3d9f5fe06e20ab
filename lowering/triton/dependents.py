"""Where a launch waits for the one before it, on GPUs that start it early (docs/program.md, "Launches that overlap").

A launch may begin as soon as every program of the one before has called `release`. What that one and those before it
wrote can be read behind `wait`. Every program waits, one without work too, and releases behind its wait. So a program
that runs, even before its wait, runs behind the end of everything but the launch before its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .architecture import FIRST_OVERLAPPING


@triton.constexpr_function
def overlaps(target):
    """Whether launches of a TARGET can overlap. Interpreted ones run one after another, without such instructions."""
    if knobs.runtime.interpret or not target.startswith("sm_"):
        return False
    return int(target.removeprefix("sm_")) >= FIRST_OVERLAPPING


@triton.jit
def wait(TARGET: tl.constexpr):
    """Stay until the launches before this one have ended and what they wrote is visible."""
    if overlaps(TARGET):
        gdc_wait()


@triton.jit
def release(TARGET: tl.constexpr):
    """Let the next launch begin, as far as this program is concerned."""
    if overlaps(TARGET):
        gdc_launch_dependents()


@triton.jit
def follow(TARGET: tl.constexpr):
    """`wait` and `release`: how a kernel starts that reads nothing before."""
    wait(TARGET)
    release(TARGET)
