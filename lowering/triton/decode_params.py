"""What the decode templates take of their params (docs/program.md, "Triton templates and params")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeloom.lowering.jobs import CompileError
from moeloom.runtime.stream import MfmaStream, Stream

from . import decode_chunk, decode_mfma_step
from .product_params import product_arguments
from .template import POINTERS, Params

BLOCKS = (decode_chunk.OCTET.value, 2 * decode_chunk.OCTET.value)
"""Rows of a sort block: with more, x of a block leaves no shared memory for a second program on an SM."""


def decode_arguments(params: Params) -> list[tuple[str, str]]:
    """The operands after x: as of gate_up and down of a stream."""
    return product_arguments({**params, "weights": "stream"})


def decode_constants(params: Params, stream: Stream, splits: int) -> dict[str, Any]:
    """Sizes, forms of x, the stream's and the ring, EARLY, QUANTISE. CompileError for what these kernels do not do."""
    if stream.records % splits:
        raise CompileError(f"{stream.records} records of weights cannot be split {splits} times; choose a divisor")
    sizes = {"TILES": stream.tiles, "CHUNKS": stream.chunks, "RING": min(params["ring"], 1 + stream.chunks)}
    own = {name.upper(): params[name] for name in ("block", "early", "quantise", "paired")}
    return {**_named(params, BLOCKS), **own, **sizes}


def mfma_constants(params: Params, rows: int, columns: int, splits: int) -> dict[str, Any]:
    """The same of the kernels for CDNA, of a weight [rows, columns]."""
    stream = MfmaStream(rows, columns)
    if not stream.splits_into(splits):
        raise CompileError(f"{stream.steps} steps of weights cannot be split {splits} times; choose fewer")
    sizes = {
        "TILES": stream.tiles,
        "STEPS": stream.steps,
        "SPAN": stream.span(splits),
        "RING": min(params["ring"], stream.span(splits)),
    }
    return {**_named(params, (decode_mfma_step.TOKENS.value,)), **sizes}


def _named(params: Params, blocks: Sequence[int]) -> dict[str, Any]:
    if params["block"] not in blocks or params["x"] not in ("bf16", "f4E2M1FN"):
        raise CompileError(
            f"the decode kernels take sort blocks of {' or '.join(map(str, blocks))} rows of bf16 or MXFP4, "
            f"not of {params['block']} rows of {params['x']}: use gate_up and down"
        )
    return {name.upper(): params[name] for name in ("hidden", "intermediate", "topk", "x", "layout", "programs")}


def x_argument(params: Params) -> tuple[str, str]:
    return "x", POINTERS[params["x"]]
