"""`load` an artifact and call its entries: check the arguments, plan one workspace, run.

exe = load("model.moel")
y = exe(x)                                   # one block; with several: exe["model.layers.0.mlp"](x)
"""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from moeloom.runtime import artifact
from moeloom.runtime.cpu import Cpu
from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.null import Null
from moeloom.runtime.pack import Memo, Source, pack
from moeloom.runtime.plan import Plan, Ran, slot_offsets
from moeloom.runtime.program import BYTE_DTYPES, Input, Program, evaluate

MAX_TOKENS = 1 << 24  # exclusive: a sorted id has 24 bits for the token
POISON = 0xFF
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
    weights: Source | None = None,
    poison: bool = False,
) -> "Executable":
    """The artifact at `path`, checked and bound, ready to call.

    device: "cpu", or "null", which runs nothing and returns zeros. threads: how many run kernels (default: the CPUs this
    process may use). max_tokens: as `prepare`. tier: one kernel library by name (default: the best this CPU runs).
    verify: "full" hashes the weights, "fast" does not. weights: a checkpoint to pack at load, for artifacts without
    weights. poison: fill the workspace with 0xFF before each call (tests). Raises ArtifactError.
    """
    manifest = artifact.read(path, verify)
    target = manifest.targets.get("cpu" if device == "null" and "cpu" in manifest.targets else device)
    if device == "null" and target is None:
        target = next(iter(manifest.targets.values()), None)
    if target is None:
        raise ArtifactError(f"{path} holds {', '.join(manifest.targets) or 'no target'}; it does not run on {device!r}")
    runs_on = Null(target.name) if device == "null" else Cpu(target.libraries, threads=threads, tier=tier)
    bound = manifest.map_weights(target.name) if weights is None else _pack_all(manifest, target, weights)
    executable = Executable(manifest, target, runs_on, bound, poison=poison)
    if max_tokens is not None:
        executable.prepare(max_tokens)
    return executable


def _pack_all(manifest: artifact.Manifest, target: artifact.Target, source: Source) -> dict[str, Tensor]:
    """Every weight of every entry, packed from a checkpoint."""
    bound: dict[str, Tensor] = {}
    memo: Memo = {}
    for entry in manifest.entries.values():
        for weight in target.programs[entry.program].weights:
            name = entry.prefix + weight.name
            if name in bound:
                continue
            shape = weight.tensor.at(0)
            recipe = weight.pack or {"kind": "as_is", "sources": [weight.name]}
            packed = torch.empty(shape, dtype=weight.tensor.storage)
            rows = packed.unsqueeze(0) if recipe["kind"] == "as_is" and "{e}" not in recipe["sources"][0] else packed
            parts = pack(recipe, source, prefix=entry.prefix, experts=len(rows), memo=memo)
            for row, part in zip(rows, parts, strict=True):
                if row.shape != part.shape:
                    raise ArtifactError(
                        f"weight {name!r} packs to {tuple(part.shape)}; the program takes {tuple(row.shape)}"
                    )
                row.copy_(part)
            bound[name] = packed
    return bound


class Executable:
    """A loaded artifact. `entries` names what can be called; calls of one executable run one at a time."""

    def __init__(
        self,
        manifest: artifact.Manifest,
        target: artifact.Target,
        device: Cpu | Null,
        weights: Mapping[str, Tensor],
        *,
        poison: bool = False,
    ):
        self.manifest, self.device, self.poison = manifest, device, poison
        self._lock = threading.Lock()
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._capacity, self._fixed_capacity = 0, False
        self._entries = {
            name: EntryPoint(self, entry, target.programs[entry.program], weights)
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
        return self._workspace.numel()

    def prepare(self, max_tokens: int) -> None:
        """Plan the workspace for up to `max_tokens` tokens. Afterwards nothing is allocated but outputs without `out=`
        and, at the first call with some M, its command list; a call with more tokens is refused."""
        if not 1 <= max_tokens < MAX_TOKENS:
            raise LaunchError(f"max_tokens is {max_tokens}; it must be 1 to {MAX_TOKENS - 1}")
        with self._lock:
            self._plan_workspace(max_tokens)
            self._fixed_capacity = True

    def _plan_workspace(self, max_tokens: int) -> None:
        size = max(slot_offsets(entry.program, max_tokens)[1] for entry in self._entries.values())
        for entry in self._entries.values():
            entry.plans.clear()
        self._workspace = torch.empty(size, dtype=torch.uint8)
        self._capacity = max_tokens

    def _plan_for(self, entry: "EntryPoint", m: int) -> Plan:
        """The plan of `entry` at M = `m`; the lock is held."""
        if m > self._capacity:
            if self._fixed_capacity:
                raise LaunchError(f"M is {m}; the workspace is planned for {self._capacity}: call prepare({m}) first")
            self._plan_workspace(m)
        if m not in entry.plans:
            entry.plans[m] = Plan(entry.program, m, entry.weights, self._workspace, self._capacity, self.device)
        return entry.plans[m]

    def close(self) -> None:
        """Stop the threads. Calls are refused afterwards."""
        self.device.close()

    def __enter__(self) -> "Executable":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class EntryPoint:
    """One callable of an artifact: inputs by position or name -> the output (a tuple where there are several)."""

    def __init__(self, executable: Executable, entry: artifact.Entry, program: Program, weights: Mapping[str, Tensor]):
        self.name, self.program = entry.name, program
        self.plans: dict[int, Plan] = {}
        self._executable = executable
        self._names = [item.name for item in program.inputs]
        self._rows_of = next((i for i, item in enumerate(program.inputs) if item.tensor.shape[:1] == ("M",)), None)
        self._shapes: dict[int, tuple[list, list]] = {}
        self._live_tokens: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self._missing = ""
        for weight in program.weights:
            name = entry.prefix + weight.name
            if name not in weights:
                self._missing = self._missing or name
                continue
            self.weights[weight.value] = _checked_weight(name, weights[name], weight.tensor)

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
        return [PlannedLaunch(s.kernel, s.op, evaluate(s.tiles, m)) for s in steps if hasattr(s, "kernel")]

    def _run(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor], out, ran: list[Ran] | None):
        if self._missing:
            raise LaunchError(
                f"the artifact holds no weight {self._missing!r}; load it with weights=CHECKPOINT, "
                "or compile with --weights copy"
            )
        given = self._by_position(inputs, named)
        m = self._tokens(given)
        with self._executable._lock:
            input_shapes, output_shapes = self._shapes_at(m)
            live = self._check(given, input_shapes, m)
            outputs = self._outputs(out, output_shapes)
            if m:
                plan = self._executable._plan_for(self, m)
                if self._executable.poison:
                    self._executable._workspace.fill_(POISON)
                self._executable.device.execute(plan, live, outputs, ran)
        if out is not None:
            return out
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _by_position(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor | None]:
        if len(inputs) > len(self._names):
            raise LaunchError(f"{len(inputs)} arguments given; {self.name} takes {', '.join(self._names)}")
        given: list[Tensor | None] = [*inputs, *[None] * (len(self._names) - len(inputs))]
        for name, tensor in named.items():
            if name not in self._names:
                raise LaunchError(f"no argument {name!r}; {self.name} takes {', '.join(self._names)}")
            position = self._names.index(name)
            if position < len(inputs):
                raise LaunchError(f"argument {name!r} is given twice")
            given[position] = tensor
        return given

    def _tokens(self, given: list[Tensor | None]) -> int:
        """M; 1 for programs that have none."""
        if self._rows_of is None:
            return 1
        rows = given[self._rows_of]
        about = self.program.inputs[self._rows_of]
        if not isinstance(rows, Tensor) or rows.dim() != len(about.tensor.shape):
            raise LaunchError(_mismatch(about, rows))
        if rows.shape[0] >= MAX_TOKENS:
            raise LaunchError(
                f"argument {about.name!r} has {rows.shape[0]} rows; an artifact takes up to {MAX_TOKENS - 1}"
            )
        return rows.shape[0]

    def _shapes_at(self, m: int) -> tuple[list, list]:
        """Shapes of inputs and outputs, worked out once for each M."""
        if m not in self._shapes:
            inputs, outputs = self.program.inputs, self.program.outputs
            self._shapes[m] = [i.tensor.at(m) for i in inputs], [o.tensor.at(m) for o in outputs]
        return self._shapes[m]

    def _check(self, given: list[Tensor | None], shapes: list, m: int) -> dict[int, Tensor]:
        """The inputs by value number, every one of them fitting; left-out live token counts are M."""
        live = {}
        for tensor, about, shape in zip(given, self.program.inputs, shapes, strict=True):
            if tensor is None and about.optional:
                tensor = self._all_live(m)
            if not isinstance(tensor, Tensor):
                raise LaunchError(_mismatch(about, tensor))
            if tensor.dtype is not about.tensor.storage:
                if str(tensor.dtype) != f"torch.{about.tensor.dtype}" or about.tensor.dtype not in BYTE_DTYPES:
                    raise LaunchError(_mismatch(about, tensor))
                tensor = tensor.view(torch.uint8)
            if tensor.shape != shape:
                raise LaunchError(_mismatch(about, tensor, m))
            _check_memory(about, tensor)
            live[about.value] = tensor
        return live

    def _all_live(self, m: int) -> Tensor:
        if m not in self._live_tokens:
            self._live_tokens[m] = torch.tensor([m], dtype=torch.int32)
        return self._live_tokens[m]

    def _outputs(self, out: Tensor | Sequence[Tensor] | None, shapes: list) -> list[Tensor]:
        dtypes = [o.tensor.storage for o in self.program.outputs]
        if out is None:
            return [torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        outputs = [out] if isinstance(out, Tensor) else list(out)
        if len(outputs) != len(shapes):
            raise LaunchError(f"out has {len(outputs)} tensors; {self.name} makes {len(shapes)}")
        for tensor, shape, dtype in zip(outputs, shapes, dtypes, strict=True):
            on_cpu = tensor.device.type == "cpu"
            if tensor.shape != shape or tensor.dtype is not dtype or not on_cpu or not tensor.is_contiguous():
                found = f"{tensor.device.type} {_name(tensor.dtype)} {tuple(tensor.shape)}, strides {tensor.stride()}"
                raise LaunchError(f"out is {found}; the artifact makes contiguous cpu {_name(dtype)} {shape}")
        return outputs


def _checked_weight(name: str, tensor: Tensor, about) -> Tensor:
    if tensor.dtype is not about.storage or tensor.shape != about.at(0) or not tensor.is_contiguous():
        raise ArtifactError(
            f"weight {name!r} is {_name(tensor.dtype)} {tuple(tensor.shape)}; the program takes {about}"
        )
    return tensor


def _check_memory(about: Input, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise LaunchError(f"argument {about.name!r} is on {tensor.device}; the artifact runs on the cpu: move it there")
    if tensor.is_contiguous():
        return
    if not about.strided:
        raise LaunchError(f"argument {about.name!r} has strides {tensor.stride()}; it must be contiguous")
    if tensor.stride(-1) != 1:
        raise LaunchError(f"argument {about.name!r} has strides {tensor.stride()}; its last axis must have stride 1")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _mismatch(about: Input, found: object, m: int | None = None) -> str:
    if found is None:
        return f"argument {about.name!r} is missing; the artifact takes {about.tensor}"
    if not isinstance(found, Tensor):
        return f"argument {about.name!r} is a {type(found).__name__}; the artifact takes a tensor {about.tensor}"
    wanted = f"{about.tensor}" if m is None else f"{about.tensor.dtype} {about.tensor.at(m)} at M = {m}"
    return f"argument {about.name!r} is {_name(found.dtype)} {tuple(found.shape)}; the artifact takes {wanted}"
