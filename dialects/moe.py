"""The `moe` dialect: a mixture-of-experts layer, from one op a block down to quantise, sort, multiply, combine.

Source of every rule: the behaviour contract (docs/contract.md). Shapes below use M tokens, H hidden, I intermediate,
E experts, k experts a token, S capacity of the sorted list, R = M*k routed rows. `?` is the token dimension.
"""

from torch_mlir import ir
from torch_mlir.dialects import ext

from moeloom.dialects.moe_rules import (
    ACTIVATIONS,
    BLOCKS,
    CODES,
    FLOATS,
    GATE_UP_ORDERS,
    GROUP,
    MAX_TOPK,
    QUANT_KINDS,
    SCALE_MODES,
    SCALES,
    SCORES,
    WEIGHT_ORDERS,
    capacity,
    expert_weight,
    global_experts,
    grouped,
    live_count,
    product_inputs,
    slots,
    sorted_scales,
    together,
    two_weights,
)

# Sizes that passes and lowerings ask of the dialect.
from moeloom.dialects.moe_rules import scale_columns as scale_columns
from moeloom.dialects.moe_rules import scale_rows as scale_rows
from moeloom.dialects.rules import checked, dims, element, element_type, one_of, rank, require, shape, static, width
from moeloom.dialects.rules import size as size

Tensor = ir.RankedTensorType


class Moe(ext.Dialect, name="moe"):
    """Mixture-of-experts programs."""


class EntryOp(Moe.Operation, name="entry"):
    """A callable of the artifact: `name` runs `program`, whose weights are found below `prefix` in the checkpoint.

    Identical layers share one program and have an entry each.

        "moe.entry"() {entry = "model.layers.0.mlp", program = @moe_block_0, prefix = "model.layers.0.mlp."} : () -> ()
    """

    entry: ir.StringAttr
    program: ir.FlatSymbolRefAttr
    prefix: ir.StringAttr


class RouteOp(Moe.Operation, name="route", traits=[ext.Pure]):
    """Choose the `topk` experts of each token and their weights (contract, section 2).

    Ties go to the lowest expert; rows >= `num_tokens` get id -1 and weight 0. `score` is softmax_after_topk,
    softmax_before_topk or sigmoid; `correction_bias` f32 [E] is added for the choice only; of `groups` groups of
    experts the `top_groups` with the largest sum of their two best scores take part. `renormalise` divides by the
    sum of the chosen weights; `scale` multiplies them at the end.

        %w, %ids = "moe.route"(%logits) {topk = 4 : i64, score = "softmax_after_topk", renormalise = false,
                   scale = 1.0 : f32, groups = 1 : i64, top_groups = 1 : i64,
                   operandSegmentSizes = array<i32: 1, 0, 0>}
                   : (tensor<?x128xbf16>) -> (tensor<?x4xf32>, tensor<?x4xi32>)
    """

    logits: ext.Operand[Tensor]
    correction_bias: ext.Operand[Tensor] | None
    num_tokens: ext.Operand[Tensor] | None
    weights: ext.Result[Tensor]
    ids: ext.Result[Tensor]
    topk: ir.IntegerAttr
    score: ir.StringAttr
    renormalise: ir.IntegerAttr
    scale: ir.FloatAttr
    groups: ir.IntegerAttr
    top_groups: ir.IntegerAttr

    @checked
    def verify_region_invariants(self) -> None:
        k, groups, top = self.topk.value, self.groups.value, self.top_groups.value
        rank("logits", self.logits, 2)
        element("logits", self.logits, "bf16", "f16", "f32")
        rows, experts = dims(self.logits)[0], static("logits", self.logits, 1)
        require(1 <= k <= min(MAX_TOPK, experts), f"topk is {k}; it must be 1 to {min(MAX_TOPK, experts)}")
        one_of(self, "score", *SCORES)
        shape("weights", self.weights, rows, k)
        element("weights", self.weights, "f32")
        shape("ids", self.ids, rows, k)
        element("ids", self.ids, "i32")
        shape("correction_bias", self.correction_bias, experts)
        element("correction_bias", self.correction_bias, "f32")
        live_count(self.num_tokens)
        require(groups >= 1 and experts % groups == 0, f"groups is {groups}; it must divide the {experts} experts")
        require(1 <= top <= groups, f"top_groups is {top}; it must be 1 to {groups}")


class ExpertsOp(Moe.Operation, name="experts", traits=[ext.Pure]):
    """All experts of one block: out[t] = sum over slots of weights[t,s] * expert[ids[t,s]](x[t]) (contract, section 5).

    Expert weights are f4E2M1FN [E, 2I, H] and [E, H, I] with f8E8M0FNU scales [E, 2I, H/32] and [E, H, I/32], or
    bf16/f16/f32 without scales, which `moe-quantize-weights` turns into the first form. `weight_order` is nk as above,
    or kn for weights stored [E, H, 2I] and [E, I, H] (unquantised only). Pre-quantised activations come as f4E2M1FN
    `x` with `x_scales` f8E8M0FNU [M, H/32]. `expert_map` is an i1 mask, or an i32 index map, over the global experts.
    """

    x: ext.Operand[Tensor]
    x_scales: ext.Operand[Tensor] | None
    ids: ext.Operand[Tensor]
    weights: ext.Operand[Tensor]
    gate_up: ext.Operand[Tensor]
    gate_up_scales: ext.Operand[Tensor] | None
    gate_up_bias: ext.Operand[Tensor] | None
    down: ext.Operand[Tensor]
    down_scales: ext.Operand[Tensor] | None
    down_bias: ext.Operand[Tensor] | None
    num_tokens: ext.Operand[Tensor] | None
    expert_map: ext.Operand[Tensor] | None
    out: ext.Result[Tensor]
    activation: ir.StringAttr
    alpha: ir.FloatAttr
    limit: ir.FloatAttr
    gate_up_order: ir.StringAttr
    weight_order: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "activation", *ACTIVATIONS)
        one_of(self, "gate_up_order", *GATE_UP_ORDERS)
        one_of(self, "weight_order", *WEIGHT_ORDERS)
        rank("x", self.x, 2)
        element("x", self.x, "bf16", "f16", CODES)
        rows, hidden = dims(self.x)[0], grouped("x", self.x)
        together("x_scales", self.x_scales, "x", self.x)
        shape("x_scales", self.x_scales, rows, hidden // GROUP)
        element("x_scales", self.x_scales, SCALES)
        slots("ids", self.ids, rows)
        shape("weights", self.weights, rows, width(self.ids))
        element("weights", self.weights, "f32")
        shape("out", self.out, rows, hidden)
        element("out", self.out, "bf16", "f16")
        two_weights(self, hidden)
        live_count(self.num_tokens)
        global_experts(self.expert_map)


class SortTokensOp(Moe.Operation, name="sort_tokens", traits=[ext.Pure]):
    """Group token slots by expert in blocks of `block` rows (contract, section 2).

    S = M*k + E*block - min(k, E). `sorted_ids` i32 [S] holds slot << 24 | token, padding k << 24 | L; `sorted_weights`
    f32 [S]; `expert_ids` i32 [ceil(S/block)] the local expert of each block; `num_valid` i32 [2] the padded rows in use
    and L. Nothing beyond num_valid[0] is defined.
    """

    ids: ext.Operand[Tensor]
    weights: ext.Operand[Tensor]
    num_tokens: ext.Operand[Tensor] | None
    expert_map: ext.Operand[Tensor] | None
    sorted_ids: ext.Result[Tensor]
    sorted_weights: ext.Result[Tensor]
    expert_ids: ext.Result[Tensor]
    num_valid: ext.Result[Tensor]
    experts: ir.IntegerAttr
    block: ir.IntegerAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "block", *BLOCKS)
        experts, block = self.experts.value, self.block.value
        require(experts >= 1, f"experts is {experts}; there must be at least one")
        k = slots("ids", self.ids, None)
        tokens = dims(self.ids)[0]
        shape("weights", self.weights, tokens, k)
        element("weights", self.weights, "f32")
        live_count(self.num_tokens)
        global_experts(self.expert_map)
        shape("expert_map", self.expert_map, experts)
        rows = capacity(tokens, k, experts, block)
        shape("sorted_ids", self.sorted_ids, rows)
        element("sorted_ids", self.sorted_ids, "i32")
        shape("sorted_weights", self.sorted_weights, rows)
        element("sorted_weights", self.sorted_weights, "f32")
        shape("expert_ids", self.expert_ids, None if rows is None else -(-rows // block))
        element("expert_ids", self.expert_ids, "i32")
        shape("num_valid", self.num_valid, 2)
        element("num_valid", self.num_valid, "i32")


class QuantOp(Moe.Operation, name="quant", traits=[ext.Pure]):
    """Quantise activations. per_1x32 is MXFP4: each run of 32 values along the last axis shares one e8m0 scale.

        %codes, %scales = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
                          : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)

    per_token, per_tensor and per_1x128 (f8E4M3FN codes, f32 scales, scale_mode "none") pass every pass unchanged.
    """

    x: ext.Operand[Tensor]
    codes: ext.Result[Tensor]
    scales: ext.Result[Tensor]
    kind: ir.StringAttr
    scale_mode: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "kind", *QUANT_KINDS)
        rank("x", self.x, 2)
        element("x", self.x, "bf16", "f16")
        kind, rows, columns = self.kind.value, dims(self.x)[0], static("x", self.x, 1)
        shape("codes", self.codes, rows, columns)
        if kind == "per_1x32":
            one_of(self, "scale_mode", *SCALE_MODES)
            shape("scales", self.scales, rows, grouped("x", self.x) // GROUP)
            element("scales", self.scales, SCALES)
            return element("codes", self.codes, CODES)
        one_of(self, "scale_mode", "none")
        element("codes", self.codes, "f8E4M3FN")
        element("scales", self.scales, "f32")
        if kind == "per_tensor":
            return shape("scales", self.scales, 1)
        if kind == "per_token":
            return shape("scales", self.scales, rows, 1)
        require(columns % 128 == 0, f"x has {columns} columns; per_1x128 needs a multiple of 128")
        return shape("scales", self.scales, rows, columns // 128)


class SortScalesOp(Moe.Operation, name="sort_scales", traits=[ext.Pure]):
    """Move row-major scales to expert order (contract, section 3). The payload stays in token order.

    The source row of a sorted row is its token in stage 1 and token*k+slot in stage 2. Layout tiled_32x8 pads the
    columns to 8 and the rows to 32; padding rows and columns are 0.

        %sorted = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 4 : i64,
                  layout = "tiled_32x8"}
                  : (tensor<?x90xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x96xf8E8M0FNU>
    """

    scales: ext.Operand[Tensor]
    sorted_ids: ext.Operand[Tensor]
    num_valid: ext.Operand[Tensor]
    sorted_scales: ext.Result[Tensor]
    stage: ir.IntegerAttr
    topk: ir.IntegerAttr
    layout: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        rank("scales", self.scales, 2)
        element("scales", self.scales, SCALES, "f32")
        sorted_scales(self, static("scales", self.scales, 1) * GROUP)
        element("sorted_scales", self.sorted_scales, element_type(self.scales))


class QuantSortOp(Moe.Operation, name="quant_sort", traits=[ext.Pure]):
    """quant per_1x32, then sort_scales, in one: scales go straight to their sorted place (contract, section 4).

    %codes, %sorted = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even",
                      stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
                      : (tensor<?x2880xbf16>, tensor<?xi32>, tensor<2xi32>)
                      -> (tensor<?x2880xf4E2M1FN>, tensor<?x96xf8E8M0FNU>)
    """

    x: ext.Operand[Tensor]
    sorted_ids: ext.Operand[Tensor]
    num_valid: ext.Operand[Tensor]
    codes: ext.Result[Tensor]
    sorted_scales: ext.Result[Tensor]
    kind: ir.StringAttr
    scale_mode: ir.StringAttr
    stage: ir.IntegerAttr
    topk: ir.IntegerAttr
    layout: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "kind", "per_1x32")
        one_of(self, "scale_mode", *SCALE_MODES)
        rank("x", self.x, 2)
        element("x", self.x, "bf16", "f16")
        columns = grouped("x", self.x)
        shape("codes", self.codes, dims(self.x)[0], columns)
        element("codes", self.codes, CODES)
        sorted_scales(self, columns)
        element("sorted_scales", self.sorted_scales, SCALES)


class GateUpOp(Moe.Operation, name="gate_up", traits=[ext.Pure]):
    """The first product and its activation: h[token*k+slot] = act(x[token] @ W1[expert].T + b1[expert]), rounded
    to bf16.

    `x` is bf16/f16 [M, H] (A16), or f4E2M1FN codes with sorted tiled scales (A4). `sorted_weights`, where given,
    multiplies the product before the bias (doweight_stage1). Rows no sorted row names are undefined.
    """

    x: ext.Operand[Tensor]
    x_scales: ext.Operand[Tensor] | None
    sorted_ids: ext.Operand[Tensor]
    expert_ids: ext.Operand[Tensor]
    num_valid: ext.Operand[Tensor]
    sorted_weights: ext.Operand[Tensor] | None
    weight: ext.Operand[Tensor]
    weight_scales: ext.Operand[Tensor] | None
    bias: ext.Operand[Tensor] | None
    out: ext.Result[Tensor]
    topk: ir.IntegerAttr
    block: ir.IntegerAttr
    activation: ir.StringAttr
    alpha: ir.FloatAttr
    limit: ir.FloatAttr
    gate_up_order: ir.StringAttr
    weight_order: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "activation", *ACTIVATIONS)
        one_of(self, "gate_up_order", *GATE_UP_ORDERS)
        hidden = product_inputs(self)
        rank("out", self.out, 2)
        element("out", self.out, "bf16")
        rows = 2 * static("out", self.out, 1)
        experts = expert_weight(self, "weight", self.weight, self.weight_scales, rows, hidden)
        shape("bias", self.bias, experts, rows)
        element("bias", self.bias, *FLOATS)


class DownOp(Moe.Operation, name="down", traits=[ext.Pure]):
    """The second product: out[token*k+slot] = weight * (h[token*k+slot] @ W2[expert].T + b2[expert]), f32.

    `sorted_weights` is left out where the routing weight was already applied. Rows no sorted row names are undefined.
    """

    x: ext.Operand[Tensor]
    x_scales: ext.Operand[Tensor] | None
    sorted_ids: ext.Operand[Tensor]
    expert_ids: ext.Operand[Tensor]
    num_valid: ext.Operand[Tensor]
    sorted_weights: ext.Operand[Tensor] | None
    weight: ext.Operand[Tensor]
    weight_scales: ext.Operand[Tensor] | None
    bias: ext.Operand[Tensor] | None
    out: ext.Result[Tensor]
    topk: ir.IntegerAttr
    block: ir.IntegerAttr
    weight_order: ir.StringAttr

    @checked
    def verify_region_invariants(self) -> None:
        intermediate = product_inputs(self)
        rank("out", self.out, 2)
        element("out", self.out, "f32")
        hidden = static("out", self.out, 1)
        experts = expert_weight(self, "weight", self.weight, self.weight_scales, hidden, intermediate)
        shape("bias", self.bias, experts, hidden)
        element("bias", self.bias, *FLOATS)


class ExpertsOneStageOp(Moe.Operation, name="experts_one_stage", traits=[ext.Pure]):
    """Both products in one launch: out[token*k+slot] f32, as gate_up, then (A4) per_1x32 of its result, then down.

    With quantised `x` the intermediate is quantised by `scale_mode` inside the kernel; with bf16/f16 `x` it is used
    as is and `scale_mode` is "none". `routing_weight_stage` is 1 (before the first bias) or 2.
    """

    x: ext.Operand[Tensor]
    x_scales: ext.Operand[Tensor] | None
    sorted_ids: ext.Operand[Tensor]
    expert_ids: ext.Operand[Tensor]
    num_valid: ext.Operand[Tensor]
    sorted_weights: ext.Operand[Tensor]
    gate_up: ext.Operand[Tensor]
    gate_up_scales: ext.Operand[Tensor] | None
    gate_up_bias: ext.Operand[Tensor] | None
    down: ext.Operand[Tensor]
    down_scales: ext.Operand[Tensor] | None
    down_bias: ext.Operand[Tensor] | None
    out: ext.Result[Tensor]
    topk: ir.IntegerAttr
    block: ir.IntegerAttr
    activation: ir.StringAttr
    alpha: ir.FloatAttr
    limit: ir.FloatAttr
    gate_up_order: ir.StringAttr
    weight_order: ir.StringAttr
    scale_mode: ir.StringAttr
    routing_weight_stage: ir.IntegerAttr

    @checked
    def verify_region_invariants(self) -> None:
        one_of(self, "activation", *ACTIVATIONS)
        one_of(self, "gate_up_order", *GATE_UP_ORDERS)
        one_of(self, "routing_weight_stage", 1, 2)
        hidden = product_inputs(self)
        if self.x_scales is None:
            one_of(self, "scale_mode", "none")
        else:
            one_of(self, "scale_mode", *SCALE_MODES)
        two_weights(self, hidden)
        shape("out", self.out, None, hidden)
        element("out", self.out, "f32")


class CombineOp(Moe.Operation, name="combine", traits=[ext.Pure]):
    """out[t] = sum over slots s, in slot order, of rows[t*k+s] without slots that have no expert; 0 where none is left.

    `ids`, `num_tokens` and `expert_map` are those of the sort, and say which slots have a row.
    """

    rows: ext.Operand[Tensor]
    ids: ext.Operand[Tensor]
    num_tokens: ext.Operand[Tensor] | None
    expert_map: ext.Operand[Tensor] | None
    out: ext.Result[Tensor]

    @checked
    def verify_region_invariants(self) -> None:
        rank("rows", self.rows, 2)
        element("rows", self.rows, "f32")
        k = slots("ids", self.ids, None)
        tokens = dims(self.ids)[0]
        columns = static("rows", self.rows, 1)
        shape("rows", self.rows, None if tokens is None else tokens * k, columns)
        shape("out", self.out, tokens, columns)
        element("out", self.out, "bf16", "f16")
        live_count(self.num_tokens)
        global_experts(self.expert_map)
