"""`moeloom.compile`: a model becomes an artifact. Import, run the pipeline of each target, build, pack, write.

What needs torch is imported where it is needed: kernels that are ordered ahead are under way by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch_mlir import ir

from moeloom import ahead, dialects
from moeloom.import_cache import is_kept
from moeloom.lowering import emit
from moeloom.lowering.build import write_code
from moeloom.lowering.cache import default_folder, opened
from moeloom.lowering.pipeline import Options, layout_of, phases
from moeloom.lowering.targets import target
from moeloom.lowering.workers import Workers
from moeloom.model_config import ModelError, read_config
from moeloom.passes import pipeline
from moeloom.passes.report import Record, Report
from moeloom.tuning.table import Given, by_target
from moeloom.version import VERSION

if TYPE_CHECKING:
    from torch import nn

    from moeloom.torch_import import ImportedModule

Progress = Callable[[str, int, int], None]
SCOPES = ("moe",)
WEIGHTS = ("copy", "reference", "random", "none")
LAYOUTS = ("auto", "row_major", "stream")
STAGES: dict[str, Literal[0, 1, 2]] = {"auto": 0, "1": 1, "2": 2}


class CompileRefused(Exception):
    """The model or the options do not make an artifact. One line: what was found, what was wanted, what to do."""


@dataclass
class CompileReport:
    """What was compiled and decided. `records` are the match report's, an entry each; `seconds` by phase."""

    path: Path
    entries: list[str]
    records: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def fused(self) -> int:
        """Fused sites of all MoE blocks (every layer counts; `.experts` entries are not counted again)."""
        return sum(int(record["sites"]) for record in self.records if record["decision"] == "fused")


def compile(
    model: str | Path | nn.Module | ImportedModule,
    output: str | Path,
    *,
    targets: Sequence[str] = ("cpu",),
    scope: str = "moe",
    activations: Literal["mxfp4", "bf16"] = "mxfp4",
    stages: Literal["auto", 1, 2] = "auto",
    fusion: Literal["auto", "fused", "split"] = "auto",
    scale_mode: Literal["even", "rceil", "floor", "ceil"] = "even",
    quantize_weights: Literal["mxfp4"] | None = None,
    weights: Literal["copy", "reference", "random", "none"] = "copy",
    weight_layout: Literal["auto", "row_major", "stream"] = "auto",
    seed: int = 0,
    tuning: Given | Sequence[Given] = (),
    require_fusion: int = 0,
    dump_phases: str | Path | None = None,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile `model` to the artifact directory `output`.

    model: a checkpoint directory (config.json and safetensors), a config.json alone (with weights="none" or "random"),
    a module, a Python "module:factory", an .mlir file, or what import_torch made. activations: "mxfp4" quantises what
    each product reads (A4), "bf16" does not (A16). stages: one launch for both products or two; "auto" is the target's
    choice. fusion: "auto" switches from the fused to the split quantiser at the target's threshold, the others force
    one.
    quantize_weights="mxfp4" quantises bf16 expert weights by `scale_mode`. weights: "copy" packs them into the
    artifact; "reference" packs them at load from the checkpoint directory where it lies now; "random" makes them at
    load from `seed`, the same on every device; "none" leaves them out.
    weight_layout: how a GPU target lays expert weights out; "auto" is the layout that was measured to be its fastest,
    "row_major" that of the checkpoint, which holds any scale, "stream" that of its decode kernels, where it has any.
    tuning: tables that `moeloom tune` wrote, one a target at most; their rows stand before the target's own.
    require_fusion: refuse unless that many sites were fused. dump_phases: a folder for the IR after each phase.
    cache: where imports and code are kept between compilations, 2 GiB at most (default: $MOELOOM_CACHE, else
    `moeloom/objects` in $XDG_CACHE_HOME or ~/.cache).

    Raises an error of one line, and writes nothing, where the model, an option or the machine does not fit.
    """
    _one_of("scope", scope, SCOPES)
    _one_of("weights", weights, WEIGHTS)
    _one_of("weight_layout", weight_layout, LAYOUTS)
    _one_of("stages", str(stages), tuple(STAGES))
    _one_of("quantize_weights", quantize_weights or "none", ("none", "mxfp4"))
    options = Options(
        activations=activations,  # the passes check the words
        stages=STAGES[str(stages)],
        fusion=fusion,
        scale_mode=scale_mode,
        quantize_weights=quantize_weights or "",
        weight_layout=weight_layout,
    )
    names = list(dict.fromkeys(targets))
    rows = [target(name) for name in names]
    tables = by_target(tuning, names)
    rows = [tables[row.name].applied() if row.name in tables else row for row in rows]
    folder = opened(Path(cache or default_folder()))
    job = _Job(progress or (lambda phase, done, total: None))
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(folder))
        with job.phase("import"):
            config = _config_of(model)
            if config is not None and not is_kept(config, activations, folder):
                ahead.order(config, options, rows, workers)

            from moeloom.runtime.artifact import ArtifactWriter
            from moeloom.torch_import import ImportedModule, import_torch
            from moeloom.weight_files import WeightFiles

            artifact = stack.enter_context(ArtifactWriter(Path(output), overwrite=overwrite))
            imported = (
                model
                if isinstance(model, ImportedModule)
                else import_torch(model, activations=activations, cache=folder)
            )
        if weights == "copy" and imported.weights is None and imported.needs_weights:
            raise CompileRefused(
                f"{model} has no weights; give a checkpoint directory, or compile with --weights random or none"
            )
        report = CompileReport(Path(output), [], seconds=job.seconds)
        manifest: dict[str, Any] = {"targets": {}, "model": imported.config, **_origin(weights, seed, imported)}
        copied = imported.weights if weights == "copy" else None
        files = None if copied is None else WeightFiles(artifact, copied, job.step("weights"))
        for row in rows:
            module = _clone(imported.module)
            records = _run(job, module, phases(options, row), dump_phases, row.name)
            manifest["entries"] = emit.entries(module)
            report.entries = list(manifest["entries"])
            report.records = _by_block(records, manifest["entries"])
            if report.fused < require_fusion:
                raise CompileRefused(_too_few(report, require_fusion))
            with module.context:
                programs = {name: emit.program(function) for name, function in emit.programs_of(module).items()}
                kernels = emit.kernels(module)
            with job.phase(f"kernels {row.name}") as step:
                code = write_code(row, kernels, programs, artifact.directory / "kernels", workers, step)
            packed = {}
            if files is not None:
                with job.phase("weights"):
                    packed = files.write(manifest["entries"], programs, layout_of(options, row))
            manifest["targets"][row.name] = code | {"programs": programs, "weights": packed}
            if row.name in tables:
                manifest["targets"][row.name]["tuning"] = tables[row.name].manifest()
                if row.tiles:
                    tables[row.name].mark(code["kernels"])
        manifest |= {
            "compiler": VERSION,
            "tools": {tool: version(tool.replace("_", "-")) for tool in ("torch", "torch_mlir", "triton")},
            "options": {
                **{"activations": activations, "stages": str(stages), "fusion": fusion, "scale_mode": scale_mode},
                **{"quantize_weights": quantize_weights or "none", "scope": scope, "weights": weights},
            },
            "report": report.records,
        }
        artifact.manifest = manifest
    return report


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise CompileRefused(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _config_of(model: object) -> Mapping[str, Any] | None:
    """The config.json that a model is, or has in its directory; None where there is none that can be read."""
    if not isinstance(model, str | Path):
        return None
    path = Path(model, "config.json") if Path(model).is_dir() else Path(model)
    if path.suffix != ".json" or not path.is_file():
        return None
    with suppress(ModelError):  # the import tells
        return read_config(path)
    return None


def _origin(weights: str, seed: int, imported: ImportedModule) -> dict[str, Any]:
    """The manifest's `sources`, and its `checkpoint` where the weights are made or packed at load."""
    functions = emit.programs_of(imported.module)
    sources = {"sources": {name: emit.declared_weights(function) for name, function in functions.items()}}
    if weights == "random":
        return sources | {"checkpoint": {"random": {"seed": seed}}}
    if weights != "reference":
        return sources
    checkpoint = imported.checkpoint
    if checkpoint is None:
        raise CompileRefused("--weights reference needs a checkpoint directory to refer to; this model has none")
    directory = str(checkpoint.directory.absolute())
    return sources | {"checkpoint": {"reference": {"directory": directory, "files": checkpoint.sizes()}}}


class _Job:
    """Times the phases and passes progress on."""

    def __init__(self, progress: Progress):
        self.progress, self.seconds = progress, dict[str, float]()

    def step(self, phase: str) -> Callable[[int, int], None]:
        """Progress within a phase."""
        return lambda done, total: self.progress(phase, done, total)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int, int], None]]:
        self.progress(name, 0, 1)
        start = time.perf_counter()
        yield self.step(name)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.progress(name, 1, 1)


def _clone(module: ir.Module) -> ir.Module:
    """A copy for one target, in the same context."""
    with module.context, ir.Location.unknown():
        return ir.Module.parse(module.operation.get_asm(enable_debug_info=True))


def _run(job: _Job, module: ir.Module, steps: list, dump: str | Path | None, name: str) -> list[Record]:
    """Run the phases on `module`, dumping it after each one where asked."""
    report = Report()
    dialects.load(module.context)
    if dump is not None:
        _write_ir(Path(dump), f"{name}.00-import.mlir", module)
    for number, (phase, passes) in enumerate(steps, 1):
        with job.phase(phase):
            pipeline.run(module, passes, report)
        if dump is not None:
            _write_ir(Path(dump), f"{name}.{number:02}-{phase}.mlir", module)
    return report.records


def _write_ir(folder: Path, name: str, module: ir.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(str(module))


def _by_block(records: Sequence[Record], entries: dict[str, dict]) -> list[dict[str, str]]:
    """The records of programs that are whole entries, with the first entry and how many layers they stand for."""
    found: list[dict[str, str]] = []
    for record in records:
        users = [name for name, entry in entries.items() if entry["program"] == record.function]
        if not users or record.function.endswith((".experts", ".experts_prequantised")):
            continue
        row = {
            "entry": users[0],
            "sites": str(len(users)),
            "site": record.site,
            "decision": record.decision,
            "reason": record.reason,
            "location": record.location,
        }
        # A target with a plan for few tokens and one for many decides each site twice, alike.
        if row not in found:
            found.append(row)
    return found


def _too_few(report: CompileReport, wanted: int) -> str:
    refused = [f"{r['entry']} {r['site']}: {r['reason']}" for r in report.records if r["decision"] == "refused"]
    why = f"; refused: {'; '.join(refused[:3])}" if refused else ""
    return f"{report.fused} quant + scale sort sites were fused, --require-fusion wants {wanted}{why}"
