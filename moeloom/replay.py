"""A program of an artifact, run step by step by the reference instead of its kernels.

Residual ATen steps run through ATen on both sides, and the router's kernel has its sums in the reference's order, so a
router's logits, and with them the experts, are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moeloom.kernel_reference import TEMPLATES, Weight
from moeloom.runtime import reference
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Aten, Launch, Program

SORTS = ("sort_tokens", "sort_quant", "sort_scatter", "route_sort", "decode_routed_gate_up")
"""Templates that make the lists of a token sort."""


class Replay:
    """An entry of a loaded artifact, on its weights and its device."""

    def __init__(self, executable: Executable, entry: str):
        prefix, packed = executable.manifest.entries[entry].prefix, executable.weights
        self.program, self.kernels = executable[entry].program, executable.target.kernels
        self.device = executable.device.torch_device
        self.weights = {w.value: Weight(_weight(packed, prefix + w.name), w.pack) for w in self.program.weights}

    def run(self, inputs: Mapping[str, Tensor], num_tokens: int | None = None) -> list[Tensor]:
        """The outputs for `inputs` by name; sums are float64, rounded only where docs/contract.md rounds."""
        m = tokens_of(self.program, inputs)
        values = self._bind(inputs, m if num_tokens is None else num_tokens)
        self._steps(list(self.program.chosen(m)), values)
        return [values[output.value] for output in self.program.outputs]

    def touched_bytes(self, inputs: Mapping[str, Tensor], num_tokens: int | None = None) -> int:
        """Bytes of weights that these inputs make the program read: experts with a token, and every other weight."""
        return self.bytes_of(int((self.tokens_by_expert(inputs, num_tokens) > 0).sum()))

    def bytes_of(self, experts: int) -> int:
        """Bytes of the weights of that many experts, and of every weight that belongs to none."""
        whole = sum(weight.packed.nbytes for weight in self.weights.values() if weight.kind == "as_is")
        packed = [weight.packed for weight in self.weights.values() if weight.kind != "as_is"]
        return whole + sum(experts * tensor.nbytes // tensor.shape[0] for tensor in packed)

    def tokens_by_expert(self, inputs: Mapping[str, Tensor], num_tokens: int | None = None) -> Tensor:
        """i64 [E]: how many tokens these inputs send to each expert; empty where the program sorts none."""
        m = tokens_of(self.program, inputs)
        values = self._bind(inputs, m if num_tokens is None else num_tokens)
        steps = list(self.program.chosen(m))
        sorts = [place for place, step in enumerate(steps) if self._template(step) in SORTS]
        if not sorts:
            return torch.empty(0, dtype=torch.int64)
        self._steps(steps[: sorts[-1] + 1], values)
        sort = steps[sorts[-1]]
        assert isinstance(sort, Launch)
        routes = self._template(sort) in ("route_sort", "decode_routed_gate_up")
        lists = sort.results[2:] if routes else sort.results
        sorted_ids, _, expert_ids, num_valid = (values[result] for result in lists[:4])
        params = self.kernels[sort.kernel]["params"]
        rows = reference.source_rows(sorted_ids, num_valid, 2, params["topk"])
        owner = expert_ids[: len(rows) // params["block"]].repeat_interleave(params["block"])
        return torch.bincount(owner[rows >= 0], minlength=params["experts"])

    def _template(self, step: Launch | Aten) -> str | None:
        return self.kernels[step.kernel]["template"] if isinstance(step, Launch) else None

    def _bind(self, inputs: Mapping[str, Tensor], num_tokens: int) -> dict[int, Any]:
        values: dict[int, Any] = {value: weight.packed for value, weight in self.weights.items()}
        values |= dict.fromkeys(self.program.exchanges)
        for wanted in self.program.inputs:
            given = inputs.get(wanted.name)
            count = torch.tensor([num_tokens], dtype=torch.int32, device=self.device)
            values[wanted.value] = count if given is None else given
        return values

    def _steps(self, steps: Sequence[Launch | Aten], values: dict[int, Any]) -> None:
        for step in steps:
            if isinstance(step, Aten):
                found = _call(step, values, self.device)
            else:
                kernel = self.kernels[step.kernel]
                operands = [self.weights.get(value, values[value]) for value in step.operands]
                found = TEMPLATES[kernel["template"]](kernel["params"], operands)
            results = found if isinstance(found, tuple | list) else (found,)
            # A kernel may have scratch results, which nobody reads.
            values.update(zip(step.results, results, strict=False))


def _weight(packed: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in packed:
        raise ArtifactError(f"the artifact holds no weight {name!r}; load it with weights=DIRECTORY (--weights-from)")
    return packed[name]


def tokens_of(program: Program, inputs: Mapping[str, Tensor]) -> int:
    """M: the first dimension of the first input that has it."""
    name = next(wanted.name for wanted in program.inputs if "M" in wanted.tensor.shape[:1])
    return inputs[name].shape[0]


def _call(step: Aten, values: Mapping[int, Any], device: torch.device) -> Any:
    """The result of an ATen step; its arguments are in the order of the operator's schema."""
    operator: Any = torch.ops
    for part in step.op.split("."):
        operator = getattr(operator, part)
    taken = zip(operator._schema.arguments, step.args, strict=False)
    given = [device if argument.name == "device" else _argument(arg, values) for argument, arg in taken]
    named = {a.name: g for a, g in zip(operator._schema.arguments, given, strict=False) if a.kwarg_only}
    positional = given[: len(given) - len(named)]
    if any(argument.name == "device" and argument.kwarg_only for argument in operator._schema.arguments):
        named["device"] = device
    return operator(*positional, **named)


def _argument(arg: Mapping[str, Any], values: Mapping[int, Any]) -> Any:
    if "value" in arg:
        return values[arg["value"]]
    if "list" in arg:
        return [_argument(item, values) for item in arg["list"]]
    return getattr(torch, arg["dtype"]) if "dtype" in arg else arg["literal"]
