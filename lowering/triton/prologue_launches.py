"""route and sort_tokens -> launches: one for both, or one and then one or three. The sort's may quantise."""

from collections.abc import Sequence

from torch_mlir import ir

from moeloom.dialects import moe
from moeloom.lowering import sizes
from moeloom.lowering.function import FunctionLowering, Results, Routed
from moeloom.lowering.operands import (
    Params,
    SortSizes,
    mark_sort,
    placement,
    route_operands,
    sort_params,
    sort_results,
)
from moeloom.lowering.triton.decode_launches import (
    ROUTED_TOKENS,
    decode_gate_up,
    gate_up_result,
    product_to_join,
    routed_gate_up,
)
from moeloom.lowering.triton.quant_launches import (
    LISTS,
    column_tiles,
    fused_params,
    fused_results,
    mark_layout,
    quant_sort,
)


def lower_route(lower: FunctionLowering, op: moe.RouteOp) -> list[ir.Value]:
    """Routing; for few tokens together with the token sort that reads it, and with gate_up where that can be."""
    sort = _sort_to_join(lower, op)
    if sort is None:
        return _route(lower, op)
    site = _site_to_join(lower, sort, op)
    own, lists = _lists(lower, sort, None)  # behind route_sort the site is a launch that asks for slot_rows
    product = None if site is not None or own["has_slot_rows"] else product_to_join(lower, op, sort)
    shape = (sizes.tokens(), op.topk.value)
    results: Results = [(op.weights.type, shape), (op.ids.type, shape), *lists]
    if product is None:
        made = _route_and_sort(lower, op, sort, own, lists, results, site)
    else:
        makes = [*results, gate_up_result(product)]
        # Up to as many tokens the launch before is ours, the router's product, which has waited: x is old.
        limit = min(lower.target.route_sort_tokens, lower.target.router_tokens, ROUTED_TOKENS)

        def joined() -> list[ir.Value]:
            return _marked(routed_gate_up(lower, op, product, own["has_num_tokens"], makes), sort)

        def apart() -> list[ir.Value]:
            made = _route_and_sort(lower, op, sort, own, lists, results)
            sorted_ids, _, expert_ids, num_valid = made[2:]
            with lower.shown_as(product.operation.name):
                return [*made, *decode_gate_up(lower, product, [sorted_ids, expert_ids, num_valid])]

        why = f"routing, token sort and gate_up in one launch up to {limit} tokens on {lower.target.name}"
        made = _marked(lower.alternatives("routing", limit, why, [kind for kind, _ in makes], (joined, apart)), sort)
        lower.made.append((product.operation, made[-1:]))
        lower.routed.append(Routed(limit, made[2], op.logits, op.num_tokens))
    lower.made.append((sort.operation, made[2 : 2 + LISTS]))
    if site is not None:
        lower.made.append((site.operation, made[-2:]))
    return made[:2]


def _route_and_sort(
    lower: FunctionLowering,
    op: moe.RouteOp,
    sort: moe.SortTokensOp,
    own: Params,
    lists: Results,
    results: Results,
    site: moe.QuantSortOp | None = None,
) -> list[ir.Value]:
    """Weights, ids and lists by one launch, or by several, and what `site` gives. `own`: the sort's params; `results`
    end in `lists`."""
    limit = lower.target.route_sort_tokens

    def joined() -> list[ir.Value]:
        params, operands = route_operands(op)
        params |= {"block": own["block"], "has_slot_rows": own["has_slot_rows"], "counted": own["has_num_tokens"]}
        params |= lower.target.tile("route_sort", experts=params["experts"])
        made = _marked(lower.launch("route_sort", params, operands, results, [params["experts"]], strided=[0]), sort)
        return made if site is None else [*made, *_quantised(lower, site, made[2:])]

    def apart() -> list[ir.Value]:
        weights, ids = _route(lower, op)
        with lower.shown_as(sort.operation.name):
            return [weights, ids, *_sort(lower, sort, [ids, weights, *list(sort.operands)[2:]], own, lists, site)]

    why = f"routing and token sort in one launch up to {limit} tokens on {lower.target.name}"
    types = [kind for kind, _ in [*results, *_made_of(site)]]
    return _both_marked(lower.alternatives("prologue", limit, why, types, (joined, apart)), sort, site)


def _sort_to_join(lower: FunctionLowering, op: moe.RouteOp) -> moe.SortTokensOp | None:
    """The token sort that goes into the router's launch for some M: the only one that reads its results, beside it, of
    all experts, and of the same tokens or of all."""
    if not lower.may_join():
        return None
    sorts = [use.owner.opview for use in op.ids.uses if isinstance(use.owner.opview, moe.SortTokensOp)]
    if len(sorts) != 1:
        return None
    (sort,) = sorts
    joins = (
        sort.operation.block == op.operation.block
        and sort.weights == op.weights
        and (sort.num_tokens is None or _same(sort.num_tokens, op.num_tokens))
        and sort.expert_map is None
        and sort.experts.value == moe.size(op.logits, -1)
    )
    return sort if joins else None


def _same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both are one value, or both absent."""
    return one is other if one is None or other is None else one == other


def _route(lower: FunctionLowering, op: moe.RouteOp) -> list[ir.Value]:
    params, operands = route_operands(op)
    params |= lower.target.tile("route", experts=params["experts"])
    shape = (sizes.tokens(), op.topk.value)
    results = [(op.weights.type, shape), (op.ids.type, shape)]
    tiles = [sizes.ceildiv(sizes.tokens(), params["rows"])]
    return lower.launch("route", params, operands, results, tiles, strided=[0])


def _site_to_join(
    lower: FunctionLowering, sort: moe.SortTokensOp, place: moe.SortTokensOp | moe.RouteOp
) -> moe.QuantSortOp | None:
    """The stage 1 site whose fused kernel goes into the sort's launch for some M: beside it, of an x made before
    `place`, where the launch will be."""
    for use in sort.sorted_ids.uses:
        site = use.owner.opview
        joins = (
            isinstance(site, moe.QuantSortOp)
            and (site.stage.value, site.topk.value) == (1, moe.size(sort.ids, -1))
            and site.num_valid == sort.num_valid
            and site.operation.block == sort.operation.block
            and _is_there(site.x, place)
            and lower.joins_sort(site) > 0
        )
        if joins:
            return site
    return None


def _is_there(value: ir.Value, op: ir.OpView) -> bool:
    """Whether `value`, which a later op of the same block reads, is made before `op`."""
    if isinstance(value.owner, ir.Block):
        return True
    maker = value.owner.operation
    return maker.block != op.operation.block or maker.is_before_in_block(op.operation)


def lower_sort(lower: FunctionLowering, op: moe.SortTokensOp) -> list[ir.Value]:
    """The token sort, unless its router's launch has it."""
    made = lower.made_before(op)
    if made is None:
        site = _site_to_join(lower, op, op)
        made = _sort(lower, op, list(op.operands), *_lists(lower, op, site), site)
        if site is not None:
            lower.made.append((site.operation, made[-2:]))
    return made[:LISTS]


def _lists(lower: FunctionLowering, op: moe.SortTokensOp, site: moe.QuantSortOp | None) -> tuple[Params, Results]:
    """Params of a token sort and what it makes, for every M that reaches the insertion point; `site` is in the same
    launch as far as `joins_sort` says."""
    params, sort = sort_params(op)
    # The fused quantiser asks where each slot went.
    readers = [use.owner.opview for use in op.sorted_ids.uses if isinstance(use.owner.opview, moe.QuantSortOp)]
    params["has_slot_rows"] = any(
        lower.may_fuse(reader, lower.joins_sort(reader) + 1 if site is not None and reader == site else 0)
        for reader in readers
    )
    slot_rows = [_slot_rows(sort)] if params["has_slot_rows"] else []
    return params, [*sort_results(op, sort), *slot_rows]


def _slot_rows(sort: SortSizes) -> tuple[ir.Type, tuple[sizes.Expr, ...]]:
    """i32 [M, k], the sorted row of each slot: a result of the token sort behind those of moe.sort_tokens."""
    i32 = ir.IntegerType.get_signless(32)
    kind = ir.RankedTensorType.get([ir.ShapedType.get_dynamic_size(), sort.topk], i32)
    return kind, (sizes.tokens(), sort.topk)


def _marked(results: list[ir.Value], op: moe.SortTokensOp) -> list[ir.Value]:
    mark_sort(results[0].owner, sort_params(op)[1])
    return results


def _both_marked(results: list[ir.Value], op: moe.SortTokensOp, site: moe.QuantSortOp | None) -> list[ir.Value]:
    """The same of results that end in what `site` gives."""
    if site is not None:
        mark_layout(results[-1], site)
    return _marked(results, op)


def _made_of(site: moe.QuantSortOp | None) -> Results:
    return [] if site is None else fused_results(site)


def _quantised(lower: FunctionLowering, site: moe.QuantSortOp, lists: Sequence[ir.Value]) -> list[ir.Value]:
    """What `site` gives, by launches behind the one that made `lists`."""
    with lower.shown_as(site.operation.name):
        return quant_sort(lower, site, lists[0], lists[3], lists[LISTS] if len(lists) > LISTS else None)


def _sort(
    lower: FunctionLowering,
    op: moe.SortTokensOp,
    who: Sequence[ir.Value],
    params: Params,
    lists: Results,
    site: moe.QuantSortOp | None,
) -> list[ir.Value]:
    """The lists, and what `site` gives: by one launch for few tokens. `who`: the op's operands."""
    if site is None:
        return _sort_alone(lower, op, who, params, lists)
    limit, results = lower.joins_sort(site), [*lists, *fused_results(site)]

    def joined() -> list[ir.Value]:
        both: Params = {**params, **fused_params(site), **placement(site)}
        both |= lower.target.tile("sort_quant", experts=params["experts"])
        tiles = sizes.tokens() * column_tiles(site, both) + params["experts"]
        with lower.shown_as(site.operation.name):
            made = lower.launch("sort_quant", both, [*who, site.x], results, [tiles], strided=[len(who)])
        return _both_marked(made, op, site)

    def apart() -> list[ir.Value]:
        made = _sort_alone(lower, op, who, params, lists)
        return [*made, *_quantised(lower, site, made)]

    why = f"stage 1: fused quant + scale sort in the token sort's launch up to {limit} tokens on {lower.target.name}"
    types = [kind for kind, _ in results]
    return _both_marked(lower.alternatives("fusion", limit, why, types, (joined, apart)), op, site)


def _sort_alone(
    lower: FunctionLowering, op: moe.SortTokensOp, who: Sequence[ir.Value], params: Params, lists: Results
) -> list[ir.Value]:
    """One launch for few tokens, three that spread over the device for many. `who`: the op's operands."""
    experts = params["experts"]
    limit = lower.target.sort_tokens

    def single() -> list[ir.Value]:
        tile = lower.target.tile("sort_tokens", experts=experts)
        return _marked(lower.launch("sort_tokens", {**params, **tile}, who, lists, [experts]), op)

    def phases() -> list[ir.Value]:
        many = {**params, **lower.target.tile("sort_count", experts=experts)}
        chunks = sizes.ceildiv(sizes.tokens(), many["rows"])
        i32 = ir.IntegerType.get_signless(32)
        table = ir.RankedTensorType.get([experts, ir.ShapedType.get_dynamic_size()], i32)
        totals = ir.RankedTensorType.get([experts], i32)
        wide = (table, (experts, chunks))
        # Blocks are none of its business: one kernel counts for all plans.
        counting = {name: value for name, value in many.items() if name not in ("has_slot_rows", "block")}
        (counts,) = lower.launch("sort_count", counting, [who[0], *who[2:]], [wide], [chunks])
        scan = {"experts": experts, **lower.target.tile("sort_scan", experts=experts), "rows": many["rows"]}
        starts, total = lower.launch("sort_scan", scan, [counts], [wide, (totals, (experts,))], [experts])
        operands = [*who[:2], starts, total, *who[2:]]
        return _marked(lower.launch("sort_scatter", many, operands, lists, [chunks * experts]), op)

    types = [kind for kind, _ in lists]
    why = f"token sort in one launch up to {limit} tokens on {lower.target.name}"
    return _marked(lower.alternatives("sort", limit, why, types, (single, phases)), op)
