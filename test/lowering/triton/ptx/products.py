"""Calls of the stream products whose PTX runs on the machine: random operands, and what they are to give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.runtime import reference
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.stream import EXCHANGE_FLAGS

from .machine import MOST_STEPS, Machine
from .memory import Memory

EXPERTS = 3
SHARED_BYTES = 128 << 10
CONSTANT, LISTS = ("weight", "bias"), ("sorted_ids", "expert_ids", "num_valid", "sorted_weights")
"""Operands that no launch writes, and the token sort's, which `early` kernels may read before they wait."""


def ids_of(rows: Sequence[int], tokens: int) -> Tensor:
    """i32 [tokens, 2]: the first rows[e] places, column by column, are of each expert e, the rest of none."""
    ids = torch.full((2 * tokens,), -1, dtype=torch.int32)
    named = torch.arange(len(rows), dtype=torch.int32).repeat_interleave(torch.tensor(rows))
    ids[: len(named)] = named
    return ids.view(2, tokens).T.contiguous()


class Call:
    """Random operands of a kernel: what no live row names is NaN (0xFF), and so is what lies around the buffers."""

    def __init__(
        self,
        template: str,
        params: Mapping[str, Any],
        tokens: int,
        mode: str = "even",
        ids: Tensor | None = None,
    ) -> None:
        """`mode`: the scale mode of x as MXFP4. `ids`: random ones unless given."""
        self.params, self.stage = params, 1 if template.endswith("gate_up") else 2
        torch.manual_seed(0)
        topk = params["topk"]
        if ids is None:
            ids = torch.randint(EXPERTS, (tokens, topk), dtype=torch.int32)
            ids[3], ids[5, 0] = -1, -1
        self.ids, self.shares = ids, torch.rand(tokens, topk) + 0.5
        self.sort = reference.sort_tokens(ids, self.shares, EXPERTS, params["block"])
        self.columns = params["hidden"] if self.stage == 1 else params["intermediate"]
        outputs = 2 * params["intermediate"] if self.stage == 1 else params["hidden"]
        self.weight = torch.randint(256, (EXPERTS, outputs, self.columns // 2), dtype=torch.uint8)
        self.scales = torch.randint(119, 127, (EXPERTS, outputs, self.columns // 32), dtype=torch.uint8)
        self.bias = torch.randn(EXPERTS, outputs)
        rows = tokens if self.stage == 1 else tokens * topk
        self.x = torch.randn(rows, self.columns).bfloat16()
        sorted_ids, _, _, num_valid = self.sort
        self.named = reference.defined_payload(sorted_ids, num_valid, self.stage, topk, rows)
        self.mode = mode
        self.quantise()

    def quantise(self) -> None:
        """Codes and scales of `x`, anew where it was changed."""
        self.codes, self.x_scales = reference.quantise(self.x, self.mode)

    def given(self) -> dict[str, Tensor | int]:
        """Arguments by name."""
        sorted_ids, sorted_weights, expert_ids, num_valid = self.sort
        used = int(num_valid[0])
        order = "gate_up_concatenated" if self.stage == 1 else "plain"
        warps = self.params.get("stream_warps", self.params["num_warps"])
        packed = [pack_stream(w, s, order, warps) for w, s in zip(self.weight, self.scales, strict=True)]
        if self.params["x"] == "bf16":
            x = torch.full_like(self.x, torch.nan)
            x[self.named] = self.x[self.named]
            activations = {"x": x}
        else:
            codes = self.codes.clone()
            codes[~self.named] = 0xFF
            sorted_scales = reference.sort_scales(
                self.x_scales, sorted_ids, num_valid, self.stage, self.params["topk"], self.params["layout"]
            )
            activations = {"x": codes, "x_scales": sorted_scales}
        return activations | {
            "x_stride": activations["x"].stride(0),
            "sorted_ids": beyond(sorted_ids, used),
            "expert_ids": beyond(expert_ids, used // self.params["block"]),
            "num_valid": num_valid,
            "sorted_weights": beyond(sorted_weights, used),
            "weight": torch.stack(packed),
            "bias": self.bias,
        }

    def sums(self) -> Tensor:
        """float64 [tokens, k, outputs] before bias and routing weight; NaN where a slot has no expert."""
        exact = self.params["x"] == "bf16" and self.params.get("quantise", "none") == "none"
        values = self.x.double() if exact else reference.dequantise(self.codes, self.x_scales)
        weight = reference.dequantise(self.weight, self.scales)
        out = torch.full((*self.ids.shape, weight.shape[1]), torch.nan, dtype=torch.float64)
        for token, slot in (self.ids >= 0).nonzero().tolist():
            row = token if self.stage == 1 else token * self.ids.shape[1] + slot
            out[token, slot] = weight[self.ids[token, slot]] @ values[row]
        return out

    def wanted(self) -> Tensor:
        """What the kernel is to write, summed over splits: h [R, I] or rows [R, H]; NaN where nothing is."""
        sums, bias = self.sums(), self.bias.double()[self.ids.clamp(min=0).long()]
        shares = self.shares.double()[..., None] if self.params["has_weights"] else 1.0
        bias = bias if self.params["has_bias"] else torch.zeros(())
        if self.stage == 2:
            return ((sums + bias) * shares).flatten(0, 1)
        gate, up = (sums * shares + bias).chunk(2, -1)
        options = (self.params[name] for name in ("activation", "alpha", "limit"))
        return reference.activate(gate, up, *options).flatten(0, 1)


def beyond(values: Tensor, used: int) -> Tensor:
    """What no consumer reads, as poison."""
    out = values.clone()
    out[used:] = -1 if values.dtype == torch.int32 else torch.nan
    return out


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def exchange_of(params: Mapping[str, Any]) -> np.ndarray:
    """The exchange of a decode kernel: flags that are 0, and room for sums."""
    sums = params["programs"] * 32 * params["num_warps"] * 4 * (params["block"] // 8)
    return np.concatenate([np.zeros(EXCHANGE_FLAGS, np.int32), np.full(sums, -1, np.int32)])


def run(
    template: str,
    params: Mapping[str, Any],
    text: str,
    call: Call,
    order: Callable[[int], list[int]],
    processors: int = 2,
    left: bool = False,
    shared: int = SHARED_BYTES,
    most_steps: int = MOST_STEPS,
) -> Tensor:
    """What the kernel writes into memory full of NaN. `left`: programs are left out, and flags with them. A program
    has so many bytes of `shared` memory, and one of more steps has no end."""
    rows = call.ids.numel()
    kind, columns = (torch.bfloat16, params["intermediate"]) if call.stage == 1 else (torch.float32, params["hidden"])
    out = torch.full((params.get("splits", 1), rows, columns), torch.nan, dtype=kind)
    memory, arguments, given, exchange = Memory(), [], call.given(), None
    for name, _ in TEMPLATES[template].arguments(params)[:-1]:
        if name == "exchange":
            exchange = memory.place(exchange_of(params), writable=True, old=True)
            arguments.append(exchange)
            continue
        value = given[name]
        given_early = {"constant": name in CONSTANT, "old": params.get("early", False) and name in LISTS}
        place = value if isinstance(value, int) else memory.place(array(value), **given_early)
        arguments.append(place)
    result = memory.place(array(out), writable=True)
    machine = Machine(text, memory, np.full(shared, 0xFF, np.uint8))
    machine.launch(
        params["programs"], [*arguments, result, len(call.ids)], order(params["programs"]), processors, most_steps
    )
    if exchange is not None and not left:
        assert not memory.read_back(exchange, np.zeros(EXCHANGE_FLAGS, np.int32)).any(), "flags are left behind"
    return torch.from_numpy(memory.read_back(result, array(out))).view(kind).view(out.shape)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative L2; the same rows must be missing."""
    assert torch.equal(found.isnan(), wanted.isnan())
    assert wanted.isfinite().any()
    return float((found - wanted).nan_to_num().norm() / wanted.nan_to_num().norm())
