"""`load` an artifact and call its entries: check the arguments, plan one workspace, run.

exe = load("model.moel")
y = exe(x)                                   # one block; with several: exe["model.layers.0.mlp"](x)
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from moeloom.runtime import artifact
from moeloom.runtime.arguments import MAX_TOKENS, Arguments
from moeloom.runtime.bind import bind
from moeloom.runtime.devices import Device, open_device
from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.pack import Source
from moeloom.runtime.program import Launch, Program, Shaped
from moeloom.runtime.segment import Ran
from moeloom.runtime.sizes import evaluate
from moeloom.runtime.target import Target
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
    device: str | torch.device = "auto",
    *,
    target: str | None = None,
    threads: int | None = None,
    max_tokens: int | None = None,
    tier: str | None = None,
    verify: str = "full",
    weights: Source | str | os.PathLike | None = None,
    poison: bool = False,
    overlap: bool = True,
) -> "Executable":
    """The artifact at `path`, checked and bound, ready to call.

    device: "cpu", "cuda" (torch's current GPU, of either make), "cuda:1", or "null", which runs nothing and returns
    zeros; "auto" is the current GPU where some code of the artifact runs on it, else the CPU. target: take this one of
    the artifact's targets. threads: how many run kernels (default: the CPUs this process may use). max_tokens: as
    `prepare`. tier: one kernel library by name (default: the best this CPU runs). verify: "full" hashes the weights,
    "fast" does not. weights: a checkpoint directory, or tensors by name, to pack at load instead of what the artifact
    holds or refers to. poison: fill the workspace with 0xFF before each call (tests). overlap: on NVIDIA's GPUs from
    sm_90 on, a launch may start while the one in front still runs (docs/program.md); False is for measurements. Raises
    ArtifactError.
    """
    manifest = artifact.read(path, verify)
    chosen, runs_on = open_device(manifest, device, target, threads=threads, tier=tier, overlap=overlap)
    try:
        bound = bind(manifest, chosen.name, weights, runs_on.torch_device)
    except torch.OutOfMemoryError as error:
        raise ArtifactError(f"the weights of {path} do not fit: {_first_line(error)}") from None
    executable = Executable(manifest, chosen, runs_on, bound, poison=poison)
    if max_tokens is not None:
        executable.prepare(max_tokens)
    return executable


class Executable:
    """A loaded artifact. `entries` names what can be called; calls of one executable run one at a time. `weights` are
    the packed ones, by prefix + packed name, on `device.torch_device`.

    On a GPU a call goes to the caller's current stream and nothing waits for it. After one call with the same M it can
    be captured in a `torch.cuda.graph`; the graph needs the executable alive, and shares its workspace: replays and
    other calls must follow one another on the device. The first call with some M plans, and cannot be captured.
    """

    def __init__(
        self,
        manifest: artifact.Manifest,
        target: Target,
        device: Device,
        weights: Mapping[str, Tensor],
        *,
        poison: bool = False,
    ):
        self.manifest, self.target, self.device, self.weights = manifest, target, device, weights
        self._workspace = Workspace(device, target.programs.values(), poison=poison)
        self._entries = {
            name: EntryPoint(entry, target.programs[entry.program], weights, self._workspace, device.torch_device)
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
        """Plan the workspace for up to `max_tokens` tokens. Afterwards nothing is allocated but outputs without `out=`,
        copies of tensors that a GPU's code cannot use in their place (docs/program.md, "Running on a GPU") and, at the
        first call with some M, its command list; a call with more tokens is refused."""
        if not 1 <= max_tokens < MAX_TOKENS:
            raise LaunchError(f"max_tokens is {max_tokens}; it must be 1 to {MAX_TOKENS - 1}")
        try:
            self._workspace.prepare(max_tokens)
        except torch.OutOfMemoryError as error:
            raise LaunchError(f"a workspace for {max_tokens} tokens does not fit: {_first_line(error)}") from None

    def close(self) -> None:
        """Stop the CPU's threads, or wait for the GPU. Calls on the CPU are refused afterwards."""
        self.device.close()

    def __enter__(self) -> "Executable":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class EntryPoint:
    """One callable of an artifact: inputs by position or name -> the output (a tuple where there are several)."""

    def __init__(
        self,
        entry: artifact.Entry,
        program: Program,
        weights: Mapping[str, Tensor],
        workspace: Workspace,
        device: torch.device,
    ):
        self.name, self.program = entry.name, program
        self._arguments = Arguments(entry.name, program, device)
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
        """(result, launches that ran), each launch run alone and noted after it ran."""
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
        try:
            outputs = self._arguments.outputs(out, m)
            if m:
                self._workspace.run(self.name, self.program, m, self._weights, live, outputs, ran)
        except torch.OutOfMemoryError as error:
            raise LaunchError(f"{m} tokens do not fit: {_first_line(error)}") from None
        if out is not None:
            return out
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _checked_weight(name: str, tensor: Tensor, about: Shaped) -> Tensor:
    if tensor.dtype is not about.storage or tensor.shape != about.at(0) or not tensor.is_contiguous():
        raise ArtifactError(f"weight {name!r} is {tensor.dtype} {tuple(tensor.shape)}; the program takes {about}")
    return tensor
