"""moeloom/kernel_reference.py: templates that no CPU program has."""

import torch

from moeloom.kernel_reference import TEMPLATES, Weight
from moeloom.runtime import reference

ROWS, HIDDEN, INTERMEDIATE, EXPERTS, TOPK, BLOCK = 5, 64, 32, 4, 2, 16


def test_gate_up_that_quantises_is_gate_up_and_quant_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, HIDDEN, generator=generator).bfloat16()
    ids = torch.rand(ROWS, EXPERTS, generator=generator).argsort(-1)[:, :TOPK].int()
    ids[2] = -1
    sorted_ids, _, expert_ids, num_valid = reference.sort_tokens(ids, torch.ones(ROWS, TOPK), EXPERTS, BLOCK)
    codes, scales = reference.quantise(torch.randn(EXPERTS * 2 * INTERMEDIATE, HIDDEN, generator=generator), "even")
    recipes = [{"kind": kind, "layout": "row_major", "rows": "gate_up_concatenated"} for kind in ("payload", "scales")]
    packed = [tensor.view(EXPERTS, 2 * INTERMEDIATE, -1) for tensor in (codes, scales)]
    weights = [Weight(tensor, recipe) for tensor, recipe in zip(packed, recipes, strict=True)]
    params = {"topk": TOPK, "block": BLOCK, "intermediate": INTERMEDIATE, "activation": "silu", "alpha": 1.702}
    params |= {"limit": 7.0, "has_bias": False, "has_weights": False, "x": "bf16", "layout": "tiled_32x8"}
    operands = [x, sorted_ids, expert_ids, num_valid, *weights]
    hidden = TEMPLATES["gate_up"](params | {"requantize": "none"}, operands)
    placed = {"stage": 2, "topk": TOPK, "layout": "tiled_32x8", "scale_mode": "rceil"}
    wanted = TEMPLATES["quant_sort"](placed, [hidden, sorted_ids, num_valid])
    found = TEMPLATES["gate_up"](params | {"requantize": "rceil"}, operands)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    # And codes in: the same rows, quantised before, give what their values give.
    mx, mx_scales = TEMPLATES["quant_sort"](placed | {"stage": 1}, [x, sorted_ids, num_valid])
    values = reference.dequantise(*reference.quantise(x, "rceil"))
    from_codes = TEMPLATES["gate_up"](params | {"x": "f4E2M1FN"}, [mx, mx_scales, *operands[1:]])
    from_values = TEMPLATES["gate_up"](params, [values, *operands[1:]])
    assert torch.equal(from_codes.nan_to_num(), from_values.nan_to_num()) and from_codes.nan_to_num().any()
