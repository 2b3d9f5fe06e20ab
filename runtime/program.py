"""The program of a manifest (docs/program.md): parsed, checked for sense, and sized for a number of tokens M."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.sizes import OPERATORS, Expr, evaluate

BYTE_DTYPES = ("float4_e2m1fn_x2", "float8_e8m0fnu")
"""dtypes that travel as torch.uint8."""


def _check_size(size: Any) -> None:
    if isinstance(size, list) and len(size) >= 3 and size[0] in OPERATORS and (len(size) == 3 or size[0] == "min"):
        for operand in size[1:]:
            _check_size(operand)
    elif size != "M" and (not isinstance(size, int) or isinstance(size, bool)):
        raise ValueError(f"{size!r} is no size")


@dataclass(frozen=True)
class Shaped:
    """A tensor: dtype (torch's name), shape in M."""

    dtype: str
    shape: tuple[Expr, ...]

    @property
    def storage(self) -> torch.dtype:
        """The torch dtype its bytes are kept in."""
        return torch.uint8 if self.dtype in BYTE_DTYPES else getattr(torch, self.dtype)

    def at(self, m: int) -> tuple[int, ...]:
        return tuple(evaluate(size, m) for size in self.shape)

    def __str__(self) -> str:
        sizes = (str(size) if isinstance(size, int) else "?" for size in self.shape)
        return f"{self.dtype} ({', '.join(sizes)})"


@dataclass(frozen=True)
class Input:
    name: str
    value: int
    tensor: Shaped
    optional: bool
    strided: bool


@dataclass(frozen=True)
class Weight:
    name: str
    value: int
    tensor: Shaped
    pack: Mapping[str, Any] | None


@dataclass(frozen=True)
class Output:
    value: int
    tensor: Shaped


@dataclass(frozen=True)
class Value:
    """An intermediate tensor; without a slot it is a view that ATen makes."""

    tensor: Shaped
    slot: int | None


@dataclass(frozen=True)
class Launch:
    kernel: str
    op: str
    operands: tuple[int, ...]
    strided: frozenset[int]
    results: tuple[int, ...]
    tiles: Expr


@dataclass(frozen=True)
class Aten:
    op: str
    args: tuple[Any, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Alternatives:
    """`first` up to `max_m` tokens, else `second`; `choice` is what they differ in: "fusion", "linear", "sort",
    "prologue", "routing" or "tokens"."""

    choice: str
    max_m: int
    reason: str
    first: tuple["Step", ...]
    second: tuple["Step", ...]


Step = Launch | Aten | Alternatives


@dataclass(frozen=True)
class Program:
    """One function of the artifact. `inputs`, `weights`, `outputs` and `values` name tensors by number; `exchanges` are
    the values that are the executable's exchange, and how many of its words each has."""

    name: str
    inputs: tuple[Input, ...]
    weights: tuple[Weight, ...]
    exchanges: Mapping[int, int]
    outputs: tuple[Output, ...]
    values: Mapping[int, Value]
    slots: int
    steps: tuple[Step, ...]

    def chosen(self, m: int) -> Iterator[Launch | Aten]:
        """The steps that run at M = `m`, alternatives resolved."""
        yield from _chosen(self.steps, m)

    def slot_bytes(self, max_m: int) -> list[int]:
        """Size of each slot in bytes, large enough for every M up to `max_m`."""
        sizes = [0] * self.slots
        ranges = {v: max_m for v in self.values}
        _bound(self.steps, max_m, ranges, set())
        for number, value in self.values.items():
            if value.slot is not None:
                elements = torch.Size(value.tensor.at(ranges[number])).numel()
                sizes[value.slot] = max(sizes[value.slot], elements * value.tensor.storage.itemsize)
        return sizes


def _chosen(steps: Sequence[Step], m: int) -> Iterator[Launch | Aten]:
    for step in steps:
        if isinstance(step, Alternatives):
            yield from _chosen(step.first if m <= step.max_m else step.second, m)
        else:
            yield step


def _bound(steps: Sequence[Step], max_m: int, ranges: dict[int, int], seen: set[int]) -> None:
    """The largest M at which each value is made: values only the first branch makes end at its guard."""
    for step in steps:
        if isinstance(step, Alternatives):
            _bound(step.first, min(max_m, step.max_m), ranges, seen)
            _bound(step.second, max_m, ranges, seen)
            continue
        for result in step.results:
            if result in ranges:
                ranges[result] = max(ranges[result], max_m) if result in seen else max_m
                seen.add(result)


def parse(name: str, raw: Mapping[str, Any], kernels: Mapping[str, Any]) -> Program:
    """The program `raw` of a manifest; ArtifactError where it makes no sense."""
    try:
        program = Program(
            name,
            tuple(Input(i["name"], i["value"], _shaped(i), i["optional"], i["strided"]) for i in raw["inputs"]),
            tuple(Weight(w["name"], w["value"], _shaped(w), w.get("pack")) for w in raw["weights"]),
            {int(e["value"]): int(e["words"]) for e in raw.get("exchanges", ())},
            tuple(Output(o["value"], _shaped(o)) for o in raw["outputs"]),
            {int(number): Value(_shaped(v), v["slot"]) for number, v in raw["values"].items()},
            raw["slots"],
            tuple(_step(step) for step in raw["steps"]),
        )
        for value in program.values.values():
            if value.slot is not None and not 0 <= value.slot < program.slots:
                raise ValueError(f"slot {value.slot} of {program.slots}")
        known = {i.value for i in program.inputs} | {w.value for w in program.weights} | {*program.exchanges}
        made = _check_steps(program, program.steps, known, kernels)
        missing = [output.value for output in program.outputs if output.value not in made]
        if missing:
            raise ValueError(f"nothing makes output value {missing[0]}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is malformed: {error}"
        raise ArtifactError(f"the manifest's program {name!r} {what}; compile the model again") from None
    return program


def _shaped(raw: Mapping[str, Any]) -> Shaped:
    for size in raw["shape"]:
        _check_size(size)
    shaped = Shaped(raw["dtype"], tuple(raw["shape"]))
    if not isinstance(shaped.storage, torch.dtype):
        raise ValueError(f"{raw['dtype']!r} is no dtype")
    return shaped


def _step(raw: Mapping[str, Any]) -> Step:
    if "launch" in raw:
        _check_size(raw["tiles"])
        strided = frozenset(raw["strided"])
        return Launch(
            raw["launch"], raw.get("op", ""), tuple(raw["operands"]), strided, tuple(raw["results"]), raw["tiles"]
        )
    if "aten" in raw:
        return Aten(raw["aten"], tuple(raw["args"]), tuple(raw["results"]))
    guard = raw["alternatives"]
    first, second = (tuple(_step(step) for step in raw[branch]) for branch in ("first", "second"))
    return Alternatives(guard["choice"], int(guard["max_m"]), guard["reason"], first, second)


def _check_steps(program: Program, steps: Sequence[Step], known: set[int], kernels: Mapping[str, Any]) -> set[int]:
    """Every step reads values made before it; kernels exist. Returns the values known afterwards."""
    known = set(known)
    outputs = {output.value for output in program.outputs}
    for step in steps:
        if isinstance(step, Alternatives):
            branches = [_check_steps(program, branch, known, kernels) for branch in (step.first, step.second)]
            known = branches[0] & branches[1]
            continue
        if isinstance(step, Launch):
            reads = set(step.operands)
            if step.kernel not in kernels:
                raise ValueError(f"no kernel {step.kernel!r}")
            for result in step.results:
                if result not in outputs and (result not in program.values or program.values[result].slot is None):
                    raise ValueError(f"result {result} of {step.kernel!r} has no slot")
        else:
            reads = set(_values(step.args))
        if not reads <= known:
            raise ValueError(f"a step reads value {min(reads - known)} before it is made")
        known |= set(step.results)
    return known


def _values(args: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    for arg in args:
        if "value" in arg:
            yield arg["value"]
        elif "list" in arg:
            yield from _values(arg["list"])
