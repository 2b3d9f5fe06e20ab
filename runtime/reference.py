"""What every target must compute, in plain torch float64: sections 1 to 5 of the contract (docs/contract.md).

Calls no kernel and nothing of the compiler. Undefined bytes come back as 0xFF (NaN, -1), so a comparison that forgets
the masks of section 3 fails. Notation: M tokens, H hidden, I intermediate, E experts, k experts a token.
"""

import torch
from torch import Tensor

from moeloom.runtime.stream import ROUTER_STEP

GROUP = 32
SCALE_BIAS = 127
SCALE_NAN = 255
SLOT_SHIFT = 24
TOKEN_MASK = (1 << SLOT_SHIFT) - 1
CHUNK_ELEMENTS = 32767  # a step of `quantise`: in the second-level cache, and below what torch hands to its threads
DEVICE_CHUNK_ELEMENTS = 1 << 24  # the same on a GPU: enough to fill it, in half a gigabyte
DOUBLE_BIAS, DOUBLE_MANTISSA = 1023, 52
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
SCALE_MODES = ("even", "floor", "ceil", "rceil")
Quantised = tuple[Tensor, Tensor]


def encode_e2m1(v: Tensor) -> Tensor:
    """Codes u8, one an element, of floating `v`: round to nearest even, saturate at 6, keep the sign of zero."""
    size = v.abs()
    # The bounds lie halfway between two magnitudes; a tie goes to the even code, so every second bound is inclusive.
    code = (size > 0.25).to(torch.uint8)
    for bound, inclusive in ((0.75, 1), (1.25, 0), (1.75, 1), (2.5, 0), (3.5, 1), (5.0, 0)):
        code += size >= bound if inclusive else size > bound
    return code | (torch.signbit(v).to(torch.uint8) << 3)


def scale_bytes(amax: Tensor, scale_mode: str) -> Tensor:
    """e8m0 bytes i32 for the largest magnitude of each group (f32; Inf included; NaN gives 255)."""
    if scale_mode not in SCALE_MODES:
        raise ValueError(f"scale_mode is {scale_mode!r}; it must be one of {', '.join(SCALE_MODES)}")
    bits = amax.contiguous().view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    if scale_mode == "even":
        byte = ((bits + 0x200000) >> 23) - 2
    elif scale_mode == "floor":
        byte = exponent - 2
    elif scale_mode == "ceil":
        byte = exponent + (mantissa != 0) - 2
    else:  # amax <= 6 * 2^(b-127) with 6 = 1.5 * 2^2
        byte = exponent + (mantissa > 0x400000) - 2
        byte = torch.where(amax == torch.inf, 254, byte)
    return torch.where(amax.isnan(), SCALE_NAN, byte.clamp(min=0))


def quantise(x: Tensor, scale_mode: str) -> Quantised:
    """MXFP4 per 1x32 (section 1): codes u8 [M, H/2] and scales u8 [M, H/32] of bf16, f16 or f32 x [M, H]."""
    rows, columns = x.shape
    if columns % GROUP:
        raise ValueError(f"x has {columns} columns; they must be a multiple of {GROUP}")
    codes = torch.empty(rows, columns // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(rows, columns // GROUP, dtype=torch.uint8, device=x.device)
    chunk = CHUNK_ELEMENTS if x.device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
    step = max(1, chunk // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        codes[part], scales[part] = _quantise_rows(x[part], scale_mode)
    return codes, scales


def _quantise_rows(x: Tensor, scale_mode: str) -> Quantised:
    groups = x.reshape(x.shape[0], x.shape[1] // GROUP, GROUP)
    byte = scale_bytes(groups.abs().amax(-1).float(), scale_mode)
    code = encode_e2m1(groups.double() * _power_of_two(SCALE_BIAS - byte).unsqueeze(-1))
    code.masked_fill_((byte == SCALE_NAN).unsqueeze(-1), 0)
    code = code.view(x.shape)
    return code[:, 0::2] | (code[:, 1::2] << 4), byte.to(torch.uint8)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, built from bits: exp2 and ldexp may round or flush."""
    return (exponent.long() + DOUBLE_BIAS << DOUBLE_MANTISSA).view(torch.float64)


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """Values float64 [..., K] of codes u8 [..., K/2] and e8m0 scales [..., K/32]; a scale byte of 255 gives NaN."""
    byte = torch.arange(256, device=codes.device)
    table = E2M1.to(codes.device)
    # A byte's two values travel as one i64: an indexed copy of whole elements is the fast one.
    pairs = torch.stack([table[byte & 15], table[byte >> 4]], -1).view(torch.int64).flatten()
    factors = _power_of_two(byte - SCALE_BIAS)
    factors[SCALE_NAN] = torch.nan
    values = pairs.index_select(0, codes.view(torch.uint8).flatten().int()).view(torch.float32)
    wide = values.view(*scales.shape, GROUP) * factors[scales.view(torch.uint8).int()].unsqueeze(-1)
    return wide.flatten(-2)


def route(
    logits: Tensor,
    topk: int,
    score: str = "softmax_after_topk",
    *,
    renormalise: bool = False,
    scale: float = 1.0,
    groups: int = 1,
    top_groups: int = 1,
    correction_bias: Tensor | None = None,
    num_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights f32 [M, k] and ids i32 [M, k] (section 2): ties go to the lowest expert, slots by descending score."""
    wide = logits.double()
    scores = wide.sigmoid() if score == "sigmoid" else wide.softmax(-1)
    # Without a bias the order of the scores is that of the logits, which rounding cannot disturb.
    choice = wide if correction_bias is None else scores + correction_bias.double()
    if groups > 1:
        biased = scores if correction_bias is None else choice
        members = biased.unflatten(-1, (groups, -1))
        best = members.topk(min(2, members.shape[-1]), -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(-1, best.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups], True)
        choice = choice.masked_fill(~kept.repeat_interleave(members.shape[-1], -1), -torch.inf)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    weights = wide.gather(-1, ids).softmax(-1) if score == "softmax_after_topk" else scores.gather(-1, ids)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    weights, ids = (weights * scale).float(), ids.int()
    live = live_tokens(num_tokens, len(ids))
    weights[live:], ids[live:] = 0, -1
    return weights, ids


def router(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits [M, E] of x [M, H], weight [E, H] and bias [E], all bf16 or f16, in f32 and in the kernel's order: the
    later half of the steps of ROUTER_STEP columns upon the earlier one until one step is left, then neighbours."""
    columns = x.shape[1]
    steps = 1 << (-(-columns // ROUTER_STEP) - 1).bit_length()
    logits = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    for token, row in enumerate(x.float()):
        sums = torch.nn.functional.pad(weight.float() * row, (0, steps * ROUTER_STEP - columns))
        while sums.shape[1] > ROUTER_STEP:
            sums = torch.add(*sums.chunk(2, 1))
        while sums.shape[1] > 1:
            sums = sums[:, 0::2] + sums[:, 1::2]
        logits[token] = sums[:, 0] + (0 if bias is None else bias.float())
    return logits


def live_tokens(num_tokens: int | None, tokens: int) -> int:
    """L: all tokens where no count is given; a count is taken within 0 to M."""
    return tokens if num_tokens is None else min(max(num_tokens, 0), tokens)


def local_experts(ids: Tensor, experts: int, num_tokens: int | None, expert_map: Tensor | None) -> Tensor:
    """The local expert i64 [M, k] of each slot, -1 where it has none: id -1, a row >= num_tokens, a remote expert.

    `expert_map` is a mask (bool [E]: local ids count the true entries) or an index map (i32 [E]: -1 is remote).
    """
    local = torch.arange(experts, device=ids.device) if expert_map is None else expert_map.long()
    if expert_map is not None and expert_map.dtype == torch.bool:
        local = torch.where(expert_map, local.cumsum(0) - 1, -1)
    named = (ids >= 0) & (ids < experts)
    found = torch.where(named, local[ids.long().clamp(0, experts - 1)], -1)
    found[live_tokens(num_tokens, len(ids)) :] = -1
    return found


def sort_tokens(
    ids: Tensor,
    weights: Tensor,
    experts: int,
    block: int,
    num_tokens: int | None = None,
    expert_map: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sorted_ids i32 [S], sorted_weights f32 [S], expert_ids i32 [ceil(S/block)], num_valid i32 [2] (section 2)."""
    tokens, topk = ids.shape
    live = live_tokens(num_tokens, tokens)
    capacity = tokens * topk + experts * block - min(topk, experts)
    device = ids.device
    sorted_ids = torch.full((capacity,), -1, dtype=torch.int64, device=device)
    sorted_weights = torch.full((capacity,), torch.nan, device=device)
    expert_ids = torch.full((-(-capacity // block),), -1, dtype=torch.int32, device=device)

    local = local_experts(ids, experts, num_tokens, expert_map).flatten()
    rows = local.argsort(stable=True)  # a flat row is token*k + slot: tokens ascending, then slots
    rows = rows[local[rows] >= 0]
    counts = torch.bincount(local[rows], minlength=experts)
    blocks = -(-counts // block)
    ends = (blocks * block).cumsum(0)
    valid = int(ends[-1])
    within = torch.arange(len(rows), device=device) - (counts.cumsum(0) - counts)[local[rows]]
    places = (ends - blocks * block)[local[rows]] + within

    sorted_ids[:valid] = topk << SLOT_SHIFT | live
    sorted_weights[:valid] = 0
    sorted_ids[places] = rows % topk << SLOT_SHIFT | rows // topk
    sorted_weights[places] = weights.flatten()[rows]
    expert_ids[: valid // block] = torch.arange(experts, device=device).repeat_interleave(blocks).int()
    # A slot of 128 or more sets bit 31: the wrap to a negative i32 is the format.
    wrapped = torch.where(sorted_ids >= 1 << 31, sorted_ids - (1 << 32), sorted_ids)
    return wrapped.int(), sorted_weights, expert_ids, torch.tensor([valid, live], dtype=torch.int32, device=device)


def source_rows(sorted_ids: Tensor, num_valid: Tensor, stage: int, topk: int) -> Tensor:
    """Source row i64 of each sorted row in use, -1 for padding: token in stage 1, token*k + slot in stage 2."""
    used = sorted_ids[: int(num_valid[0])].long() & 0xFFFFFFFF
    slot, token = used >> SLOT_SHIFT, used & TOKEN_MASK
    return torch.where(slot == topk, -1, token if stage == 1 else token * topk + slot)


def sort_scales(
    scales: Tensor, sorted_ids: Tensor, num_valid: Tensor, stage: int, topk: int, layout: str = "tiled_32x8"
) -> Tensor:
    """Scales u8 [rows, C] in expert order (section 3): u8 [S up to 32, C8] tiled_32x8, [S up to 32, C] row_major."""
    columns = scales.shape[1]
    padded = -(-columns // 8) * 8 if layout == "tiled_32x8" else columns
    capacity = -(-sorted_ids.shape[0] // 32) * 32
    out = torch.full((capacity, padded), 0xFF, dtype=torch.uint8, device=scales.device)
    rows = source_rows(sorted_ids, num_valid, stage, topk)
    out[: -(-len(rows) // 32) * 32] = 0
    live = rows >= 0
    out[: len(rows), :columns][live] = scales.view(torch.uint8)[rows[live]]
    return tile_scales(out) if layout == "tiled_32x8" else out


def tile_scales(rows: Tensor) -> Tensor:
    """u8 [R, C8] row-major to tiled_32x8: (r/32)*32*C8 + (c/8)*256 + (c%4)*64 + (r%16)*4 + ((c%8)/4)*2 + (r%32)/16."""
    height, width = rows.shape
    tiles = rows.view(height // 32, 2, 16, width // 8, 2, 4)
    return tiles.permute(0, 3, 5, 2, 4, 1).reshape(height, width)


def defined_scales(num_valid: Tensor, shape: tuple[int, int]) -> Tensor:
    """Which bytes of a sorted scale tensor of `shape` are defined (section 3 a): bool; the same in both layouts."""
    mask = torch.zeros(shape, dtype=torch.bool, device=num_valid.device)
    mask[: -(-int(num_valid[0]) // 32) * 32] = True
    return mask


def defined_payload(sorted_ids: Tensor, num_valid: Tensor, stage: int, topk: int, rows: int) -> Tensor:
    """Which of `rows` payload rows are defined (section 3 b): bool [rows]."""
    named = source_rows(sorted_ids, num_valid, stage, topk)
    mask = torch.zeros(rows, dtype=torch.bool, device=named.device)
    mask[named[named >= 0]] = True
    return mask


def activate(gate: Tensor, up: Tensor, activation: str, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """silu(gate)*up, gelu(gate)*up (erf or tanh), or gpt-oss's clamped swiglu."""
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    if activation in ("gelu", "gelu_tanh"):
        return torch.nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up
    if activation != "swiglu":
        raise ValueError(f"activation is {activation!r}; it must be silu, swiglu, gelu or gelu_tanh")
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def experts(
    x: Tensor | Quantised,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor | Quantised,
    down: Tensor | Quantised,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: str = "silu",
    alpha: float = 1.702,
    limit: float = 7.0,
    order: str = "concatenated",
    weight_order: str = "nk",
    activations: str = "bf16",
    scale_mode: str = "even",
    routing_weight_stage: int = 2,
    num_tokens: int | None = None,
    expert_map: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """All experts of a block (section 5): out [M, H] in `out_dtype`; a token without an expert gives 0.

    x: bf16/f16 [M, H], or (codes, scales) as `quantise` makes them. gate_up [E, 2I, H] and down [E, H, I] (with
    `weight_order` "kn": [E, H, 2I] and [E, I, H]), dense or (codes u8 [E, N, K/2], scales u8 [E, N, K/32]). `order`
    says how gate_up's rows lie: interleaved or concatenated. `activations` "mxfp4" quantises x and the activation
    result by `scale_mode`; "bf16" uses them as they are. The activation result is rounded to bf16; only with f32 `x`,
    which the contract and its kernels do not know, does it stay f32: the plain formula, to compare other code with.
    """
    quantised = activations == "mxfp4"
    inner = torch.float32 if isinstance(x, Tensor) and x.dtype is torch.float32 else torch.bfloat16
    if not isinstance(x, tuple) and quantised:
        x = quantise(x, scale_mode)
    tokens = dequantise(*x) if isinstance(x, tuple) else x.double()
    named = (gate_up if isinstance(gate_up, Tensor) else gate_up[1]).shape[0]
    local = local_experts(ids, len(expert_map) if expert_map is not None else named, num_tokens, expert_map)
    out = torch.zeros(tokens.shape[0], tokens.shape[1], dtype=torch.float64, device=tokens.device)
    for e in local[local >= 0].unique().tolist():
        token, slot = (local == e).nonzero(as_tuple=True)
        share = weights[token, slot].double().unsqueeze(-1)
        hidden = tokens[token] @ _expert(gate_up, e, weight_order)
        hidden = hidden * share if routing_weight_stage == 1 else hidden
        hidden = hidden + gate_up_bias[e].double() if gate_up_bias is not None else hidden
        gate, up = (hidden[:, 0::2], hidden[:, 1::2]) if order == "interleaved" else hidden.chunk(2, -1)
        h = activate(gate, up, activation, alpha, limit).to(inner)
        y = (dequantise(*quantise(h, scale_mode)) if quantised else h.double()) @ _expert(down, e, weight_order)
        y = y + down_bias[e].double() if down_bias is not None else y
        out.index_add_(0, token, y * share if routing_weight_stage == 2 else y)
    return out.to(out_dtype)


def _expert(weight: Tensor | Quantised, e: int, weight_order: str) -> Tensor:
    """Expert `e` as a float64 matrix [K, N]."""
    if isinstance(weight, tuple):
        codes, scales = weight[0][e], weight[1][e]
        return dequantise(codes.reshape(codes.shape[0], -1), scales).T
    return weight[e].double().T if weight_order == "nk" else weight[e].double()
