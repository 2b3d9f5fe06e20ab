"""Lowers one function: its moe ops to launches by a target's table, its weight arguments to their packed types."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch_mlir import ir
from torch_mlir.dialects import arith, func, tensor

from moeloom.dialects import kernel, moe
from moeloom.lowering import sizes
from moeloom.lowering.operands import Params
from moeloom.lowering.packing import Layout
from moeloom.lowering.targets import Target
from moeloom.lowering.weight_arguments import WeightArguments
from moeloom.passes.base import PassError
from moeloom.runtime.stream import EXCHANGE_FLAGS

Results = Sequence[tuple[ir.Type, Sequence[sizes.Expr]]]
"""Type and shape in M of each result of a launch."""


class Definitions:
    """The kernel.define ops of a module: one for each distinct template and parameters."""

    def __init__(self, module: ir.Operation):
        self.module, self.names = module, dict[tuple, str]()

    def name(self, template: str, params: Params) -> str:
        """The symbol of the kernel, defined at the top of the module when it is new."""
        key = (template, tuple(sorted(params.items())))
        if key not in self.names:
            number = sum(known[0] == template for known in self.names)
            self.names[key] = f"{template}_{number}"
            with ir.InsertionPoint.at_block_begin(self.module.regions[0].blocks[0]), ir.Location.unknown():
                kernel.DefineOp(
                    ir.StringAttr.get(self.names[key]),
                    ir.StringAttr.get(template),
                    ir.DictAttr.get({name: _attribute(value) for name, value in params.items()}),
                )
        return self.names[key]


def _attribute(value: int | str | bool | float) -> ir.Attribute:
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F64Type.get(), value)
    return ir.StringAttr.get(value)


@dataclass(frozen=True)
class Routed:
    """A sorted list that the launch of its first product makes up to `limit` tokens: that value, and what it follows
    from."""

    limit: int
    sorted_ids: ir.Value
    logits: ir.Value
    num_tokens: ir.Value | None


class FunctionLowering:
    """Lowers one function: its moe ops in order, then its weight arguments."""

    def __init__(
        self,
        function: func.FuncOp,
        target: Target,
        fusion: str,
        layout: Layout,
        definitions: Definitions,
        rules: "Rules",
    ):
        self.function, self.target, self.fusion, self.layout = function, target, fusion, layout
        self.definitions, self.rules = definitions, rules
        self.weights = WeightArguments(function, layout)
        self.made: list[tuple[ir.Operation, list[ir.Value]]] = []  # results of ops that another one's launch has too
        self.routed: list[Routed] = []

    def lower(self) -> None:
        block = self.function.entry_block
        if not any(True for _ in _moe_ops(block)):
            return
        self.m = self._tokens(block)
        for prepare in self.rules.prepare:
            prepare(self, block)
        work = list(_moe_ops(block))
        for op in work:
            lowering = self.rules.ops.get(type(op))
            if lowering is None:
                raise PassError(op, f"'{op.operation.name}' has no kernel for target {self.target.name}; plan it first")
            self.op = op.operation.name
            with ir.InsertionPoint(op), op.location:
                results = lowering(self, op)
            for old, new in zip(op.results, results, strict=True):
                old.replace_all_uses_with(new)
            op.operation.erase()
        self.weights.retype()

    def _tokens(self, block: ir.Block) -> ir.Value:
        """M: the dynamic first dimension of the first input that has one."""
        for argument in block.arguments:
            if (
                isinstance(argument.type, ir.RankedTensorType)
                and argument.type.rank
                and argument.type.is_dynamic_dim(0)
            ):
                with ir.InsertionPoint.at_block_begin(block), self.function.location:
                    return tensor.dim(argument, arith.constant(ir.IndexType.get(), 0))
        for argument in block.arguments:
            uses = [use.owner for use in argument.uses if use.owner.name == "torch_c.to_builtin_tensor"]
            if uses and uses[0].results[0].type.is_dynamic_dim(0):
                with ir.InsertionPoint.at_block_begin(block), self.function.location:
                    cast = uses[0]
                    cast.move_before(block.operations[0])
                    zero = arith.constant(ir.IndexType.get(), 0)
                    return tensor.dim(cast.results[0], zero)
        raise PassError(
            self.function,
            f"@{self.function.name.value} has no input of type tensor<?x...>; its token dimension must be dynamic",
        )

    def expert_weight(self, op: moe.GateUpOp | moe.DownOp, rows: str) -> list[ir.Value]:
        """Payload, scales and, where there is one, bias of a product; `rows` is the order to pack them in."""
        return self.weights.take(op, rows, op.weight, op.weight_scales, op.bias)

    def one_stage_weights(self, op: moe.ExpertsOneStageOp) -> list[ir.Value]:
        """The weights of both products of a one-stage op."""
        rows = f"gate_up_{op.gate_up_order.value}"
        return [
            *self.weights.take(op, rows, op.gate_up, op.gate_up_scales, op.gate_up_bias),
            *self.weights.take(op, "plain", op.down, op.down_scales, op.down_bias),
        ]

    def launch(
        self,
        template: str,
        params: Params,
        operands: Sequence[ir.Value],
        results: Results,
        grid: Sequence[sizes.Expr],
        strided: Sequence[int] = (),
    ) -> list[ir.Value]:
        """A launch at the insertion point; `results` are (type, shape in M)."""
        op = kernel.create(
            "kernel.launch",
            [self.m, *operands],
            [kind for kind, _ in results],
            {
                "moe.op": ir.StringAttr.get(self.op),
                "kernel": ir.FlatSymbolRefAttr.get(self.definitions.name(template, params)),
                "grid": sizes.affine_map(*grid),
                "result_shapes": ir.ArrayAttr.get([sizes.affine_map(*shape) for _, shape in results]),
                "strided": ir.DenseI64ArrayAttr.get(list(strided)),
            },
        )
        return list(op.results)

    @contextmanager
    def shown_as(self, op: str) -> Iterator[None]:
        """Within, launches are those of `op`, whichever op is being lowered."""
        self.op, outside = op, self.op
        try:
            yield
        finally:
            self.op = outside

    def made_before(self, op: ir.OpView) -> list[ir.Value] | None:
        """The results of an op that another one's launch has too; None where it is to be lowered itself."""
        return next((results for joined, results in self.made if joined == op.operation), None)

    def exchange(self, words: int) -> ir.Value:
        """The memory through which programs of a launch talk to each other, with so many words beside its flags."""
        kind = ir.RankedTensorType.get([EXCHANGE_FLAGS + words], ir.IntegerType.get_signless(32))
        with ir.InsertionPoint.at_block_begin(self.function.entry_block), self.function.location:
            return kernel.create("kernel.exchange", [], [kind], {}).results[0]

    def alternatives(
        self, choice: str, limit: int, reason: str, types: Sequence[ir.Type], builds: Sequence[Callable[[], list]]
    ) -> list[ir.Value]:
        """What the first of `builds` launches where M <= limit, else the second; both give values of `types`.

        Only one of them where the guards around this place leave no choice.
        """
        least, most = _tokens_here()
        if most <= limit or limit < least:
            return builds[0 if most <= limit else 1]()
        guard = kernel.alternatives(self.m, choice, limit, reason, types)
        for region, build in zip(guard.regions, builds, strict=True):
            with ir.InsertionPoint(region.blocks.append()):
                kernel.create("kernel.yield", build(), [], {})
        return list(guard.results)

    def may_fuse(self, op: moe.QuantSortOp, least: int = 0) -> bool:
        """Whether the fused kernel is to run for some M from `least` on that reaches the insertion point."""
        if self.fusion != "auto":
            return self.fusion == "fused"
        return max(least, _tokens_here()[0]) <= self.target.fused_tokens(op.stage.value, op.topk.value)

    def joins_sort(self, op: moe.QuantSortOp) -> int:
        """The largest M, of those that reach the insertion point, at which the fused kernel of a stage 1 site is in the
        token sort's launch: where it runs at all, as long as the sort is one launch; 0: never."""
        limit = self.target.sort_tokens
        if self.fusion == "auto":
            limit = min(limit, self.target.fused_tokens(op.stage.value, op.topk.value))
        return limit if self.fusion != "split" and _tokens_here()[0] <= limit else 0

    def may_join(self) -> bool:
        """Whether routing and token sort are one launch for some M that reaches the insertion point."""
        return 0 < self.target.route_sort_tokens >= _tokens_here()[0]

    def switch(self, op: moe.QuantSortOp, fused: Callable[[], list], split: Callable[[], list]) -> list[ir.Value]:
        """The fused quant + scale sort, the split pair, or both with the target's threshold between them."""
        if self.fusion != "auto":
            return fused() if self.fusion == "fused" else split()
        stage = op.stage.value
        rows = self.target.fused_rows[stage - 1]
        why = f"stage {stage}: fused quant + scale sort up to {rows} routed rows on {self.target.name}"
        limit = self.target.fused_tokens(stage, op.topk.value)
        types = [op.codes.type, op.sorted_scales.type]
        return self.alternatives("fusion", limit, why, types, (fused, split))


def _tokens_here() -> tuple[int, float]:
    """The least and the most M that reach the insertion point, by the guards around it."""
    least, most = 0, math.inf
    block = ir.InsertionPoint.current.block
    while (owner := block.owner.operation).name != "func.func":
        if owner.name == "kernel.alternatives":
            limit, first = owner.attributes["max_m"].value, owner.regions[0].blocks[0]
            least, most = (least, min(most, limit)) if block == first else (max(least, limit + 1), most)
        block = owner.block
    return least, most


@dataclass(frozen=True)
class Rules:
    """How a kind of target lowers: each of `prepare` rewrites a function's block, then each moe op becomes launches, by
    what gives the values that replace its results."""

    ops: Mapping[type, Callable[[FunctionLowering, ir.OpView], list[ir.Value]]]
    prepare: Sequence[Callable[[FunctionLowering, ir.Block], None]] = ()


def _moe_ops(block: ir.Block) -> Iterator[ir.OpView]:
    """Every moe op of a block in order, those inside alternatives too."""
    for op in block.operations:
        if op.operation.name.startswith("moe."):
            yield op
        for region in op.regions:
            for inner in region.blocks:
                yield from _moe_ops(inner)
