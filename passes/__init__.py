"""How programs improve: one file a pass, blind to targets. `ALL` has every pass by name."""

from .base import Pass

ALL = Pass.registry
