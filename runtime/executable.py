"""`load` an artifact and call its entries: check the arguments, plan one workspace, run.

exe = load("model.moel")
y = exe(x)                                   # one block; with several: exe["model.layers.0.mlp"](x)
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from torch import Tensor

from moeloom.runtime import artifact
from moeloom.runtime.arguments import MAX_TOKENS, Arguments
from moeloom.runtime.bind import bind
from moeloom.runtime.cpu import Cpu
from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.null import Null
from moeloom.runtime.pack import Source
from moeloom.runtime.plan import Ran
from moeloom.runtime.program import Launch, Program, Shaped, evaluate
from moeloom.runtime.workspace import Workspace

VARIANTS = (".experts", ".experts_prequantised")


@dataclass(frozen=True)
class PlannedLaunch:
    """One launch of a program at some M: kernel, the op it came from, how many tiles."""

    kernel: str
    op: str
    tiles: int


def load(
    path: str | os.PathLike,
    device: str = "cpu",
    *,
    threads: int | None = None,
    max_tokens: int | None = None,
    tier: str | None = None,
    verify: str = "full",
    weights: Source | str | os.PathLike | None = None,
    poison: bool = False,
) -> "Executable":
    """The artifact at `path`, checked and bound, ready to call.

    device: "cpu", or "null", which runs nothing and returns zeros. threads: how many run kernels (default: the CPUs
    this process may use). max_tokens: as `prepare`. tier: one kernel library by name (default: the best this CPU runs).
    verify: "full" hashes the weights, "fast" does not. weights: a checkpoint directory, or tensors by name, to pack at
    load instead of what the artifact holds or refers to. poison: fill the workspace with 0xFF before each call (tests).
    Raises ArtifactError.
    """
    manifest = artifact.read(path, verify)
    target = manifest.targets.get("cpu" if device == "null" and "cpu" in manifest.targets else device)
    if device == "null" and target is None:
        target = next(iter(manifest.targets.values()), None)
    if target is None:
        raise ArtifactError(f"{path} holds {', '.join(manifest.targets) or 'no target'}; it does not run on {device!r}")
    runs_on = Null(target.name) if device == "null" else Cpu(target.libraries, threads=threads, tier=tier)
    executable = Executable(manifest, target, runs_on, bind(manifest, target.name, weights), poison=poison)
    if max_tokens is not None:
        executable.prepare(max_tokens)
    return executable


class Executable:
    """A loaded artifact. `entries` names what can be called; calls of one executable run one at a time. `weights` are
    the packed ones, by prefix + packed name."""

    def __init__(
        self,
        manifest: artifact.Manifest,
        target: artifact.Target,
        device: Cpu | Null,
        weights: Mapping[str, Tensor],
        *,
        poison: bool = False,
    ):
        self.manifest, self.device, self.weights = manifest, device, weights
        self._workspace = Workspace(device, target.programs.values(), poison=poison)
        self._entries = {
            name: EntryPoint(entry, target.programs[entry.program], weights, self._workspace)
            for name, entry in manifest.entries.items()
        }
        self.entries = tuple(self._entries)

    def __getitem__(self, name: str) -> "EntryPoint":
        try:
            return self._entries[name]
        except KeyError:
            raise LaunchError(f"the artifact has no entry {name!r}; it has {', '.join(self.entries)}") from None

    @property
    def block(self) -> "EntryPoint":
        """The entry of the only block; its `.experts` variants do not count. LaunchError when there are several."""
        variants = {name + variant for name in self.entries for variant in VARIANTS}
        blocks = [name for name in self.entries if name not in variants]
        if len(blocks) != 1:
            raise LaunchError(f"the artifact has {len(blocks)} blocks; call one by name: {', '.join(blocks)}")
        return self._entries[blocks[0]]

    def __call__(self, *inputs: Tensor, out: Tensor | Sequence[Tensor] | None = None, **named: Tensor):
        """As the call of the only block."""
        return self.block(*inputs, out=out, **named)

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.size

    def prepare(self, max_tokens: int) -> None:
        """Plan the workspace for up to `max_tokens` tokens. Afterwards nothing is allocated but outputs without `out=`
        and, at the first call with some M, its command list; a call with more tokens is refused."""
        if not 1 <= max_tokens < MAX_TOKENS:
            raise LaunchError(f"max_tokens is {max_tokens}; it must be 1 to {MAX_TOKENS - 1}")
        self._workspace.prepare(max_tokens)

    def close(self) -> None:
        """Stop the threads. Calls are refused afterwards."""
        self.device.close()

    def __enter__(self) -> "Executable":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class EntryPoint:
    """One callable of an artifact: inputs by position or name -> the output (a tuple where there are several)."""

    def __init__(self, entry: artifact.Entry, program: Program, weights: Mapping[str, Tensor], workspace: Workspace):
        self.name, self.program = entry.name, program
        self._arguments = Arguments(entry.name, program)
        self._workspace = workspace
        self._weights: dict[int, Tensor] = {}
        self._missing = ""
        for weight in program.weights:
            name = entry.prefix + weight.name
            if name not in weights:
                self._missing = self._missing or name
                continue
            self._weights[weight.value] = _checked_weight(name, weights[name], weight.tensor)

    def __call__(self, *inputs: Tensor, out: Tensor | Sequence[Tensor] | None = None, **named: Tensor):
        """Run. Raises LaunchError when an argument does not fit."""
        return self._run(inputs, named, out, None)

    def trace(self, *inputs: Tensor, out: Tensor | Sequence[Tensor] | None = None, **named: Tensor):
        """(result, launches that ran), each launch handed to the threads alone and noted after it ran."""
        ran: list[Ran] = []
        return self._run(inputs, named, out, ran), ran

    def launches(self, m: int) -> list[PlannedLaunch]:
        """The launches that run at M = `m`, in order, from the program alone."""
        steps = self.program.chosen(m) if m else ()
        return [PlannedLaunch(s.kernel, s.op, evaluate(s.tiles, m)) for s in steps if isinstance(s, Launch)]

    def _run(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor], out, ran: list[Ran] | None):
        if self._missing:
            raise LaunchError(
                f"the artifact holds no weight {self._missing!r}; load it with weights=DIRECTORY (--weights-from), "
                "or compile with --weights copy"
            )
        given = self._arguments.by_position(inputs, named)
        m = self._arguments.tokens(given)
        live = self._arguments.check(given, m)
        outputs = self._arguments.outputs(out, m)
        if m:
            self._workspace.run(self.name, self.program, m, self._weights, live, outputs, ran)
        if out is not None:
            return out
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _checked_weight(name: str, tensor: Tensor, about: Shaped) -> Tensor:
    if tensor.dtype is not about.storage or tensor.shape != about.at(0) or not tensor.is_contiguous():
        raise ArtifactError(f"weight {name!r} is {tensor.dtype} {tuple(tensor.shape)}; the program takes {about}")
    return tensor
