"""Pipelines: our passes (objects) and upstream's (by name) in a list, or the text of one; one pass manager runs all.

report = run(module, [PlanExperts(stages=1), FuseQuantSort(), "canonicalize"])
report = run(module, "moe-plan-experts{stages=1},moe-fuse-quant-sort,func.func(canonicalize)")
"""

import difflib
from collections.abc import Callable, Iterable, Sequence

from torch_mlir import ir
from torch_mlir.passmanager import PassManager

from moeloom.passes.base import OptionError, Pass, PassError
from moeloom.passes.diagnostics import Diagnostic, collected
from moeloom.passes.report import Report

Step = Pass | str

# Upstream passes that a pipeline of ours may want; only to suggest a spelling, any registered pass is taken.
UPSTREAM = ("canonicalize", "cse", "symbol-dce", "inline", "sccp", "strip-debuginfo", "print-ir")


class PipelineError(Exception):
    """A pass failed, or left invalid IR. `diagnostics` says where and why; the message is its first error."""

    def __init__(self, diagnostics: list[Diagnostic]):
        errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity == "error"]
        super().__init__(str(errors[0]) if errors else "the pass pipeline failed without saying why")
        self.diagnostics = diagnostics


def run(
    module: ir.Module | ir.Operation,
    pipeline: str | Sequence[Step],
    report: Report | None = None,
    configure: Callable[[PassManager], None] | None = None,
) -> Report:
    """Run `pipeline` on `module` in place and return the report, `report` itself where one is given.

    `configure` may set up the pass manager (IR printing, timing) before it runs. Raises OptionError where the
    pipeline names no such pass or option (nothing has run then), PipelineError where a pass fails.
    """
    operation = module.operation
    report = Report() if report is None else report
    with operation.context, collected(operation.context) as diagnostics:
        raised: list[Exception] = []
        manager = build(parse(pipeline) if isinstance(pipeline, str) else pipeline, report, raised)
        if configure is not None:
            configure(manager)
        try:
            manager.run(operation)
        except ir.MLIRError as error:
            raise PipelineError(list(diagnostics)) from next(iter(raised), error)
    return report


def build(steps: Iterable[Step], report: Report, raised: list[Exception]) -> PassManager:
    """A pass manager of `steps` in the current context; ours write to `report`, and what they raise to `raised`."""
    manager = PassManager.parse("builtin.module()")
    for step in steps:
        if isinstance(step, Pass):
            manager.add(_callable(step, report, raised), type(step).__name__, step.name, type(step).__doc__ or "")
            continue
        try:
            manager.add(step)
        except ValueError as error:
            raise OptionError(_upstream_reason(step, str(error))) from None
    return manager


def _callable(step: Pass, report: Report, raised: list[Exception]) -> Callable:
    """The pass as MLIR calls it: exceptions become one located error here, and nowhere else."""

    def run_step(op: ir.Operation, external) -> None:
        try:
            with ir.Location.unknown():
                step.run(op, report)
        except PassError as error:
            raised.append(error)
            error.location.emit_error(str(error))
            external.signal_pass_failure()
        except Exception as error:
            raised.append(error)
            op.location.emit_error(f"'{step.name}' broke ({type(error).__name__}: {error}); this is a bug in the pass")
            external.signal_pass_failure()

    return run_step


def _upstream_reason(step: str, message: str) -> str:
    """MLIR's complaint about an element, as one line."""
    name = step.partition("{")[0].strip()
    if "does not refer to a registered pass" in message and "(" not in step:
        near = difflib.get_close_matches(name, [*Pass.registry, *UPSTREAM], n=1)
        hint = f"did you mean {near[0]}?" if near else "`moeloom-opt --list-passes` lists ours"
        return f"there is no pass '{name}'; {hint}"
    inner = [ours for ours in Pass.registry if ours in step]
    if inner:
        return f"'{inner[0]}' runs on the whole module; write it outside '{step}'"
    return f"pipeline element '{step}': {' '.join(message.split())}"


def parse(text: str) -> list[Step]:
    """The steps of a pipeline text, without a `builtin.module(...)` around all; OptionError where malformed."""
    text = text.strip()
    if text.startswith("builtin.module(") and text.endswith(")"):
        text = text[len("builtin.module(") : -1]
    return [_step(element) for element in _split(text, ",")]


def _step(element: str) -> Step:
    name, brace, rest = element.partition("{")
    ours = Pass.registry.get(name.strip())
    if ours is None:
        return element
    if brace and not rest.endswith("}"):
        raise OptionError(f"'{element}' goes on after its options; separate passes by commas")
    values = {}
    for option in _split(rest.removesuffix("}"), " "):
        key, equals, value = option.partition("=")
        if not equals:
            raise OptionError(f"'{name}' option '{option}' has no value; write {option}=VALUE")
        values[key] = value
    return ours.from_text(values)


def _split(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators that no bracket encloses; empty parts are dropped."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        if depth < 0:
            break
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise OptionError(f"brackets do not match in the pipeline '{text}'")
    return [part.strip() for part in parts if part.strip()]
