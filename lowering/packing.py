"""Packed weight types and the recipes that make them (docs/program.md, "Packed weights")."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch_mlir import ir

from moeloom.runtime.stream import MfmaStream, Stream

ROWS, GROUP = 16, 32
"""Rows of a weight tile and columns of a scale group: the layout is named n16k32 after them."""


Layout = Literal["n16k32", "row_major", "stream", "mfma_stream"]
STREAMS: tuple[Layout, ...] = ("stream", "mfma_stream")
"""Layouts of payload and scales in one tensor."""
STREAM_WARPS = {"gate_up": 8, "down": 4}
"""Warps of a tile of a stream, those of the decode kernel that reads it (benchmarks/decode_products.py times them)."""


def packed_type(layout: Layout, kind: str, dims: Sequence[int]) -> ir.RankedTensorType:
    """The packed form of a payload [E, N, K], its scales [E, N, K/32] or a bias [E, N]."""
    byte = ir.IntegerType.get_signless(8)
    if kind != "bias":
        experts, rows, columns = dims
        if layout == "row_major":
            width = columns // 2 if kind == "payload" else columns
            return ir.RankedTensorType.get([experts, rows, width], byte)
        if kind == "payload":
            return ir.RankedTensorType.get([experts, rows // ROWS, columns // GROUP, 4, ROWS, 4], byte)
        return ir.RankedTensorType.get([experts, rows // ROWS, columns, ROWS], byte)
    return ir.RankedTensorType.get(list(dims), ir.F32Type.get())


def stream_type(layout: Layout, dims: Sequence[int], warps: int) -> ir.RankedTensorType:
    """The stream of a payload [E, N, K] and its scales; an MFMA stream has no `warps`."""
    experts, rows, columns = dims
    stream = Stream(rows, columns, warps) if layout == "stream" else MfmaStream(rows, columns)
    return ir.RankedTensorType.get([experts, *stream.shape], ir.IntegerType.get_signless(8))


def stream_recipe(
    layout: Layout,
    rows: str,
    dims: Sequence[int],
    warps: int,
    payload: Mapping[str, ir.Attribute],
    scales: Mapping[str, ir.Attribute],
) -> ir.DictAttr:
    """The recipe of a stream from the attributes of the two weight arguments that it is made of."""
    one = recipe(layout, "stream", rows, payload)
    quantised = "moe.quantize" in payload
    sources = [payload["moe.weight"]] if quantised else [payload["moe.weight"], scales["moe.weight"]]
    i64 = ir.IntegerType.get_signless(64)
    sizes = {"count": dims[1], "columns": dims[2]} | ({"warps": warps} if layout == "stream" else {})
    return ir.DictAttr.get(
        {one[i].name: one[i].attr for i in range(len(one))}
        | {"sources": ir.ArrayAttr.get(sources)}
        | {name: ir.IntegerAttr.get(i64, size) for name, size in sizes.items()}
    )


def recipe(layout: Layout, kind: str, rows: str, attrs: Mapping[str, ir.Attribute]) -> ir.DictAttr:
    """The recipe of a weight argument from its attributes, as moe-quantize-weights and the import left them."""

    def attribute(name: str, default: str) -> ir.Attribute:
        return attrs.get(name, ir.StringAttr.get(default))

    return ir.DictAttr.get(
        {
            "layout": ir.StringAttr.get(layout),
            "kind": ir.StringAttr.get(kind),
            "sources": ir.ArrayAttr.get([attrs["moe.weight"]]),
            "rows": ir.StringAttr.get(rows),
            "quantize": attribute("moe.quantize", "none") if kind != "bias" else ir.StringAttr.get("none"),
            "order": attribute("moe.order", "nk"),
        }
    )
