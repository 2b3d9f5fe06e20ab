"""Every CPU kernel template of docs/program.md by name."""

from __future__ import annotations

from . import combine, down, expand, gate_up, one_stage, quant, route, sort_scales, sort_tokens
from .compile import Builder

TEMPLATES: dict[str, Builder] = {
    "route": route.build,
    "sort_tokens": sort_tokens.build,
    "quant": quant.build_quant,
    "sort_scales": sort_scales.build,
    "quant_sort": quant.build_quant_sort,
    "expand": expand.build,
    "gate_up": gate_up.build,
    "down": down.build,
    "experts_one_stage": one_stage.build,
    "combine": combine.build,
}
"""Builders by template name: `TEMPLATES[template](kernel name, params, tier)`."""
