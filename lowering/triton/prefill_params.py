"""What the prefill templates take of their params (docs/program.md, "Triton templates and params")."""

from __future__ import annotations

from typing import Any

from moeloom.lowering.jobs import CompileError
from moeloom.runtime.stream import CHUNK_COLUMNS, Stream

from .product_params import product_arguments
from .template import Params

BLOCKS = (8, 16, 32, 64, 128, 144)
"""Rows of a sort block."""
STEPS = (4, 8, 16)
"""Of x in shared memory: powers of two, and two more than are on their way."""
MOST_ORDERED = 8191
"""Whole blocks that `prefill_order.py` can count beside five shorter lengths."""
WARP = 32


def prefill_arguments(params: Params) -> list[tuple[str, str]]:
    """The operands after x: as of gate_up and down of a stream."""
    return product_arguments({**params, "weights": "stream"})


def prefill_constants(params: Params, stream: Stream) -> dict[str, Any]:
    """Sizes, the stream's and those of the rings. CompileError for what these kernels do not do."""
    if params["block"] not in BLOCKS or params["x"] != "bf16":
        raise CompileError(
            f"the prefill kernels take sort blocks of {', '.join(map(str, BLOCKS))} rows of bf16, not of "
            f"{params['block']} rows of {params['x']}"
        )
    if params["num_warps"] * WARP < params["block"] or params["steps"] not in STEPS:
        raise CompileError(
            f"the prefill kernels take a thread a row or more, and {' or '.join(map(str, STEPS))} steps of x, not "
            f"{params['num_warps']} warps for {params['block']} rows and {params['steps']} steps"
        )
    if params["ordered"] > MOST_ORDERED:
        raise CompileError(
            f"the prefill kernels put up to {MOST_ORDERED} sort blocks in order, not {params['ordered']}: "
            "set ordered lower"
        )
    names = ("hidden", "intermediate", "topk", "programs", "block", "stream_warps", "steps", "ordered")
    # Whole steps a record.
    chunks = next(n for n in range(params["step"] // CHUNK_COLUMNS, 0, -1) if stream.chunks % n == 0)
    return {
        **{name.upper(): params[name] for name in names},
        "TILES": stream.tiles,
        "RECORDS": stream.records,
        "CHUNKS": stream.chunks,
        "RING": min(params["ring"], 1 + stream.chunks),
        "SHORT_RING": min(params.get("short_ring", params["ring"]), 1 + stream.chunks),
        "STEP": chunks * CHUNK_COLUMNS,
        "AHEAD": min(params["steps"] - 2, stream.chunks // chunks),
    }
