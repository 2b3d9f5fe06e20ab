"""Makes the plan of a directory and compiles its variants. Needs the compiler, and no device."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moeloom import switches
from moeloom.compiler import CompileReport, compile
from moeloom.lowering.jobs import CompileError
from moeloom.lowering.packing import Layout
from moeloom.lowering.pipeline import Options, layout_of
from moeloom.lowering.settings import Setting, SettingError, in_force
from moeloom.lowering.targets import Target
from moeloom.lowering.triton.tiles import FACTS, TILE_OF, facts
from moeloom.lowering.tuning import candidates
from moeloom.passes.base import OptionError, PassError
from moeloom.passes.pipeline import PipelineError
from moeloom.runtime import artifact
from moeloom.runtime.artifact import Manifest
from moeloom.runtime.executable import VARIANTS
from moeloom.runtime.program import Program
from moeloom.torch_import import ImportedModule, import_torch
from moeloom.tuning import plan as plans
from moeloom.tuning.journal import Journal
from moeloom.tuning.plan import IN_FORCE, SEED, Candidate, Plan, Request, Row, Threshold, TuningError
from moeloom.tuning.table import Tuning

LAYERS = 4
"""Layers that take turns when they are timed, at most."""
REFUSALS = (CompileError, PassError, PipelineError, OptionError, SettingError)
Progress = Callable[[str, int, int], None]


class Variants:
    """Compiles variants of one request; the model is imported once."""

    def __init__(self, directory: Path, request: Request, progress: Progress):
        self.directory, self.request, self.progress = directory, request, progress
        self._imported: ImportedModule | None = None
        self._own = [Setting(**row) for row in request.in_force]
        self._spills: set[str] | None = None

    def plan(self) -> Plan:
        """The plan of the directory, written beside the table in force, both made where they are missing."""
        found = plans.read(self.directory)
        if found is not None:
            return found
        self._compile(IN_FORCE, ())
        manifest = artifact.read(plans.artifact(self.directory, IN_FORCE))
        found = make_plan(self.request, manifest, self._tuning(()).applied())
        found.write(self.directory)
        return found

    def make(self, candidate: Candidate, journal: Journal) -> None:
        """Compile a candidate, once; one that does not compile, or spills where that in force does not, is refused."""
        path = plans.artifact(self.directory, candidate.name)
        if path.exists() or journal.refused(candidate.name):
            return
        try:
            self._compile(candidate.name, candidate.rows)
        except REFUSALS as error:
            journal.append("refused", trial=candidate.name, reason=" ".join(str(error).split()))
            return
        spilling = _spilling(artifact.read(path, "fast"), self.request.target) - self._spilling_now()
        if spilling:
            shutil.rmtree(path)
            journal.append("refused", trial=candidate.name, reason=f"{', '.join(sorted(spilling))} spills registers")

    def _spilling_now(self) -> set[str]:
        if self._spills is None:
            manifest = artifact.read(plans.artifact(self.directory, IN_FORCE), "fast")
            self._spills = _spilling(manifest, self.request.target)
        return self._spills

    def _tuning(self, rows: Sequence[Row]) -> Tuning:
        settings = [Setting(row.what, row.when, row.params) for row in rows]
        return Tuning(self.request.target, (*settings, *self._own), {"file": "moeloom tune"})

    def _compile(self, name: str, rows: Sequence[Row]) -> CompileReport:
        path = plans.artifact(self.directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = dict(self.request.options)
        if self._imported is None:
            self.progress("import", 0, 1)
            own = self.request.shape is not None  # the config.json that travels with the directory
            model = self.directory / "config.json" if own else self.request.model
            self._imported = import_torch(model, activations=options.get("activations", "mxfp4"))
            self.progress("import", 1, 1)
        targets, tuning = (self.request.target,), self._tuning(rows)
        return compile(
            self._imported, path, targets=targets, weights="random", seed=SEED, tuning=tuning, overwrite=True, **options
        )


def _spilling(manifest: Manifest, target: str) -> set[str]:
    """The templates of which some code spills registers, those of products by their sort blocks."""
    kernels = manifest.targets[target].kernels.values()
    spilling = [k for k in kernels if k.get("code", {}).get("spills")]
    blocks = (k["params"].get("block") for k in spilling)
    return {k["template"] + (f" of {b} rows" if b else "") for k, b in zip(spilling, blocks, strict=True)}


def make_plan(request: Request, manifest: Manifest, target: Target) -> Plan:
    """What can be tried of the layer that `manifest`, compiled with the table in force, has most of."""
    blocks = [name for name in manifest.entries if not name.endswith(VARIANTS)]
    programs = [manifest.entries[name].program for name in blocks]
    if not programs:
        raise TuningError(f"{request.model} has no MoE block; there is nothing to tune")
    commonest = max(programs, key=programs.count)
    entries = [name for name in blocks if manifest.entries[name].program == commonest]
    program, kernels = manifest.targets[target.name].programs[commonest], manifest.targets[target.name].kernels
    launched = {launch.kernel: kernels[launch.kernel] for launch in switches.launches(program.steps)}
    layout = layout_of(Options(**_pipeline_options(request.options)), target)
    tried = []
    for setting in _settings(target, layout, launched):
        before = in_force(target, setting.what, setting.when)
        for candidate in candidates(target, setting):
            row = Row(candidate.what, dict(candidate.when), dict(candidate.params), before)
            tried.append(Candidate(_name(row), (row,)))
    thresholds = list(_thresholds(target, layout, program, launched))
    known = {setting.what for setting in _settings(target, layout, launched)} | {one.row.what for one in thresholds}
    if not set(request.what) <= known:
        raise TuningError(
            f"--what names {', '.join(sorted(set(request.what) - known))}; the layer has {', '.join(sorted(known))}"
        )
    if request.what:
        tried = [one for one in tried if one.rows[0].what in request.what]
        thresholds = [one for one in thresholds if one.row.what in request.what]
    return Plan(request, tuple(entries[:LAYERS]), tuple(tried), tuple(thresholds), manifest.raw["tools"])


def _pipeline_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say which layout weights have."""
    stages = options.get("stages", "auto")
    return {"stages": 0 if stages == "auto" else stages, "weight_layout": options.get("weight_layout", "auto")}


def _settings(target: Target, layout: Layout, kernels: Mapping[str, Mapping[str, Any]]) -> Iterator[Setting]:
    """What the layer's launches depend on: plans, and on a GPU a tile for each kernel, told apart by its facts."""
    for number in range(len(target.layouts[layout])):
        yield Setting("plan", {"layout": layout, "number": number})
    if target.prefill is not None and target.prefill in target.plans(layout):
        yield Setting("prefill", {})
    found = []
    for kernel in kernels.values() if target.tiles else ():
        template = TILE_OF.get(kernel["template"], kernel["template"])
        setting = Setting(template, facts(template, kernel["params"]) if template in FACTS else {})
        if template in FACTS and setting not in found:
            found.append(setting)
    yield from found


def _thresholds(
    target: Target, layout: Layout, program: Program, kernels: Mapping[str, Mapping[str, Any]]
) -> Iterator[Threshold]:
    """The numbers that the program's alternatives compare M with."""
    choices = {step.choice for step in switches.alternatives(program.steps)}
    params = [kernel["params"] for kernel in kernels.values()]
    topk = next((own["topk"] for own in params if "topk" in own), 1)
    experts = next((own["experts"] for own in params if "experts" in own), 1)
    stages: dict[int, tuple[int, ...]] = {2: (1, 2)} if topk == 1 else {1: (1,), 2: (2,)}
    wanted: list[tuple[str, dict[str, Any], str, tuple[int, ...], int, int]] = [
        ("fusion", {"stage": stage}, "rows", own, 1, topk) for stage, own in stages.items()
    ]
    wanted += [(what, {}, "tokens", (), 1, 1) for what in ("linear", "sort", "prologue")]
    wanted += [
        ("plan", {"layout": layout, "number": number}, "rows", (), experts, topk)
        for number in range(len(target.layouts[layout]))
    ]
    for what, when, param, own, numerator, denominator in wanted:
        choice = "tokens" if what == "plan" else what
        if choice not in choices:
            continue
        before = in_force(target, what, when)
        row = Row(what, when, before, before)
        yield Threshold(f"{_facts(what, when)}.{param}", row, param, choice, own, numerator, denominator)


def _facts(what: str, when: Mapping[str, Any]) -> str:
    parts = [name if value is True else f"{name}-{value}" for name, value in when.items() if value is not False]
    return ".".join([what, *parts])


def _name(row: Row) -> str:
    """A file name: gate_up.block-64.stream.block_n-128."""
    return ".".join([_facts(row.what, row.when), *(f"{name}-{value}" for name, value in row.changes.items())])
