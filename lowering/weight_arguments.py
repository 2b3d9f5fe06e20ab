"""Weight arguments of a function: each takes the packed type its kernels read, and the recipe that makes it."""

from torch_mlir import ir
from torch_mlir.dialects import func

from moeloom.lowering import packing
from moeloom.passes.base import PassError


class WeightArguments:
    """The weights that lowered products read, to be packed in `layout`."""

    def __init__(self, function: func.FuncOp, layout: packing.Layout):
        self.function, self.layout = function, layout
        self._packs: dict[int, tuple[ir.Type, ir.DictAttr]] = {}

    def take(self, op, rows: str, payload: ir.Value, scales: ir.Value, bias: ir.Value | None) -> list[ir.Value]:
        """The weight operands of `op`'s kernel, rows packed in the order `rows`; PassError for one it cannot read."""
        biases = [] if bias is None else [self._take(op, "bias", rows, bias)]
        if self.layout in packing.STREAMS:
            return [self._take_stream(op, rows, payload, scales), *biases]
        return [self._take(op, "payload", rows, payload), self._take(op, "scales", rows, scales), *biases]

    def _take(self, op, kind: str, rows: str, value: ir.Value) -> ir.Value:
        attrs = self._attributes(op, kind, value)
        # Beside a stream, a bias has its rows as row_major has them.
        layout: packing.Layout = "row_major" if self.layout in packing.STREAMS else self.layout
        packed = packing.packed_type(layout, kind, list(value.type.shape))
        return self._packed(op, value, packed, packing.recipe(layout, kind, rows, attrs))

    def _take_stream(self, op, rows: str, payload: ir.Value, scales: ir.Value) -> ir.Value:
        """The stream of both, in the place of the payload; nothing reads the scales' argument any more."""
        attrs = self._attributes(op, "payload", payload), self._attributes(op, "scales", scales)
        dims, warps = list(payload.type.shape), packing.STREAM_WARPS["down" if rows == "plain" else "gate_up"]
        recipe = packing.stream_recipe(self.layout, rows, dims, warps, *attrs)
        return self._packed(op, payload, packing.stream_type(self.layout, dims, warps), recipe)

    def _packed(self, op, value: ir.Value, kind: ir.Type, recipe: ir.DictAttr) -> ir.Value:
        if self._packs.setdefault(value.arg_number, (kind, recipe)) != (kind, recipe):
            raise PassError(op, f"argument {value.arg_number} is needed in two packed layouts; pass the weight twice")
        return value

    def _attributes(self, op, kind: str, value: ir.Value) -> dict[str, ir.Attribute]:
        if not isinstance(value, ir.BlockArgument) or "arg_attrs" not in self.function.attributes:
            raise PassError(
                op, f"the {kind} of '{op.OPERATION_NAME}' is computed; it must be a function argument with moe.weight"
            )
        attrs = _named(self.function.arg_attrs[value.arg_number])
        if "moe.weight" not in attrs:
            raise PassError(
                op, f'argument {value.arg_number} is used as {kind}; give it moe.weight = "name in the checkpoint"'
            )
        if kind == "payload" and str(value.type.element_type) != "f4E2M1FN":
            raise PassError(
                op,
                f"expert weights are {value.type.element_type}; this target multiplies MXFP4: "
                "compile with --quantize-weights mxfp4 (moe-quantize-weights)",
            )
        return attrs

    def retype(self) -> None:
        """Give every weight taken its packed type and `moe.pack`."""
        arguments = self.function.entry_block.arguments
        given = [_named(a) for a in self.function.arg_attrs] if "arg_attrs" in self.function.attributes else []
        attrs = given or [{} for _ in arguments]
        for number, (kind, recipe) in self._packs.items():
            arguments[number].set_type(kind)
            attrs[number]["moe.pack"] = recipe
        inputs = [argument.type for argument in arguments]
        self.function.attributes["function_type"] = ir.TypeAttr.get(
            ir.FunctionType.get(inputs, self.function.type.results)
        )
        self.function.arg_attrs = [ir.DictAttr.get(a) for a in attrs]


def _named(attrs: ir.DictAttr) -> dict[str, ir.Attribute]:
    return {attrs[i].name: attrs[i].attr for i in range(len(attrs))}
