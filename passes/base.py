"""What every pass is: a dataclass with a name, options as fields, and `run`.

    @dataclass
    class FuseQuantSort(Pass, name="moe-fuse-quant-sort"):
        \"\"\"Help text: what the pass rewrites.\"\"\"
        stages: Literal[1, 2] = 2

        def run(self, module: ir.Operation, report: Report) -> None: ...

Defining the class registers it under its name; `passes/__init__.py` imports every pass.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch_mlir import ir

from moeloom.passes.report import Report


class PassError(Exception):
    """A program that a pass cannot take: raised by `run`, reported once at `location` by the pipeline."""

    def __init__(self, where: ir.Operation | ir.OpView | ir.Location, message: str):
        super().__init__(message)
        self.location = where if isinstance(where, ir.Location) else where.location


class OptionError(ValueError):
    """A pass name, an option or a value that does not exist; the message is one line with the way out."""


@dataclass
class Pass(ABC):
    """A rewrite of a whole module. Subclasses are dataclasses: a field is an option of the pipeline text."""

    name: ClassVar[str]
    registry: ClassVar[dict[str, type["Pass"]]] = {}

    def __init_subclass__(cls, *, name: str, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.name = name
        Pass.registry[name] = cls

    def __post_init__(self) -> None:
        for option, kind in self.options().items():
            check(self.name, option, kind, getattr(self, option))

    @abstractmethod
    def run(self, module: ir.Operation, report: Report) -> None:
        """Rewrite `module` (a builtin.module) in place; decisions go to `report`. PassError where it cannot."""

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The type of each option by name: int, str, bool or a Literal of those."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def from_text(cls, values: dict[str, str]) -> "Pass":
        """The pass with options as a pipeline text spells them; OptionError for one it does not take."""
        kinds = cls.options()
        parsed = {}
        for option, text in values.items():
            if option not in kinds:
                known = ", ".join(kinds) or "none"
                raise OptionError(f"'{cls.name}' has no option '{option}'; its options are: {known}")
            parsed[option] = convert(cls.name, option, kinds[option], text)
        return cls(**parsed)

    def __str__(self) -> str:
        values = " ".join(f"{option}={text(getattr(self, option))}" for option in self.options())
        return f"{self.name}{{{values}}}" if values else self.name


def convert(owner: str, option: str, kind: Any, value: str) -> Any:
    """The value that `value` spells for an option of type `kind`; OptionError where it spells none."""
    for allowed in allowed_values(kind):
        if value == text(allowed):
            return allowed
    if kind is int and value.lstrip("-").isdigit():
        return int(value)
    if kind is str:
        return value
    raise OptionError(f"'{owner}' option {option} is '{value}'; it must be {wanted(kind)}")


def check(owner: str, option: str, kind: Any, value: Any) -> None:
    """OptionError unless `value` is one that an option of type `kind` takes."""
    allowed = allowed_values(kind)
    # True equals 1, but is no number of stages.
    known = any(type(value) is type(one) and value == one for one in allowed)
    if not (known if allowed else type(value) is kind):
        raise OptionError(f"'{owner}' option {option} is {text(value)!r}; it must be {wanted(kind)}")


def allowed_values(kind: Any) -> tuple:
    """The values of an option that has finitely many, else nothing."""
    if kind is bool:
        return (True, False)
    return get_args(kind) if get_origin(kind) is Literal else ()


def wanted(kind: Any) -> str:
    """How an option of type `kind` may be spelt, for messages and pages."""
    return " or ".join(map(text, allowed_values(kind))) or {int: "a whole number", str: "a word"}[kind]


def text(value: Any) -> str:
    """An option's value as a pipeline text spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
