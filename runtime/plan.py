"""A program made ready for one number of tokens M: alternatives resolved, sizes known, command lists filled in.

Whatever lies in the workspace or among the weights has a fixed address; inputs, outputs and views of them are written
into the command lists at each call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.program import Aten, Launch, Program, Shaped
from moeloom.runtime.segment import Device, Live, Multiples, Ran, Segment

SMALL_BYTES = 1 << 20
"""ATen operators that read less run on one thread. After a parallel one, torch's threads spin for milliseconds on the
cores that the next kernels need: a router of 0.2 MB cost 3 ms that way."""
SIZES = ("aten.size.int", "aten.sym_size.int")
POISON = 0xFF
COPIES = ("aten.to.dtype", "aten._to_copy.default", "aten.clone.default", "aten.contiguous.default")


def slot_offsets(program: Program, max_m: int, alignment: int) -> tuple[list[int], int]:
    """Where each slot starts in the workspace, a multiple of `alignment`, and the workspace's size, in bytes."""
    offsets, end = [], 0
    for size in program.slot_bytes(max_m):
        offsets.append(end)
        end += -(-size // alignment) * alignment
    return offsets, end


class AtenCall:
    """One ATen operator; its results are written into planned tensors, by its `out` form where there is one."""

    def __init__(self, step: Aten, op: Any, given: list, planned: frozenset[int], place: torch.device, small: bool):
        about = op._schema.arguments[: len(given)]
        # A program imported on the CPU makes its constants where it runs.
        given = [place if a.name == "device" else arg for arg, a in zip(given, about, strict=True)]
        self.args = [arg for arg, a in zip(given, about, strict=True) if not a.kwarg_only]
        self.kwargs = {a.name: arg for arg, a in zip(given, about, strict=True) if a.kwarg_only}
        if any(a.name == "device" and a.kwarg_only for a in op._schema.arguments):
            self.kwargs["device"] = place
        self.results = step.results
        self._op, self._planned, self._small = op, planned, small
        alone = len(step.results) == 1 and step.results[0] in planned
        self._copies = alone and step.op in COPIES
        self._out: Any = _out_overload(op) if alone and not self._copies else None

    def run(self, live: Live, fixed: Mapping[int, Any]) -> None:
        threads = torch.get_num_threads()
        if not self._small or threads == 1:
            self._execute(live, fixed)
            return
        torch.set_num_threads(1)
        try:
            self._execute(live, fixed)
        finally:
            torch.set_num_threads(threads)

    def _execute(self, live: Live, fixed: Mapping[int, Any]) -> None:
        args = [_fill(arg, live) for arg in self.args]
        kwargs = {name: _fill(arg, live) for name, arg in self.kwargs.items()}
        if self._out is not None or self._copies:
            value = self.results[0]
            target = fixed[value] if value in fixed else live[value]
            if self._copies:
                target.copy_(args[0])
            else:
                self._out(*args, **kwargs, out=target)
            return
        for value, result in zip(self.results, _as_tuple(self._op(*args, **kwargs)), strict=True):
            if value in self._planned:
                (fixed[value] if value in fixed else live[value]).copy_(result)
            else:
                live[value] = result


@dataclass(frozen=True)
class _Ref:
    """An argument known only at the call."""

    value: int


def _fill(arg: Any, live: Live) -> Any:
    if type(arg) is _Ref:
        return live[arg.value]
    if type(arg) is list:
        return [_fill(item, live) for item in arg]
    return arg


def _as_tuple(results: Any) -> tuple:
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def _has_tensor(arg: Any) -> bool:
    return isinstance(arg, Tensor) or (type(arg) is list and any(_has_tensor(item) for item in arg))


def _operator(name: str) -> Any:
    try:
        namespace, packet, overload = name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, ValueError):
        raise ArtifactError(f"torch {torch.__version__} has no operator {name!r}; compile with this torch") from None


def _out_overload(op: Any) -> Callable | None:
    """The overload of `op` with the same arguments and one output to write into."""
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in op._overloadpacket.overloads():
        other = getattr(op._overloadpacket, name)
        arguments = other._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        if outs == ["out"] and [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return other
    return None


def _aliases(op: Any) -> bool:
    """Whether the operator may return a view of its argument."""
    info = op._schema.returns[0].alias_info if op._schema.returns else None
    return info is not None and not info.is_write


class Plan:
    """The steps of `program` at M = `m`, bound to a workspace and to weights by value number."""

    def __init__(
        self,
        program: Program,
        m: int,
        weights: Mapping[int, Tensor],
        workspace: Tensor,
        max_m: int,
        device: Device,
        *,
        poison: bool = False,
    ):
        self.m, self._poison = m, poison
        self._device, self._workspace = device, workspace
        self._shaped: dict[int, Shaped] = {v: value.tensor for v, value in program.values.items()}
        self._shaped |= {item.value: item.tensor for item in program.inputs}
        self._shaped |= {item.value: item.tensor for item in program.outputs}
        self._fixed: dict[int, Any] = dict(weights)
        self._place(program, max_m, device.alignment)
        self._early: list[AtenCall] = []
        self._items: list[Segment | AtenCall] = []
        self._inputs = {item.value for item in program.inputs}
        self._optional = [item.value for item in program.inputs if item.optional]
        self._all_live = torch.full((1,), m, dtype=torch.int32, device=device.torch_device)
        self._at_call = set(self._inputs)
        self.launches: list[Launch] = []
        self._outputs = [o.value for o in program.outputs]
        # These are written into the caller's tensor by their maker; other outputs have a place, and are copied.
        self._written = set(self._outputs) - self._fixed.keys() - self._inputs - program.values.keys()
        for step in program.chosen(m):
            if isinstance(step, Launch):
                self._launch(step)
            else:
                self._aten(step)
        self._wanted: dict[int, Multiples] = {}
        for item in self._items:
            if isinstance(item, Segment):
                item.finish()
                self._wanted |= {v: self._wanted.get(v, wanted) | wanted for v, wanted in item.live.items()}
        self._wanted = {v: wanted for v, wanted in self._wanted.items() if wanted != Multiples()}
        self._at_start = [value for value in self._wanted if value in self._at_call]

    def _place(self, program: Program, max_m: int, alignment: int) -> None:
        offsets, _ = slot_offsets(program, max_m, alignment)
        sizes = program.slot_bytes(max_m)
        for number, value in program.values.items():
            if value.slot is None:
                continue
            shape = value.tensor.at(self.m)
            count = torch.Size(shape).numel() * value.tensor.storage.itemsize
            if count <= sizes[value.slot]:  # a value of the branch that does not run may be larger than its slot
                flat = self._workspace.narrow(0, offsets[value.slot], count)
                self._fixed[number] = flat.view(value.tensor.storage).view(shape)

    def _launch(self, step: Launch) -> None:
        if not self._items or isinstance(self._items[-1], AtenCall):
            self._items.append(Segment(self._device, self.m))
        segment = self._items[-1]
        assert isinstance(segment, Segment)
        segment.add(step, self._fixed)
        self.launches.append(step)

    def _aten(self, step: Aten) -> None:
        if step.op in SIZES:
            source, axis = step.args[0]["value"], step.args[1]["literal"]
            shape = self._fixed[source].shape if source in self._fixed else self._shaped[source].at(self.m)
            self._fixed[step.results[0]] = shape[axis]
            return
        op = _operator(step.op)
        given = [self._arg(arg) for arg in step.args]
        planned = frozenset(r for r in step.results if r in self._fixed or r in self._written)
        references = set(_references(given))
        place = self._device.torch_device
        small = place.type == "cpu" and self._bytes(step.args) < SMALL_BYTES
        call = AtenCall(step, op, given, planned, place, small)
        if not references and not planned:
            tensors = [arg for arg in given if _has_tensor(arg)]
            results = _as_tuple(op(*call.args, **call.kwargs)) if _aliases(op) or not tensors else ()
            # Constants and views of fixed tensors are made once; an operator that copies runs at every call.
            if results and (not tensors or _shares(results[0], tensors[0])):
                self._fixed.update(zip(step.results, results, strict=True))
                return
        if not planned and _aliases(op) and references and references <= self._at_call:
            self._early.append(call)  # a view of inputs: made before the launches, so that it does not part them
            self._at_call |= set(step.results)
            return
        self._items.append(call)

    def _bytes(self, args: Sequence[Mapping[str, Any]]) -> int:
        """Bytes of the tensors among the arguments of an ATen step."""
        total = 0
        for arg in args:
            total += self._bytes(arg.get("list", ()))
            value = arg.get("value", -1)
            fixed = self._fixed.get(value)
            if isinstance(fixed, Tensor):
                total += fixed.nbytes
            elif value in self._shaped:
                shaped = self._shaped[value]
                total += torch.Size(shaped.at(self.m)).numel() * shaped.storage.itemsize
        return total

    def _arg(self, arg: Mapping[str, Any]) -> Any:
        if "value" in arg:
            return self._fixed.get(arg["value"], _Ref(arg["value"]))
        if "list" in arg:
            return [self._arg(item) for item in arg["list"]]
        return getattr(torch, arg["dtype"]) if "dtype" in arg else arg["literal"]

    def run(self, live: Live, outputs: Sequence[Tensor], ran: list[Ran] | None = None) -> None:
        """Run with the inputs' tensors by value number; `ran` collects the launches that ran.

        An optional input that is left out is the number of live tokens: all M. Of a tensor that the code cannot read or
        write in its place a copy is made, for this call.
        """
        if self._poison:
            self._workspace.fill_(POISON)
        for value in self._optional:
            live.setdefault(value, self._all_live)
        copies = []
        for value, out in zip(self._outputs, outputs, strict=True):
            if value in self._written and value not in live:
                live[value] = self._fitting(value, out)
            if live.get(value) is not out:
                copies.append((value, out))
        for call in self._early:
            call.run(live, self._fixed)
        for value in self._at_start:
            live[value] = self._fitting(value, live[value])
        for item in self._items:
            if isinstance(item, AtenCall):
                item.run(live, self._fixed)
                for value in item.results:
                    if value in self._wanted:
                        live[value] = self._fitting(value, live[value])
            elif ran is None:
                item.run(live)
            else:
                item.trace(live, ran)
        for value, out in copies:
            out.copy_(self._fixed[value] if value in self._fixed else live[value])

    def _fitting(self, value: int, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it where some launch cannot read or write it in its place."""
        wanted = self._wanted.get(value)
        if wanted is None or wanted.fit(tensor):
            return tensor
        copy = tensor.clone(memory_format=torch.contiguous_format)
        if not wanted.fit(copy):
            raise LaunchError(f"value {value} has rows {copy.stride(0)} elements apart; {wanted}: compile again")
        return copy


def _references(args: list) -> list[int]:
    found = []
    for arg in args:
        if type(arg) is _Ref:
            found.append(arg.value)
        elif type(arg) is list:
            found += _references(arg)
    return found


def _shares(result: Any, source: Any) -> bool:
    return (
        isinstance(result, Tensor)
        and isinstance(source, Tensor)
        and result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    )
