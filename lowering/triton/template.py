"""What a kernel template is: a Triton function, and how a kernel's params become its arguments and constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Params = Mapping[str, Any]
"""The params of a kernel.define (docs/program.md)."""

POINTERS = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32", "f4E2M1FN": "*u8"}
"""Triton's pointer types by MLIR's names of elements."""
OPTIONAL = ("num_tokens", "expert_map")
"""What a caller may give with the ids and weights of slots: one number, and one an expert."""


@dataclass(frozen=True)
class Template:
    """A `@triton.jit` or `@gluon.jit` function and its binding.

    `arguments(params)` lists (parameter, Triton type) of what is passed at a launch, in the order of the ABI: operands,
    a stride right after its pointer, then results. `constants(params)` gives every other parameter of the function
    except `M` and `TARGET`; an operand that is absent is None there. `TARGET` is the architecture's name ("gfx950",
    "gfx942", "sm_90"), "" under the interpreter. `by_element` names the arguments that are read an element at a time:
    of all others' addresses the code assumes that they are multiples of `ALIGNED` bytes. A param `maxnreg` caps the
    registers of a thread; `waves` is how many of them a SIMD shall hold.
    """

    function: Any
    arguments: Callable[[Params], list[tuple[str, str]]]
    constants: Callable[[Params], dict[str, Any]]
    by_element: tuple[str, ...] = OPTIONAL
