"""`moeloom.compile`: a model becomes an artifact. Import, run the pipeline of each target, build, pack, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch_mlir
from torch_mlir import ir

from moeloom import dialects
from moeloom.checkpoint import WeightSource
from moeloom.lowering import emit
from moeloom.lowering.cpu.build import write_libraries
from moeloom.lowering.pipeline import Options, phases
from moeloom.lowering.targets import target
from moeloom.lowering.workers import default_folder
from moeloom.passes import pipeline
from moeloom.passes.report import Record, Report
from moeloom.runtime import pack
from moeloom.runtime.artifact import ArtifactWriter
from moeloom.torch_import import import_torch
from moeloom.version import VERSION

Progress = Callable[[str, int, int], None]
SCOPES = ("moe",)
WEIGHTS = ("copy", "none")
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
    model: str | Path | torch.nn.Module,
    output: str | Path,
    *,
    targets: Sequence[str] = ("cpu",),
    scope: str = "moe",
    activations: Literal["mxfp4", "bf16"] = "mxfp4",
    stages: Literal["auto", 1, 2] = "auto",
    fusion: Literal["auto", "fused", "split"] = "auto",
    scale_mode: Literal["even", "rceil", "floor", "ceil"] = "even",
    quantize_weights: Literal["mxfp4"] | None = None,
    weights: str = "copy",
    require_fusion: int = 0,
    dump_phases: str | Path | None = None,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile `model` to the artifact directory `output`.

    model: a checkpoint directory (config.json and safetensors), a config.json alone (with weights="none"), a module, a
    Python "module:factory", or an .mlir file. activations: "mxfp4" quantises what each product reads (A4), "bf16" does
    not (A16). stages: one launch for both products or two; "auto" is the target's choice. fusion: "auto" switches from
    the fused to the split quantiser at the target's threshold, the others force one. quantize_weights="mxfp4" quantises
    bf16 expert weights by `scale_mode`. weights: "copy" packs them into the artifact, "none" leaves them out.
    require_fusion: refuse unless that many sites were fused. dump_phases: a folder for the IR after each phase.
    cache: where object files are kept between compilations (default: `.cache/moeloom` in the home directory).

    Raises an error of one line, and writes nothing, where the model, an option or the machine does not fit.
    """
    _one_of("scope", scope, SCOPES)
    _one_of("weights", weights, WEIGHTS)
    _one_of("stages", str(stages), tuple(STAGES))
    _one_of("quantize_weights", quantize_weights or "none", ("none", "mxfp4"))
    options = Options(
        activations=activations,  # the passes check the words
        stages=STAGES[str(stages)],
        fusion=fusion,
        scale_mode=scale_mode,
        quantize_weights=quantize_weights or "",
    )
    names = list(dict.fromkeys(targets))
    rows = [target(name) for name in names]
    job = _Job(progress or (lambda phase, done, total: None))
    with ArtifactWriter(Path(output), overwrite=overwrite) as artifact:
        with job.phase("import"):
            imported = import_torch(model, activations=activations)
        if weights == "copy" and imported.weights is None and imported.needs_weights:
            raise CompileRefused(f"{model} has no weights; give a checkpoint directory, or compile with --weights none")
        report = CompileReport(Path(output), [], seconds=job.seconds)
        manifest: dict[str, Any] = {"targets": {}}
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
            with job.phase("kernels"):
                libraries = write_libraries(
                    kernels, artifact.directory / "kernels", cache or default_folder(), job.step("kernels")
                )
            packed = {}
            if weights == "copy" and imported.weights is not None:
                with job.phase("weights"):
                    packed = _pack(job, manifest["entries"], programs, imported.weights, artifact)
            manifest["targets"][row.name] = {
                "libraries": libraries,
                "kernels": kernels,
                "programs": programs,
                "weights": packed,
            }
        manifest |= {
            "compiler": VERSION,
            "tools": {"torch": torch.__version__, "torch_mlir": _torch_mlir_version()},
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


def _torch_mlir_version() -> str:
    from importlib.metadata import version

    return version(torch_mlir.__name__.replace("_", "-"))


class _Job:
    """Times the phases and passes progress on."""

    def __init__(self, progress: Progress):
        self.progress, self.seconds = progress, dict[str, float]()

    def step(self, phase: str) -> Callable[[int, int], None]:
        """Progress within a phase."""
        return lambda done, total: self.progress(phase, done, total)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 1)
        start = time.perf_counter()
        yield
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
    found = []
    for record in records:
        users = [name for name, entry in entries.items() if entry["program"] == record.function]
        if not users or record.function.endswith((".experts", ".experts_prequantised")):
            continue
        found.append(
            {
                "entry": users[0],
                "sites": str(len(users)),
                "site": record.site,
                "decision": record.decision,
                "reason": record.reason,
                "location": record.location,
            }
        )
    return found


def _too_few(report: CompileReport, wanted: int) -> str:
    refused = [f"{r['entry']} {r['site']}: {r['reason']}" for r in report.records if r["decision"] == "refused"]
    why = f"; refused: {'; '.join(refused[:3])}" if refused else ""
    return f"{report.fused} quant + scale sort sites were fused, --require-fusion wants {wanted}{why}"


def _pack(job: _Job, entries: dict, programs: dict, source: WeightSource, artifact: ArtifactWriter) -> dict[str, dict]:
    """Pack every weight that an entry reads, a file for each block; the manifest's `weights`."""
    blocks: dict[str, dict[str, dict]] = {}
    for entry in entries.values():
        for weight in programs[entry["program"]]["weights"]:
            known = blocks.setdefault(entry["prefix"], {}).setdefault(weight["name"], weight)
            if known["pack"] != weight["pack"]:
                raise CompileRefused(f"weight {entry['prefix']}{weight['name']} is needed in two packed layouts")
    written = dict[str, dict]()
    for number, (prefix, weights) in enumerate(blocks.items()):
        job.progress("weights", number, len(blocks))
        file = f"weights/{prefix.strip('.') or 'weights'}.safetensors"
        specs = {name: (weight["dtype"], tuple(weight["shape"])) for name, weight in weights.items()}
        memo: pack.Memo = {}
        with artifact.tensors(file, specs) as out:
            for name, weight in weights.items():
                dtype = getattr(torch, weight["dtype"])
                # The count is in the packed shape; asking the source would stack its experts in memory.
                experts = weight["shape"][0]
                for part in pack.pack(weight["pack"], source, prefix=prefix, experts=experts, memo=memo):
                    # A router that its family uses in f32 may lie in the checkpoint as bf16.
                    out.append(name, part.to(dtype))
        for name, weight in weights.items():
            written[prefix + name] = {
                **{"file": file, "tensor": name, "dtype": weight["dtype"], "shape": weight["shape"]},
                "sha256": out.hashes[name],
            }
    return written
