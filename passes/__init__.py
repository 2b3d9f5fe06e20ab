"""How programs improve: one file a pass, blind to targets. `ALL` has every pass by name."""

from moeloom.passes.base import Pass
from moeloom.passes.fuse_quant_sort import FuseQuantSort
from moeloom.passes.plan_experts import PlanExperts
from moeloom.passes.quantize_weights import QuantizeWeights
from moeloom.passes.raise_torch import RaiseTorch

__all__ = ["ALL", "FuseQuantSort", "PlanExperts", "QuantizeWeights", "RaiseTorch"]

ALL = Pass.registry
