"""moe.experts -> sort_tokens, quant, sort_scales, gate_up, down, combine (contract, sections 2, 3, 5)."""

from dataclasses import dataclass, replace
from typing import Literal

from torch_mlir import ir
from torch_mlir.dialects import arith
from torch_mlir.dialects import tensor as tensor_dialect
from torch_mlir.rewrite import RewritePatternSet, walk_and_apply_patterns

from moeloom.dialects import kernel, moe
from moeloom.passes.base import OptionError, Pass, PassError, convert
from moeloom.passes.builders import integer, tensor, word
from moeloom.passes.report import Report


@dataclass
class PlanExperts(Pass, name="moe-plan-experts"):
    """Split each moe.experts into the launches of one or two stages.

    `stages` = 2 gives gate_up and down, 1 gives both in one op. `activations` = mxfp4 quantises what each product
    reads and sorts its scales; bf16 leaves bf16 or f16 values as they are. `block` is the rows of a sort block,
    `layout` that of sorted scales; `routing_weight_stage` = 1 applies the routing weight before the first bias.
    `decode` may hold plans for few tokens, ROWS:BLOCK or ROWS:BLOCK:STAGES with commas between, rows ascending: sort
    blocks of BLOCK rows while an expert has ROWS rows or fewer on average. All are alternatives in one program.
    """

    stages: Literal[1, 2] = 2
    activations: Literal["mxfp4", "bf16"] = "mxfp4"
    scale_mode: Literal["even", "floor", "ceil", "rceil"] = "even"
    block: Literal[8, 16, 32, 64, 128, 144] = 32
    layout: Literal["tiled_32x8", "row_major"] = "tiled_32x8"
    routing_weight_stage: Literal[1, 2] = 2
    decode: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.few = self._decode_plans()

    def run(self, module: ir.Operation, report: Report) -> None:
        """Plan every moe.experts of `module`; PassError where the activations asked for do not fit the input."""

        def plan(experts: moe.ExpertsOp, rewriter) -> None:
            if experts.x_scales is not None and self.activations == "bf16":
                raise PassError(
                    experts, "x is pre-quantised (f4E2M1FN); plan it with activations=mxfp4, or pass bf16 or f16"
                )
            with rewriter.ip, experts.location:
                rewriter.replace_op(experts, [self._planned(experts)])

        patterns = RewritePatternSet()
        patterns.add(moe.ExpertsOp, plan)
        walk_and_apply_patterns(module, patterns.freeze())

    def _decode_plans(self) -> "list[tuple[int, PlanExperts]]":
        """(rows an expert, the plan up to that) for each of `decode`; OptionError where it is malformed."""
        plans: list[tuple[int, PlanExperts]] = []
        for item in [] if self.decode == "none" else self.decode.split(","):
            match item.split(":"):
                case [rows, *chosen] if rows.isdigit() and int(rows) and len(chosen) in (1, 2):
                    values = dict(zip(("block", "stages"), chosen, strict=False))
                    kinds = self.options()
                    options = {name: convert(self.name, name, kinds[name], value) for name, value in values.items()}
                    plans.append((int(rows), replace(self, decode="none", **options)))
                case _:
                    raise OptionError(
                        f"'{self.name}' option decode has '{item}'; write ROWS:BLOCK or ROWS:BLOCK:STAGES"
                    )
        limits = [limit for limit, _ in plans]
        if limits != sorted(set(limits)):
            raise OptionError(f"'{self.name}' option decode is '{self.decode}'; its rows must ascend")
        return plans

    def _planned(self, experts: moe.ExpertsOp) -> ir.Value:
        """One plan for every M, or those of `decode` in turn and this one beyond."""
        return self._from(experts, [*self.few, (0, self)])

    def _from(self, experts: moe.ExpertsOp, plans: "list[tuple[int, PlanExperts]]") -> ir.Value:
        (rows, plan), *others = plans
        if not others:
            return Plan(plan, experts).build()
        limit = rows * global_experts(experts) // moe.size(experts.ids, 1)
        tokens = tensor_dialect.dim(experts.ids, arith.constant(ir.IndexType.get(), 0))
        why = f"sort blocks of {plan.block} rows up to {limit} tokens, of {others[0][1].block} beyond"
        guard = kernel.alternatives(tokens, "tokens", limit, why, [experts.out.type])
        for region, some in zip(guard.regions, ([(0, plan)], others), strict=True):
            with ir.InsertionPoint(region.blocks.append()):
                kernel.create("kernel.yield", [self._from(experts, some)], [], {})
        return guard.results[0]


def global_experts(experts: moe.ExpertsOp) -> int:
    """E: all experts that ids may name, those of other devices too."""
    return moe.size(experts.gate_up if experts.expert_map is None else experts.expert_map, 0)


class Plan:
    """The ops of one moe.experts, built at the current insertion point."""

    def __init__(self, options: PlanExperts, experts: moe.ExpertsOp):
        self.options, self.experts = options, experts
        self.tokens, self.topk = moe.dims(experts.ids)[0], moe.size(experts.ids, 1)
        self.global_experts = global_experts(experts)
        self.hidden = moe.size(experts.x, 1)
        self.intermediate = moe.size(experts.gate_up, 1 if experts.weight_order.value == "nk" else 2) // 2
        self.rows = None if self.tokens is None else self.tokens * self.topk
        self.capacity = moe.capacity(self.tokens, self.topk, self.global_experts, options.block)

    def build(self) -> ir.Value:
        """The value that replaces the result of moe.experts."""
        experts, options = self.experts, self.options
        self.sort = self.sort_tokens()
        x, scales = self.quantised(experts.x) if experts.x_scales is None else (experts.x, experts.x_scales)
        scales = self.sorted_scales(scales, 1)
        rows = self.one_stage(x, scales) if options.stages == 1 else self.two_stages(x, scales)
        return moe.CombineOp(
            rows=rows,
            ids=experts.ids,
            num_tokens=experts.num_tokens,
            expert_map=experts.expert_map,
            out=experts.out.type,
        ).out

    def sort_tokens(self) -> moe.SortTokensOp:
        experts, block = self.experts, self.options.block
        i32 = ir.IntegerType.get_signless(32)
        blocks = None if self.capacity is None else -(-self.capacity // block)
        return moe.SortTokensOp(
            ids=experts.ids,
            weights=experts.weights,
            num_tokens=experts.num_tokens,
            expert_map=experts.expert_map,
            sorted_ids=tensor(i32, self.capacity),
            sorted_weights=tensor(ir.F32Type.get(), self.capacity),
            expert_ids=tensor(i32, blocks),
            num_valid=tensor(i32, 2),
            experts=integer(self.global_experts),
            block=integer(block),
        )

    def quantised(self, x: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """The codes and scales of `x`; `x` itself without scales where activations stay as they are."""
        if self.options.activations == "bf16":
            return x, None
        rows, columns = moe.dims(x)[0], moe.size(x, 1)
        quant = moe.QuantOp(
            x=x,
            codes=tensor(ir.Float4E2M1FNType.get(), rows, columns),
            scales=tensor(ir.Float8E8M0FNUType.get(), rows, columns // moe.GROUP),
            kind=word("per_1x32"),
            scale_mode=word(self.options.scale_mode),
        )
        return quant.codes, quant.scales

    def sorted_scales(self, scales: ir.Value | None, stage: int) -> ir.Value | None:
        """`scales` in the order of the sorted rows; None where there are none."""
        if scales is None:
            return None
        columns = moe.scale_columns(moe.size(scales, 1) * moe.GROUP, self.options.layout)
        return moe.SortScalesOp(
            scales=scales,
            sorted_ids=self.sort.sorted_ids,
            num_valid=self.sort.num_valid,
            sorted_scales=tensor(scales.type.element_type, moe.scale_rows(self.capacity), columns),
            stage=integer(stage),
            topk=integer(self.topk),
            layout=word(self.options.layout),
        ).sorted_scales

    def two_stages(self, x: ir.Value, scales: ir.Value | None) -> ir.Value:
        """gate_up and down, each with its routing weight where it belongs: f32 [R, H]."""
        experts = self.experts
        h = moe.GateUpOp(
            x=x,
            x_scales=scales,
            **self.sorted_list(),
            sorted_weights=self.routing_weights(1),
            weight=experts.gate_up,
            weight_scales=experts.gate_up_scales,
            bias=experts.gate_up_bias,
            out=tensor(ir.BF16Type.get(), self.rows, self.intermediate),
            **self.activation(),
        ).out
        h, scales = self.quantised(h)
        return moe.DownOp(
            x=h,
            x_scales=self.sorted_scales(scales, 2),
            **self.sorted_list(),
            sorted_weights=self.routing_weights(2),
            weight=experts.down,
            weight_scales=experts.down_scales,
            bias=experts.down_bias,
            out=tensor(ir.F32Type.get(), self.rows, self.hidden),
            weight_order=experts.weight_order,
        ).out

    def one_stage(self, x: ir.Value, scales: ir.Value | None) -> ir.Value:
        """Both products in one op: f32 [R, H]."""
        experts = self.experts
        return moe.ExpertsOneStageOp(
            x=x,
            x_scales=scales,
            **self.sorted_list(),
            sorted_weights=self.sort.sorted_weights,
            gate_up=experts.gate_up,
            gate_up_scales=experts.gate_up_scales,
            gate_up_bias=experts.gate_up_bias,
            down=experts.down,
            down_scales=experts.down_scales,
            down_bias=experts.down_bias,
            out=tensor(ir.F32Type.get(), self.rows, self.hidden),
            **self.activation(),
            scale_mode=word("none" if scales is None else self.options.scale_mode),
            routing_weight_stage=integer(self.options.routing_weight_stage),
        ).out

    def sorted_list(self) -> dict[str, ir.Value | ir.Attribute]:
        """What every product takes of the token sort."""
        return {
            "sorted_ids": self.sort.sorted_ids,
            "expert_ids": self.sort.expert_ids,
            "num_valid": self.sort.num_valid,
            "topk": integer(self.topk),
            "block": integer(self.options.block),
        }

    def activation(self) -> dict[str, ir.Attribute]:
        """What the first product takes over from moe.experts."""
        names = ("activation", "alpha", "limit", "gate_up_order", "weight_order")
        return {name: self.experts.attributes[name] for name in names}

    def routing_weights(self, stage: int) -> ir.Value | None:
        return self.sort.sorted_weights if stage == self.options.routing_weight_stage else None
