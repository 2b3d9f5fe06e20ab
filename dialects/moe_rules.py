"""What several ops of the `moe` dialect share: names of modes and layouts, sizes, and rules."""

from torch_mlir import ir

from moeloom.dialects.rules import dims, element, element_type, one_of, rank, require, shape, static

GROUP = 32
SCALE_MODES = ("even", "floor", "ceil", "rceil")
QUANT_KINDS = ("per_1x32", "per_token", "per_tensor", "per_1x128")
ACTIVATIONS = ("silu", "swiglu", "gelu", "gelu_tanh")
GATE_UP_ORDERS = ("interleaved", "concatenated")
WEIGHT_ORDERS = ("nk", "kn")
SCALE_LAYOUTS = ("tiled_32x8", "row_major")
SCORES = ("softmax_after_topk", "softmax_before_topk", "sigmoid")
BLOCKS = (8, 16, 32, 64, 128, 144)
"""Rows of a sort block. 144 are for experts of about 128 tokens, of which half have a few more."""
MAX_TOPK = 255
# A sorted id holds the token in its low 24 bits.
MAX_TOKENS = 1 << 24
# Rows and columns of a scale tile.
TILE = (32, 8)
CODES, SCALES = "f4E2M1FN", "f8E8M0FNU"
FLOATS = ("bf16", "f16", "f32")


def capacity(tokens: int | None, topk: int, experts: int, block: int) -> int | None:
    """Rows S of the sorted list (contract, section 2); None where the number of tokens is not known."""
    return None if tokens is None else tokens * topk + experts * block - min(topk, experts)


def scale_rows(rows: int | None) -> int | None:
    """Rows of a sorted scale tensor: whole tiles, whatever the layout."""
    return None if rows is None else -(-rows // TILE[0]) * TILE[0]


def scale_columns(columns: int, layout: str) -> int:
    """Columns of a sorted scale tensor of `columns` values: padded to whole tiles where it is tiled."""
    groups = columns // GROUP
    return -(-groups // TILE[1]) * TILE[1] if layout == "tiled_32x8" else groups


def slots(name: str, ids: ir.Value, tokens: int | None) -> int:
    """The rules of expert ids: i32 [M, k]; returns k."""
    shape(name, ids, tokens, None)
    element(name, ids, "i32")
    k, count = static(name, ids, 1), dims(ids)[0]
    require(1 <= k <= MAX_TOPK, f"{name} has {k} slots a token; it must be 1 to {MAX_TOPK}")
    require(count is None or count < MAX_TOKENS, f"{name} has {count} tokens; there must be fewer than {MAX_TOKENS}")
    return k


def live_count(num_tokens: ir.Value | None) -> None:
    """The rules of a live-token count: i32 [1]."""
    shape("num_tokens", num_tokens, 1)
    element("num_tokens", num_tokens, "i32")


def global_experts(expert_map: ir.Value | None) -> None:
    """The rules of an expert mask (i1) or index map (i32) over the global experts."""
    if expert_map is not None:
        rank("expert_map", expert_map, 1)
        element("expert_map", expert_map, "i1", "i32")
        static("expert_map", expert_map, 0)


def grouped(name: str, value: ir.Value) -> int:
    """The columns of a tensor whose last axis consists of whole groups."""
    columns = static(name, value, 1)
    require(columns % GROUP == 0, f"{name} has {columns} columns; they must be a multiple of {GROUP}")
    return columns


def together(scales_name: str, scales: ir.Value | None, name: str, codes: ir.Value) -> None:
    """Codes come with scales, and values without."""
    quantised = element_type(codes) in (CODES, "f8E4M3FN")
    found = f"{name} is {element_type(codes)}, with{'' if scales is not None else 'out'} {scales_name}"
    require(quantised == (scales is not None), f"{found}; {scales_name} goes with quantised {name}, and only with it")


def sorted_scales(op: ir.OpView, columns: int) -> None:
    """The rules of scales in expert order, for `columns` quantised values a row."""
    one_of(op, "stage", 1, 2)
    topk(op)
    one_of(op, "layout", *SCALE_LAYOUTS)
    sorted_rows(op)
    rows = scale_rows(dims(op.sorted_ids)[0])
    shape("sorted_scales", op.sorted_scales, rows, scale_columns(columns, op.layout.value))


def topk(op: ir.OpView) -> None:
    k = op.attributes["topk"].value
    require(1 <= k <= MAX_TOPK, f"topk is {k}; it must be 1 to {MAX_TOPK}")


def sorted_rows(op: ir.OpView) -> None:
    """The rules of a sorted list, as every consumer takes it."""
    rank("sorted_ids", op.sorted_ids, 1)
    element("sorted_ids", op.sorted_ids, "i32")
    shape("num_valid", op.num_valid, 2)
    element("num_valid", op.num_valid, "i32")


def product_inputs(op: ir.OpView) -> int:
    """The rules of what an expert product reads besides its weights; the columns of x."""
    topk(op)
    one_of(op, "block", *BLOCKS)
    one_of(op, "weight_order", *WEIGHT_ORDERS)
    rank("x", op.x, 2)
    element("x", op.x, "bf16", "f16", CODES, "f8E4M3FN")
    columns = grouped("x", op.x)
    together("x_scales", op.x_scales, "x", op.x)
    rank("x_scales", op.x_scales, 2)
    sorted_rows(op)
    rank("expert_ids", op.expert_ids, 1)
    element("expert_ids", op.expert_ids, "i32")
    rank("sorted_weights", op.sorted_weights, 1)
    element("sorted_weights", op.sorted_weights, "f32")
    return columns


def two_weights(op: ir.OpView, hidden: int) -> None:
    """The rules of gate_up and down with their scales and biases."""
    rank("gate_up", op.gate_up, 3)
    rows = static("gate_up", op.gate_up, 1 if op.weight_order.value == "nk" else 2)
    require(rows % (2 * GROUP) == 0, f"gate_up has {rows} rows; gate and up need a multiple of {GROUP} each")
    experts = expert_weight(op, "gate_up", op.gate_up, op.gate_up_scales, rows, hidden)
    shape("gate_up_bias", op.gate_up_bias, experts, rows)
    element("gate_up_bias", op.gate_up_bias, *FLOATS)
    shape("down", op.down, experts, None, None)
    expert_weight(op, "down", op.down, op.down_scales, hidden, rows // 2)
    shape("down_bias", op.down_bias, experts, hidden)
    element("down_bias", op.down_bias, *FLOATS)


def expert_weight(op: ir.OpView, name: str, weight: ir.Value, scales: ir.Value | None, rows: int, columns: int) -> int:
    """The rules of a weight [E, rows, columns] (nk) or [E, columns, rows] (kn); the number of experts."""
    order = op.attributes["weight_order"].value
    element(name, weight, CODES, *FLOATS)
    shape(name, weight, None, *((rows, columns) if order == "nk" else (columns, rows)))
    experts = static(name, weight, 0)
    together(f"{name}_scales", scales, name, weight)
    if scales is not None:
        require(order == "nk", f"{name} is {CODES} in weight_order {order}; it must be nk")
        shape(f"{name}_scales", scales, experts, rows, columns // GROUP)
        element(f"{name}_scales", scales, SCALES)
    return experts
