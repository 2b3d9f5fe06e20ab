"""What the decode templates take of their params (docs/program.md, "Triton templates and params")."""

from __future__ import annotations

from typing import Any

from moeloom.lowering.workers import CompileError
from moeloom.runtime.stream import Stream

from .decode_chunk import OCTET
from .product_params import product_arguments
from .template import POINTERS, Params

BLOCKS = (OCTET.value, 2 * OCTET.value)
"""Rows of a sort block: with more, x of a block leaves no shared memory for a second program on an SM."""


def decode_arguments(params: Params) -> list[tuple[str, str]]:
    """The operands after x: as of gate_up and down, but the weight is one stream and has no scales beside it."""
    return [
        (name, "*i32" if name == "weight" else kind)
        for name, kind in product_arguments(params)
        if name != "weight_scales"
    ]


def decode_constants(params: Params, stream: Stream, splits: int) -> dict[str, Any]:
    """Sizes, the form of x, the stream's and the ring. CompileError for what these kernels do not do."""
    if params["block"] not in BLOCKS or params["x"] not in ("bf16", "f4E2M1FN"):
        raise CompileError(
            f"the decode kernels take sort blocks of {' or '.join(map(str, BLOCKS))} rows of bf16 or MXFP4, "
            f"not of {params['block']} rows of {params['x']}: use gate_up and down"
        )
    if stream.records % splits:
        raise CompileError(f"{stream.records} records of weights cannot be split {splits} times; choose a divisor")
    named = ("hidden", "intermediate", "topk", "block", "x", "layout", "programs")
    sizes = {"TILES": stream.tiles, "CHUNKS": stream.chunks, "RING": min(params["ring"], 1 + stream.chunks)}
    return {**{name.upper(): params[name] for name in named}, **sizes}


def x_argument(params: Params) -> tuple[str, str]:
    return "x", POINTERS[params["x"]]
