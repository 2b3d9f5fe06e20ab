"""Seeded random inputs for an entry of an artifact."""

import torch
from torch import Tensor

from moeloom.runtime.errors import LaunchError
from moeloom.runtime.program import Input, Program
from moeloom.runtime.reference import GROUP, quantise


def random_inputs(program: Program, experts: int | None, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of `program` for M = `tokens`, by name, the optional ones left out.

    Activations are normal; ids i32 [M, k] name distinct ones of `experts` (any, where k is larger), weights f32 [M, k]
    are a softmax; MXFP4 payload and scales are the quantiser's own output. LaunchError for an input of another kind.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    payload: Tensor | None = None
    for wanted in program.inputs:
        if wanted.optional:
            continue
        rows, *rest = wanted.tensor.at(tokens)
        dtype = wanted.tensor.dtype
        if dtype == "float4_e2m1fn_x2":
            payload = torch.randn(rows, 2 * rest[0], generator=generator)
            found[wanted.name] = quantise(payload, "even")[0]
        elif dtype == "float8_e8m0fnu" and payload is not None and rest[0] * GROUP == payload.shape[1]:
            found[wanted.name] = quantise(payload, "even")[1]
        elif dtype == "int32" and len(rest) == 1 and experts is not None:
            found[wanted.name] = _ids(rows, rest[0], experts, generator)
        elif dtype in ("bfloat16", "float16", "float32") and len(rest) == 1:
            values = torch.randn(rows, rest[0], generator=generator)
            routing = dtype == "float32" and _beside_ids(program, wanted)
            found[wanted.name] = values.softmax(-1) if routing else values.to(getattr(torch, dtype))
        else:
            raise LaunchError(f"no random values for input {wanted.name!r}, {wanted.tensor}; give it in a file")
    return found


def _beside_ids(program: Program, wanted: Input) -> bool:
    """Whether another input has the same shape and is i32: then these are routing weights."""
    return any(i.tensor.dtype == "int32" and i.tensor.shape == wanted.tensor.shape for i in program.inputs)


def _ids(rows: int, topk: int, experts: int, generator: torch.Generator) -> Tensor:
    if topk > experts:
        return torch.randint(experts, (rows, topk), generator=generator, dtype=torch.int32)
    return torch.rand(rows, experts, generator=generator).argsort(-1)[:, :topk].to(torch.int32).contiguous()
