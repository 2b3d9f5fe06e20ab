"""Every Triton kernel template of docs/program.md by name."""

from __future__ import annotations

from .template import Template

TEMPLATES: dict[str, Template] = {}
