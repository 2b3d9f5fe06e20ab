"""The `moe` dialect: a mixture-of-experts layer, from one op a block down to quantise, sort, multiply, combine.

Source of every rule: the behaviour contract (docs/contract.md). Shapes below use M tokens, H hidden, I intermediate,
E experts, k experts a token, S capacity of the sorted list, R = M*k routed rows. `?` is the token dimension.
"""

from torch_mlir import ir
from torch_mlir.dialects import ext

Tensor = ir.RankedTensorType
GROUP = 32
SCALE_MODES = ("even", "floor", "ceil", "rceil")
QUANT_KINDS = ("per_1x32", "per_token", "per_tensor", "per_1x128")
ACTIVATIONS = ("silu", "swiglu", "gelu", "gelu_tanh")
GATE_UP_ORDERS = ("interleaved", "concatenated")
SCALE_LAYOUTS = ("tiled_32x8", "row_major")
SCORES = ("softmax_after_topk", "softmax_before_topk", "sigmoid")
BLOCKS = (16, 32, 64, 128)
MAX_TOPK = 255


class Moe(ext.Dialect, name="moe"):
    """Mixture-of-experts programs."""


class _Rules:
    """Collects what is wrong with one op; the first broken rule is reported at the op's location."""

    def __init__(self, op: ir.OpView):
        self.op, self.error = op, ""

    def require(self, holds: bool, message: str) -> "_Rules":
        if not holds and not self.error:
            self.error = message
        return self

    def one_of(self, name: str, allowed: tuple) -> "_Rules":
        found = self.op.attributes[name].value
        return self.require(found in allowed, f"{name} is {found!r}; it must be one of {', '.join(map(str, allowed))}")

    def element(self, name: str, value: ir.Value | None, *allowed: str) -> "_Rules":
        if value is None:
            return self
        found = str(value.type.element_type)
        return self.require(found in allowed, f"{name} has element type {found}; it must be {' or '.join(allowed)}")

    def rank(self, name: str, value: ir.Value | None, rank: int) -> "_Rules":
        if value is None:
            return self
        return self.require(value.type.rank == rank, f"{name} has rank {value.type.rank}; it must be {rank}")

    def shape(self, name: str, value: ir.Value | None, *wanted: int | None) -> "_Rules":
        """Static sizes must match; None accepts anything and a dynamic size matches everything."""
        if value is None or self.error:
            return self
        found = dims(value)
        fits = len(found) == len(wanted) and all(
            w is None or f is None or f == w for f, w in zip(found, wanted, strict=True)
        )
        text = "x".join("?" if w is None else str(w) for w in wanted)
        return self.require(fits, f"{name} is {value.type}; its shape must be {text}")

    def topk(self) -> "_Rules":
        k = self.op.attributes["topk"].value
        return self.require(1 <= k <= MAX_TOPK, f"topk is {k}; it must be 1 to {MAX_TOPK}")

    def block(self) -> "_Rules":
        return self.one_of("block", BLOCKS)

    def done(self) -> bool:
        if self.error:
            self.op.location.emit_error(f"'{self.op.OPERATION_NAME}' {self.error}")
        return not self.error


def dims(value: ir.Value) -> list[int | None]:
    """The shape of a ranked tensor, None where it is dynamic."""
    kind = value.type
    return [None if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)]


def width(value: ir.Value) -> int | None:
    """Size of the last axis."""
    return dims(value)[-1] if value.type.rank else None


def scale_columns(columns: int, layout: str) -> int:
    """Columns of a sorted scale tensor: padded to 8 when tiled."""
    groups = columns // GROUP
    return -(-groups // 8) * 8 if layout == "tiled_32x8" else groups


def capacity(tokens: int | None, topk: int, experts: int, block: int) -> int | None:
    """Rows S of the sorted list (contract, section 2); None where the number of tokens is not known."""
    return None if tokens is None else tokens * topk + experts * block - min(topk, experts)


def tile_rows(rows: int | None) -> int | None:
    """Rows of a sorted scale tensor: whole tiles of 32."""
    return None if rows is None else -(-rows // 32) * 32


def _grouped(rules: _Rules, name: str, columns: int | None) -> None:
    rules.require(columns is None or columns % GROUP == 0, f"{name}'s last axis ({columns}) is no multiple of {GROUP}")


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
    softmax_before_topk or sigmoid; `correction_bias` f32 [E] is added for the choice only; of `groups` groups of experts
    the `top_groups` with the largest sum of their two best scores take part. `renormalise` divides by the sum of the
    chosen weights; `scale` multiplies them at the end.

        %w, %ids = "moe.route"(%logits) {topk = 4 : i64, score = "softmax_after_topk", renormalise = false,
                   scale = 1.0 : f32, groups = 1 : i64, top_groups = 1 : i64,
                   operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x128xbf16>) -> (tensor<?x4xf32>, tensor<?x4xi32>)
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

    def verify_region_invariants(self) -> bool:
        k, groups, top = self.topk.value, self.groups.value, self.top_groups.value
        rules = _Rules(self).rank("logits", self.logits, 2).element("logits", self.logits, "bf16", "f16", "f32")
        rules.topk().one_of("score", SCORES)
        rules.shape("weights", self.weights, None, k).element("weights", self.weights, "f32")
        rules.shape("ids", self.ids, None, k).element("ids", self.ids, "i32")
        rules.element("correction_bias", self.correction_bias, "f32")
        rules.element("num_tokens", self.num_tokens, "i32").shape("num_tokens", self.num_tokens, 1)
        if rules.error:
            return rules.done()
        experts = width(self.logits)
        rules.shape("correction_bias", self.correction_bias, experts)
        rules.require(experts is None or k <= experts, f"topk ({k}) exceeds the {experts} experts there are to choose")
        rules.require(
            groups >= 1 and 1 <= top <= groups and (experts is None or experts % groups == 0),
            f"groups = {groups}, top_groups = {top} do not divide {experts} experts",
        )
        return rules.done()


class ExpertsOp(Moe.Operation, name="experts", traits=[ext.Pure]):
    """All experts of one block: out[t] = sum over slots of weights[t,s] * expert[ids[t,s]](x[t]) (contract, section 5).

    Expert weights are f4E2M1FN [E, 2I, H] and [E, H, I] with f8E8M0FNU scales [E, 2I, H/32] and [E, H, I/32], or bf16/f16/f32
    without scales, which `quantize-weights` turns into the first form. `weight_order` is nk as above, or kn for weights
    stored [E, H, 2I] and [E, I, H] (unquantised only). Pre-quantised activations come as f4E2M1FN `x` with `x_scales`
    f8E8M0FNU [M, H/32]. `expert_map` is an i1 mask, or an i32 index map, over the global experts.
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

    def verify_region_invariants(self) -> bool:
        rules = _Rules(self).one_of("activation", ACTIVATIONS).one_of("gate_up_order", GATE_UP_ORDERS)
        rules.one_of("weight_order", ("nk", "kn")).rank("x", self.x, 2).rank("gate_up", self.gate_up, 3)
        rules.element("x", self.x, "bf16", "f16", "f4E2M1FN")
        rules.rank("ids", self.ids, 2).element("ids", self.ids, "i32").element("weights", self.weights, "f32")
        if rules.error:
            return rules.done()
        packed = str(self.x.type.element_type) == "f4E2M1FN"
        rules.require(
            packed == (self.x_scales is not None),
            "x_scales goes with f4E2M1FN activations, and only with them",
        )
        hidden, k = width(self.x), width(self.ids)
        _grouped(rules, "x", hidden)
        rules.shape("weights", self.weights, None, k)
        rules.shape("out", self.out, None, hidden).element("out", self.out, "bf16", "f16")
        experts, a, b = dims(self.gate_up)
        nk = self.weight_order.value == "nk"
        rows, columns = (a, b) if nk else (b, a)
        rules.require(columns == hidden, f"gate_up multiplies {columns} columns; x has {hidden}")
        rules.require(rows is not None and rows % 2 == 0, f"gate_up has {rows} rows; gate and up need an even number")
        intermediate = (rows or 0) // 2
        _grouped(rules, "down", intermediate)
        _weight(rules, "gate_up", self.gate_up, self.gate_up_scales, (experts, rows, hidden), nk)
        _weight(rules, "down", self.down, self.down_scales, (experts, hidden, intermediate), nk)
        rules.shape("gate_up_bias", self.gate_up_bias, experts, rows).shape(
            "down_bias", self.down_bias, experts, hidden
        )
        _live_count_and_map(rules, self.num_tokens, self.expert_map)
        return rules.done()


def _weight(rules: _Rules, name: str, weight, scales, shape: tuple, nk: bool = True) -> None:
    experts, rows, columns = shape
    rules.shape(name, weight, *(shape if nk else (experts, columns, rows)))
    if rules.error:
        return
    packed = str(weight.type.element_type) == "f4E2M1FN"
    rules.element(name, weight, "f4E2M1FN", "bf16", "f16", "f32")
    rules.require(packed == (scales is not None), f"{name}_scales goes with f4E2M1FN {name}, and only with it")
    rules.require(nk or not packed, f'f4E2M1FN {name} must be stored with weight_order = "nk"')
    if scales is not None:
        rules.shape(f"{name}_scales", scales, experts, rows, columns // GROUP)
        rules.element(f"{name}_scales", scales, "f8E8M0FNU")


def _live_count_and_map(rules: _Rules, num_tokens, expert_map) -> None:
    rules.element("num_tokens", num_tokens, "i32").shape("num_tokens", num_tokens, 1)
    rules.rank("expert_map", expert_map, 1).element("expert_map", expert_map, "i1", "i32")


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

    def verify_region_invariants(self) -> bool:
        rules = _Rules(self).rank("ids", self.ids, 2).element("ids", self.ids, "i32").block()
        rules.rank("weights", self.weights, 2).element("weights", self.weights, "f32")
        rules.element("sorted_ids", self.sorted_ids, "i32").element("sorted_weights", self.sorted_weights, "f32")
        rules.element("expert_ids", self.expert_ids, "i32").element("num_valid", self.num_valid, "i32")
        if rules.error:
            return rules.done()
        k, experts, block = width(self.ids), self.experts.value, self.block.value
        rules.require(k is not None and 1 <= k <= MAX_TOPK, f"ids has {k} slots a token; it must be 1 to {MAX_TOPK}")
        rules.require(experts >= 1, f"experts is {experts}; there must be at least one")
        rules.shape("weights", self.weights, dims(self.ids)[0], k).shape("num_valid", self.num_valid, 2)
        _live_count_and_map(rules, self.num_tokens, self.expert_map)
        rules.shape("expert_map", self.expert_map, experts)
        tokens = dims(self.ids)[0]
        if tokens is not None and k is not None:
            rules.require(tokens < 1 << 24, f"{tokens} tokens do not fit the 24 bits of a sorted id")
            rows = capacity(tokens, k, experts, block)
            rules.shape("sorted_ids", self.sorted_ids, rows).shape("sorted_weights", self.sorted_weights, rows)
            rules.shape("expert_ids", self.expert_ids, -(-rows // block))
        return rules.done()


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

    def verify_region_invariants(self) -> bool:
        rules = _Rules(self).one_of("kind", QUANT_KINDS).rank("x", self.x, 2).element("x", self.x, "bf16", "f16")
        if rules.error:
            return rules.done()
        rows, columns = dims(self.x)
        if self.kind.value == "per_1x32":
            rules.one_of("scale_mode", SCALE_MODES)
            _mxfp4_codes(rules, self.x, self.codes)
            rules.shape("scales", self.scales, rows, columns // GROUP if columns else None)
            return rules.element("scales", self.scales, "f8E8M0FNU").done()
        rules.one_of("scale_mode", ("none",))
        groups = {"per_token": 1, "per_tensor": None, "per_1x128": columns // 128 if columns else None}[self.kind.value]
        if self.kind.value == "per_1x128":
            rules.require(columns is None or columns % 128 == 0, f"x's last axis ({columns}) is no multiple of 128")
        rules.shape("codes", self.codes, rows, columns).element("codes", self.codes, "f8E4M3FN")
        rules.element("scales", self.scales, "f32")
        if self.kind.value == "per_tensor":
            rules.shape("scales", self.scales, 1)
        else:
            rules.shape("scales", self.scales, rows, groups)
        return rules.done()


def _mxfp4_codes(rules: _Rules, x, codes) -> None:
    rows, columns = dims(x)
    _grouped(rules, "x", columns)
    rules.shape("codes", codes, rows, columns).element("codes", codes, "f4E2M1FN")


class SortScalesOp(Moe.Operation, name="sort_scales", traits=[ext.Pure]):
    """Move row-major scales to expert order (contract, section 3). The payload stays in token order.

    The source row of a sorted row is its token in stage 1 and token*k+slot in stage 2. Layout tiled_32x8 pads the columns
    to 8 and the rows to 32; padding rows and columns are 0.

        %sorted = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 4 : i64,
                  layout = "tiled_32x8"} : (tensor<?x90xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x96xf8E8M0FNU>
    """

    scales: ext.Operand[Tensor]
    sorted_ids: ext.Operand[Tensor]
    num_valid: ext.Operand[Tensor]
    sorted_scales: ext.Result[Tensor]
    stage: ir.IntegerAttr
    topk: ir.IntegerAttr
    layout: ir.StringAttr

    def verify_region_invariants(self) -> bool:
        rules = _Rules(self).rank("scales", self.scales, 2).element("scales", self.scales, "f8E8M0FNU", "f32")
        columns = width(self.scales) if not rules.error else None
        return _sorted_scales(rules, columns * GROUP if columns else None)


def _sorted_scales(rules: _Rules, columns: int | None) -> bool:
    """The rules shared by sort_scales and quant_sort about their sorted result."""
    op = rules.op
    rules.one_of("stage", (1, 2)).topk().one_of("layout", SCALE_LAYOUTS)
    rules.rank("sorted_ids", op.sorted_ids, 1).element("sorted_ids", op.sorted_ids, "i32")
    rules.element("num_valid", op.num_valid, "i32").shape("num_valid", op.num_valid, 2)
    if not rules.error and columns:
        rules.shape("sorted_scales", op.sorted_scales, None, scale_columns(columns, op.layout.value))
    return rules.element("sorted_scales", op.sorted_scales, "f8E8M0FNU", "f32").done()


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

    def verify_region_invariants(self) -> bool:
        rules = _Rules(self).one_of("kind", ("per_1x32",)).one_of("scale_mode", SCALE_MODES)
        rules.rank("x", self.x, 2).element("x", self.x, "bf16", "f16")
        if rules.error:
            return rules.done()
        _mxfp4_codes(rules, self.x, self.codes)
        return _sorted_scales(rules.element("sorted_scales", self.sorted_scales, "f8E8M0FNU"), width(self.x))


class GateUpOp(Moe.Operation, name="gate_up", traits=[ext.Pure]):
    """The first product and its activation: h[token*k+slot] = act(x[token] @ W1[expert].T + b1[expert]), rounded to x's
    floating type (bf16 when x is quantised).

    `x` is bf16/f16 [M, H] (A16), or f4E2M1FN codes with sorted tiled scales (A4). `sorted_weights`, where given, multiplies
    the product before the bias (doweight_stage1). Rows no sorted row names are undefined.
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

    def verify_region_invariants(self) -> bool:
        rules = _product_rules(self).one_of("activation", ACTIVATIONS).one_of("gate_up_order", GATE_UP_ORDERS)
        if rules.error:
            return rules.done()
        rows, hidden = width(self.out), width(self.x)
        _weight(
            rules,
            "weight",
            self.weight,
            self.weight_scales,
            (dims(self.weight)[0], 2 * rows, hidden),
            _nk(self),
        )
        rules.shape("bias", self.bias, None, 2 * rows)
        return rules.element("out", self.out, "bf16", "f16").done()


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

    def verify_region_invariants(self) -> bool:
        rules = _product_rules(self)
        if rules.error:
            return rules.done()
        rows, columns = width(self.out), width(self.x)
        _weight(rules, "weight", self.weight, self.weight_scales, (dims(self.weight)[0], rows, columns), _nk(self))
        rules.shape("bias", self.bias, None, rows)
        return rules.element("out", self.out, "f32").done()


def _nk(op) -> bool:
    return op.weight_order.value == "nk"


def _product_rules(op) -> _Rules:
    """Rules of every expert product: its activations, its sorted list, its scales."""
    rules = _Rules(op).topk().block().one_of("weight_order", ("nk", "kn"))
    rules.rank("x", op.x, 2).element("x", op.x, "bf16", "f16", "f4E2M1FN", "f8E4M3FN").rank("out", op.out, 2)
    rules.rank("sorted_ids", op.sorted_ids, 1).element("sorted_ids", op.sorted_ids, "i32")
    rules.rank("expert_ids", op.expert_ids, 1).element("expert_ids", op.expert_ids, "i32")
    rules.element("num_valid", op.num_valid, "i32").shape("num_valid", op.num_valid, 2)
    rules.element("sorted_weights", op.sorted_weights, "f32")
    if rules.error:
        return rules
    quantised = str(op.x.type.element_type).startswith("f4") or str(op.x.type.element_type).startswith("f8")
    rules.require(
        quantised == (op.x_scales is not None), "x_scales goes with quantised activations, and only with them"
    )
    _grouped(rules, "x", width(op.x))
    return rules


class ExpertsOneStageOp(Moe.Operation, name="experts_one_stage", traits=[ext.Pure]):
    """Both products in one launch: out[token*k+slot] f32, as gate_up, then (A4) per_1x32 of its result, then down.

    With quantised `x` the intermediate is quantised by `scale_mode` inside the kernel; with bf16/f16 `x` it is used as is
    and `scale_mode` is "none". `routing_weight_stage` is 1 (before the first bias) or 2.
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

    def verify_region_invariants(self) -> bool:
        rules = _product_rules(self).one_of("activation", ACTIVATIONS).one_of("gate_up_order", GATE_UP_ORDERS)
        rules.one_of("routing_weight_stage", (1, 2)).rank("gate_up", self.gate_up, 3).rank("down", self.down, 3)
        if rules.error:
            return rules.done()
        rules.one_of("scale_mode", SCALE_MODES if self.x_scales is not None else ("none",))
        hidden = width(self.x)
        experts, rows = dims(self.gate_up)[0], dims(self.gate_up)[1 if _nk(self) else 2]
        _grouped(rules, "down", rows // 2)
        _weight(rules, "gate_up", self.gate_up, self.gate_up_scales, (experts, rows, hidden), _nk(self))
        _weight(rules, "down", self.down, self.down_scales, (experts, hidden, rows // 2), _nk(self))
        rules.shape("gate_up_bias", self.gate_up_bias, experts, rows).shape(
            "down_bias", self.down_bias, experts, hidden
        )
        return rules.shape("out", self.out, None, hidden).element("out", self.out, "f32").done()


class CombineOp(Moe.Operation, name="combine", traits=[ext.Pure]):
    """out[t] = sum over slots s, in slot order, of rows[t*k+s], leaving out slots without an expert; 0 where none is left.

    `ids`, `num_tokens` and `expert_map` are those of the sort, and say which slots have a row.
    """

    rows: ext.Operand[Tensor]
    ids: ext.Operand[Tensor]
    num_tokens: ext.Operand[Tensor] | None
    expert_map: ext.Operand[Tensor] | None
    out: ext.Result[Tensor]

    def verify_region_invariants(self) -> bool:
        rules = _Rules(self).rank("rows", self.rows, 2).element("rows", self.rows, "f32")
        rules.rank("ids", self.ids, 2).element("ids", self.ids, "i32").rank("out", self.out, 2)
        rules.element("out", self.out, "bf16", "f16")
        _live_count_and_map(rules, self.num_tokens, self.expert_map)
        if rules.error:
            return rules.done()
        return rules.shape("out", self.out, dims(self.ids)[0], width(self.rows)).done()
