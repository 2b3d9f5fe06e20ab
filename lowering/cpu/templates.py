"""Every CPU kernel template of docs/program.md by name."""

from __future__ import annotations

from .compile import Builder

TEMPLATES: dict[str, Builder] = {}
"""Builders by template name: `TEMPLATES[template](kernel name, params, tier)`."""
