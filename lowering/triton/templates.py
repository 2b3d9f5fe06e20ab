"""Every Triton kernel template of docs/program.md by name."""

from __future__ import annotations

from .combine import COMBINE
from .decode_down import DECODE_DOWN
from .decode_gate_up import DECODE_GATE_UP
from .decode_mfma_down import DECODE_MFMA_DOWN
from .decode_mfma_gate_up import DECODE_MFMA_GATE_UP
from .decode_routed_gate_up import DECODE_ROUTED_GATE_UP
from .down import DOWN
from .expand import EXPAND
from .fake_quant import FAKE_QUANT
from .gate_up import GATE_UP
from .one_stage import EXPERTS_ONE_STAGE
from .prefill_down import PREFILL_DOWN
from .prefill_gate_up import PREFILL_GATE_UP
from .quant import QUANT
from .quant_sort import QUANT_SORT
from .quant_sort_sm_90 import QUANT_SORT_SM_90
from .route import ROUTE
from .route_sort import ROUTE_SORT
from .router import ROUTER
from .scales import SORT_SCALES
from .sort_quant import SORT_QUANT
from .sort_tokens import SORT_COUNT, SORT_SCAN, SORT_SCATTER, SORT_TOKENS
from .template import Template

TEMPLATES: dict[str, Template] = {
    "router": ROUTER,
    "route": ROUTE,
    "route_sort": ROUTE_SORT,
    "sort_tokens": SORT_TOKENS,
    "sort_count": SORT_COUNT,
    "sort_scan": SORT_SCAN,
    "sort_scatter": SORT_SCATTER,
    "quant": QUANT,
    "sort_scales": SORT_SCALES,
    "quant_sort": QUANT_SORT,
    "quant_sort_sm_90": QUANT_SORT_SM_90,
    "sort_quant": SORT_QUANT,
    "gate_up": GATE_UP,
    "down": DOWN,
    "decode_gate_up": DECODE_GATE_UP,
    "decode_routed_gate_up": DECODE_ROUTED_GATE_UP,
    "decode_down": DECODE_DOWN,
    "expand": EXPAND,
    "fake_quant": FAKE_QUANT,
    "prefill_gate_up": PREFILL_GATE_UP,
    "prefill_down": PREFILL_DOWN,
    "decode_mfma_gate_up": DECODE_MFMA_GATE_UP,
    "decode_mfma_down": DECODE_MFMA_DOWN,
    "experts_one_stage": EXPERTS_ONE_STAGE,
    "combine": COMBINE,
}
