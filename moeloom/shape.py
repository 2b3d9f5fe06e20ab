"""A layer given by its sizes: the config.json of a gpt-oss model of that shape, for which no checkpoint is needed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

GROUP = 32  # values with one scale (docs/contract.md)


class ShapeError(Exception):
    """Sizes that make no model. One line: what was found, what was wanted."""


@dataclass(frozen=True)
class Shape:
    """H, I of one expert, E, k, and how many layers there are, so that they can take turns."""

    hidden: int
    intermediate: int
    experts: int
    topk: int
    layers: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ShapeError(f"{name} is {value}; it must be at least 1")
        for name in ("hidden", "intermediate"):
            if getattr(self, name) % GROUP:
                raise ShapeError(f"{name} is {getattr(self, name)}; MXFP4 needs a multiple of {GROUP}")
        if self.topk > self.experts:
            raise ShapeError(f"topk is {self.topk}, of {self.experts} experts")

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """The shape that `hidden=2880,intermediate=2880,experts=128,topk=4` spells; ShapeError where it spells none."""
        known = {field.name for field in fields(cls)}
        found: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in known or not value.isdigit() or name in found:
                raise ShapeError(f"{part!r} is no size of a shape; write {EXAMPLE}, and layers=N where 4 are too many")
            found[name] = int(value)
        missing = sorted(known - found.keys() - {"layers"})
        if missing:
            raise ShapeError(f"the shape lacks {', '.join(missing)}; write {EXAMPLE}")
        return cls(**found)

    def config(self) -> Mapping[str, Any]:
        """config.json. The attention, which is not compiled, is as small as can be."""
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "dtype": "bfloat16",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.topk,
            "vocab_size": GROUP,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": GROUP,
            "quantization_config": {"quant_method": "mxfp4"},
        }


EXAMPLE = "hidden=2880,intermediate=2880,experts=128,topk=4"
