"""What every kernel template computes, by the reference (runtime/reference.py): sums are float64, rounded only where
docs/contract.md rounds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moeloom.runtime import reference
from moeloom.runtime.pack import unpack_expert, unpack_expert_stream
from moeloom.runtime.stream import LAST_ROW

Params = Mapping[str, Any]
MX = "f4E2M1FN"
"""The element of activations that come as codes and scales."""


class Weight:
    """A packed weight operand; `Weight(...)[e]` is expert `e` with its rows in the checkpoint's order."""

    def __init__(self, packed: Tensor, recipe: Mapping[str, Any] | None):
        self.recipe = recipe or {"kind": "as_is"}
        self.packed, self.kind, self.rows = packed, self.recipe["kind"], self.recipe.get("rows", "plain")

    def __getitem__(self, e: int) -> Tensor:
        return unpack_expert(self.recipe, self.packed[e])

    def parts(self) -> "tuple[Weight, ...]":
        """A stream as payload and scales; any other weight as itself."""
        return (StreamPart(self, 0), StreamPart(self, 1)) if self.kind == "stream" else (self,)


class StreamPart(Weight):
    """The payload (0) or the scales (1) of a stream."""

    def __init__(self, stream: Weight, part: int):
        super().__init__(stream.packed, stream.recipe)
        self._part = part

    def __getitem__(self, e: int) -> Tensor:
        return unpack_expert_stream(self.recipe, self.packed[e])[self._part]


def _optional(params: Params, names: Sequence[str], operands: list[Any]) -> list[Any]:
    """`operands` with None where params[name], one for each name, says that the kernel has none."""
    rest = iter(operands)
    return [next(rest) if params[name] not in (False, "none") else None for name in names]


def _count(num_tokens: Tensor | None) -> int | None:
    return None if num_tokens is None else int(num_tokens[0])


def _expert_map(params: Params, operand: Tensor | None) -> Tensor | None:
    return operand.bool() if params["map"] == "mask" and operand is not None else operand


def _router(params: Params, operands: list[Any]) -> Tensor:
    x, weight, *bias = (value.packed if isinstance(value, Weight) else value for value in operands)
    return reference.router(x, weight, *bias)


def _route(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    bias, num_tokens = _optional(params, ("has_bias", "has_num_tokens"), operands[1:])
    options = {name: params[name] for name in ("renormalise", "scale", "groups", "top_groups")}
    correction = bias.packed if isinstance(bias, Weight) else bias
    return reference.route(
        operands[0],
        params["topk"],
        params["score"],
        correction_bias=correction,
        num_tokens=_count(num_tokens),
        **options,
    )


def _sort_tokens(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    num_tokens, expert_map = _optional(params, ("has_num_tokens", "map"), operands[2:])
    chosen = _expert_map(params, expert_map)
    ids, weights = operands[:2]
    lists = reference.sort_tokens(ids, weights, params["experts"], params["block"], _count(num_tokens), chosen)
    if not params.get("has_slot_rows"):
        return lists
    return *lists, slot_rows(lists, params["block"], ids.shape)


def slot_rows(lists: Sequence[Tensor], block: int, shape: torch.Size) -> Tensor:
    """The GPU's i32 [M, k] beside a token sort's lists: the sorted row of each slot, LAST_ROW more for the last one of
    an expert, -1 for none."""
    tokens, topk = shape
    rows = reference.source_rows(lists[0], lists[3], 2, topk)
    place = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    experts = lists[2][place // block]
    is_last = torch.ones_like(rows, dtype=torch.bool)
    is_last[:-1] = (rows[1:] < 0) | (experts[1:] != experts[:-1])
    out = torch.full((tokens * topk,), -1, dtype=torch.int32, device=rows.device)
    out[rows[rows >= 0]] = (place + is_last.int() * LAST_ROW)[rows >= 0]
    return out.view(shape)


def _route_sort(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    weights, ids = _route(params, operands)
    count = operands[-1:] if params["counted"] else []
    sort = {**params, "map": "none", "has_num_tokens": params["counted"]}
    return weights, ids, *_sort_tokens(sort, [ids, weights, *count])


def _sort_scatter(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    """The last phase of a token sort makes the lists; what the phases before it counted is not needed here."""
    ids, weights, _, _, *rest = operands
    return _sort_tokens(params, [ids, weights, *rest])


def _quant(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    return reference.quantise(operands[0], params["scale_mode"])


def _sort_scales(params: Params, operands: list[Any]) -> Tensor:
    scales, sorted_ids, num_valid = operands
    return reference.sort_scales(scales, sorted_ids, num_valid, params["stage"], params["topk"], params["layout"])


def _quant_sort(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    codes, scales = _quant(params, operands)
    listed, num_valid = operands[-2:]
    sorted_ids = listed if listed.dim() == 1 else _sorted_ids(listed, num_valid)
    return codes, _sort_scales(params, [scales, sorted_ids, num_valid])


def _sorted_ids(slot_rows: Tensor, num_valid: Tensor) -> Tensor:
    """The entries in use of the sorted list beside which a GPU's `slot_rows` were made."""
    used, live = (int(value) for value in num_valid)
    topk = slot_rows.shape[1]
    sorted_ids = torch.full((used,), topk << reference.SLOT_SHIFT | live, dtype=torch.int32, device=slot_rows.device)
    token, slot = (slot_rows[:live] >= 0).nonzero(as_tuple=True)
    sorted_ids[(slot_rows[token, slot] % LAST_ROW).long()] = (slot << reference.SLOT_SHIFT | token).int()
    return sorted_ids


def _sort_quant(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    *listed, x = operands
    lists = _sort_tokens(params, listed)
    return *lists, *_quant_sort(params, [x, lists[0], lists[3]])


def _expand(params: Params, operands: list[Any]) -> Tensor:
    codes, scales, sorted_ids, num_valid = operands
    codes, scales = codes.view(torch.uint8), scales.view(torch.uint8)
    if params["layout"] == "tiled_32x8":
        scales = untile(scales)
    rows = reference.source_rows(sorted_ids, num_valid, params["stage"], params["topk"])
    live = rows >= 0
    groups = codes.shape[1] // (reference.GROUP // 2)
    out = torch.full((codes.shape[0], params["columns"]), torch.nan, dtype=torch.float64, device=codes.device)
    out[rows[live]] = reference.dequantise(codes[rows[live]], scales[: len(rows), :groups][live])
    return out


def _fake_quant(params: Params, operands: list[Any]) -> Tensor:
    return reference.dequantise(*_quant(params, operands))


def untile(tiled: Tensor) -> Tensor:
    """The inverse of `reference.tile_scales`."""
    height, width = tiled.shape
    tiles = tiled.view(height // 32, width // 8, 4, 16, 2, 2)
    return tiles.permute(0, 5, 3, 1, 4, 2).reshape(height, width)


def _float_dtype(name: str) -> torch.dtype:
    return torch.float16 if name == "f16" else torch.bfloat16


def _experts(params: Params, sorted_ids: Tensor, expert_ids: Tensor, num_valid: Tensor) -> list[tuple[int, Tensor]]:
    """Each expert with a token, and the rows token*k + slot that it computes."""
    rows = reference.source_rows(sorted_ids, num_valid, 2, params["topk"])
    owner = expert_ids[: len(rows) // params["block"]].repeat_interleave(params["block"])
    return [(e, rows[(owner == e) & (rows >= 0)]) for e in owner.unique().tolist()]


def _sorted_share(params: Params, sorted_ids: Tensor, num_valid: Tensor, weights: Tensor, rows: int) -> Tensor:
    """Routing weights by row token*k + slot, float64 [rows, 1]."""
    source = reference.source_rows(sorted_ids, num_valid, 2, params["topk"])
    share = torch.zeros(rows, 1, dtype=torch.float64, device=weights.device)
    share[source[source >= 0], 0] = weights[: len(source)][source >= 0].double()
    return share


def _product(x: Tensor, weight: Weight, scales: Weight, e: int) -> Tensor:
    return x.double() @ reference.dequantise(weight[e], scales[e]).T


def _activations(params: Params, operands: list[Any], stage: int) -> tuple[Tensor, list[Any]]:
    """What a product multiplies, and its other operands: x as it is, or codes with their sorted scales as values."""
    x, *rest = operands
    if params.get("routes", "none") != "none":
        rest = rest[1 + params["has_num_tokens"] :]  # logits say what the lists do
    mode = params.get("quantise", "none")
    if mode != "none":
        return reference.dequantise(*reference.quantise(x, mode)), rest
    if params["x"] != MX:
        return x, rest
    x_scales, sorted_ids, _, num_valid, *_ = rest
    local = {**params, "columns": 2 * x.shape[1], "stage": stage}
    return _expand(local, [x, x_scales, sorted_ids, num_valid]), rest[1:]


def _gate_up(params: Params, operands: list[Any]) -> Tensor | tuple[Tensor, Tensor]:
    """Hidden rows; where the kernel quantises them, codes and sorted scales."""
    x, rest = _activations(params, operands, 1)
    hidden = _hidden(params, x, rest)
    if params.get("requantize", "none") == "none":
        return hidden
    codes, scales = reference.quantise(hidden, params["requantize"])
    sorted_ids, _, num_valid = rest[:3]
    return codes, reference.sort_scales(scales, sorted_ids, num_valid, 2, params["topk"], params["layout"])


def _routed_gate_up(params: Params, operands: list[Any]) -> tuple[Tensor, ...]:
    """Weights, ids, sorted list and hidden rows."""
    x, logits, *rest = operands
    count, rest = rest[: params["has_num_tokens"]], rest[params["has_num_tokens"] :]
    router = {"has_bias": False, "groups": 1, "top_groups": 1, "has_slot_rows": False}
    weights, ids, *lists = _route_sort({**params, **router}, [logits, *count])
    x, _ = _activations(params, [x], 1)
    sorted_ids, _, expert_ids, num_valid = lists
    return weights, ids, *lists, _hidden(params, x, [sorted_ids, expert_ids, num_valid, *rest])


def _hidden(params: Params, x: Tensor, operands: list[Any]) -> Tensor:
    sorted_ids, expert_ids, num_valid, *rest = operands
    weights, (weight, scales), bias = _weight_operands(params, rest)
    topk = params["topk"]
    shape = (x.shape[0] * topk, params["intermediate"])
    out = torch.full(shape, torch.nan, dtype=torch.bfloat16, device=x.device)
    share = None if weights is None else _sorted_share(params, sorted_ids, num_valid, weights, out.shape[0])
    for e, rows in _experts(params, sorted_ids, expert_ids, num_valid):
        product = _product(x[rows // topk], weight, scales, e)
        product = product if share is None else product * share[rows]
        product = product if bias is None else product + bias[e].double()
        gate, up = (product[:, 0::2], product[:, 1::2]) if weight.rows.endswith("interleaved") else product.chunk(2, -1)
        hidden = reference.activate(gate, up, params["activation"], params["alpha"], params["limit"])
        out[rows] = hidden.to(out.dtype)
    return out


def _down(params: Params, operands: list[Any]) -> Tensor:
    """Rows of experts; a GPU's partial sums come added up."""
    return _rows(params, *_activations(params, operands, 2))


def _rows(params: Params, x: Tensor, operands: list[Any]) -> Tensor:
    sorted_ids, expert_ids, num_valid, *rest = operands
    weights, (weight, scales), bias = _weight_operands(params, rest)
    out = torch.zeros(x.shape[0], params["hidden"], dtype=torch.float64, device=x.device)
    for e, rows in _experts(params, sorted_ids, expert_ids, num_valid):
        product = _product(x[rows], weight, scales, e)
        out[rows] = product if bias is None else product + bias[e].double()
    return out if weights is None else out * _sorted_share(params, sorted_ids, num_valid, weights, out.shape[0])


def _weight_operands(params: Params, rest: list[Any]) -> tuple[Tensor | None, tuple[Weight, Weight], Weight | None]:
    given = [part for operand in rest for part in (operand.parts() if isinstance(operand, Weight) else (operand,))]
    weights, payload, scales, bias = _optional(
        {**params, "payload": True, "scales": True}, ("has_weights", "payload", "scales", "has_bias"), given
    )
    return weights, (payload, scales), bias


def _experts_one_stage(params: Params, operands: list[Any]) -> Tensor:
    x, others = _activations(params, operands, 1)
    sorted_ids, expert_ids, num_valid, sorted_weights, *rest = others
    names = ("payload", "scales", "has_gate_up_bias", "payload", "scales", "has_down_bias")
    w1, s1, b1, w2, s2, b2 = _optional({**params, "payload": True, "scales": True}, names, rest)
    lists = [sorted_ids, expert_ids, num_valid]
    early = params["routing_weight_stage"] == 1

    def stage(first: bool, x: Tensor, weight: Weight, scales: Weight, bias: Weight | None) -> Tensor:
        weighted = early == first
        local = {**params, "has_weights": weighted, "has_bias": bias is not None}
        given = [*([sorted_weights] if weighted else []), weight, scales, *([] if bias is None else [bias])]
        return (_hidden if first else _rows)(local, x, [*lists, *given])

    hidden = stage(True, x, w1, s1, b1)
    if params["requantize"] != "none":
        live = ~hidden.isnan().all(-1)
        wide = hidden.double()
        wide[live] = reference.dequantise(*reference.quantise(hidden[live], params["requantize"]))
        hidden = wide
    return stage(False, hidden, w2, s2, b2)


def _combine(params: Params, operands: list[Any]) -> Tensor:
    rows, ids = operands[:2]
    num_tokens, expert_map = _optional(params, ("has_num_tokens", "map"), operands[2:])
    chosen = _expert_map(params, expert_map)
    local = reference.local_experts(ids, params["experts"], _count(num_tokens), chosen)
    grouped = rows.view(*ids.shape, params["columns"]).masked_fill((local < 0).unsqueeze(-1), 0)
    return grouped.sum(1).to(_float_dtype(params["out"]))


TEMPLATES: dict[str, Callable[[Params, list[Any]], Any]] = {
    "router": _router,
    "route": _route,
    "route_sort": _route_sort,
    "sort_tokens": _sort_tokens,
    "sort_quant": _sort_quant,
    "sort_count": lambda params, operands: (None,),
    "sort_scan": lambda params, operands: (None, None),
    "sort_scatter": _sort_scatter,
    "quant": _quant,
    "sort_scales": _sort_scales,
    **dict.fromkeys(("quant_sort", "quant_sort_sm_90"), _quant_sort),
    "expand": _expand,
    "fake_quant": _fake_quant,
    "gate_up": _gate_up,
    "down": _down,
    "decode_gate_up": _gate_up,
    "decode_routed_gate_up": _routed_gate_up,
    "decode_down": _down,
    "prefill_gate_up": _gate_up,
    "prefill_down": _down,
    "experts_one_stage": _experts_one_stage,
    "combine": _combine,
}
