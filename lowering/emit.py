"""Lowered functions -> the program of docs/program.md: inputs, weights, steps, values, slots; plain data for JSON."""

import math
import re
from collections.abc import Iterator

from torch_mlir import ir
from torch_mlir.dialects import func

from moeloom.dialects import moe
from moeloom.lowering import memory_plan, sizes
from moeloom.passes.base import PassError
from moeloom.runtime.sizes import evaluate

TYPICAL_TOKENS = 64
"""M at which the memory plan compares sizes."""

DTYPES = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "i1": "bool",
    "i8": "uint8",
    "ui8": "uint8",
    "i32": "int32",
    "si32": "int32",
    "i64": "int64",
    "si64": "int64",
    "f4E2M1FN": "float4_e2m1fn_x2",
    "f8E8M0FNU": "float8_e8m0fnu",
}
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int32": 4, "int64": 8}
CASTS = ("torch_c.to_builtin_tensor", "torch_c.from_builtin_tensor")
_VTENSOR = re.compile(r"!torch\.vtensor<\[([^\]]*)\],(\w+)>")


def kernels(module: ir.Module) -> dict[str, dict]:
    """Every kernel.define of a lowered module: symbol -> {"template", "params"}."""
    found = {}
    for op in module.body.operations:
        if op.operation.name == "kernel.define":
            params = op.operation.attributes["params"]
            named = {params[i].name: params[i].attr.value for i in range(len(params))}
            found[op.operation.attributes["sym_name"].value] = {
                "template": op.operation.attributes["template"].value,
                "params": named,
            }
    return found


def entries(module: ir.Module) -> dict[str, dict]:
    """Entry name -> {"program", "prefix"}: the moe.entry ops, or every public function where there are none."""
    named = {
        op.entry.value: {"program": op.program.value, "prefix": op.prefix.value}
        for op in module.body.operations
        if isinstance(op, moe.EntryOp)
    }
    return named or {name: {"program": name, "prefix": ""} for name in programs_of(module)}


def programs_of(module: ir.Module) -> dict[str, func.FuncOp]:
    """The public functions with a body, by name."""
    return {
        op.name.value: op
        for op in module.body.operations
        if isinstance(op, func.FuncOp) and not op.is_external and "sym_visibility" not in op.attributes
    }


def program(function: func.FuncOp) -> dict:
    """The program of one lowered function; PassError at an op that the runtime cannot run."""
    return _Program(function).emit()


class _Program:
    def __init__(self, function: func.FuncOp):
        self.function = function
        self.ids: dict[ir.Value, int] = {}
        self.literals: dict[ir.Value, dict] = {}
        self.values: dict[int, dict] = {}
        self.inputs: list[dict] = []
        self.exchanges: list[dict] = []
        self.weights: list[dict] = []

    def emit(self) -> dict:
        block = self.function.entry_block
        strided = _strided_operands(block)
        for number, argument in enumerate(block.arguments):
            self.argument(number, argument, strided)
        steps = list(self.steps(block))
        outputs = self.outputs(block.operations[len(block.operations) - 1])
        kept = {output["value"] for output in outputs}
        slots = memory_plan.plan(steps, self.values, kept, _typical_bytes)
        return {
            "inputs": self.inputs,
            "weights": self.weights,
            "exchanges": self.exchanges,
            "outputs": outputs,
            "values": {
                str(value): {key: entry[key] for key in ("dtype", "shape", "slot")}
                for value, entry in self.values.items()
                if value not in kept
            },
            "slots": slots,
            "steps": steps,
        }

    def argument(self, number: int, argument: ir.BlockArgument, strided: set[ir.Value]) -> None:
        attrs = self.function.arg_attrs[number] if "arg_attrs" in self.function.attributes else None
        named = {attrs[i].name: attrs[i].attr for i in range(len(attrs))} if attrs is not None else {}
        value = self.new_id(argument)
        dtype, shape = tensor_of(argument.type, self.function)
        if "moe.weight" in named:
            if not list(argument.uses):
                return  # its bytes are part of another weight (a stream holds its scales)
            name = packed_name(named)
            pack = _plain(named["moe.pack"]) if "moe.pack" in named else _as_is(named)
            self.weights.append({"name": name, "value": value, "dtype": dtype, "shape": shape, "pack": pack})
            return
        name = named["moe.input"].value if "moe.input" in named else f"arg{number}"
        self.inputs.append(
            {
                "name": name,
                "value": value,
                "dtype": dtype,
                "shape": shape,
                "optional": name == "num_tokens",
                "strided": argument in strided,
            }
        )

    def new_id(self, value: ir.Value) -> int:
        self.ids[value] = len(self.ids)
        return self.ids[value]

    def result(self, value: ir.Value, dtype: str, shape: list, view_of: int | None = None) -> int:
        """The id of an op's result; one that a guard already named keeps that name."""
        number = self.ids[value] if value in self.ids else self.new_id(value)
        self.values[number] = {"dtype": dtype, "shape": shape} | ({} if view_of is None else {"view_of": view_of})
        return number

    def steps(self, block: ir.Block) -> Iterator[dict]:
        for op in block.operations:
            name = op.operation.name
            if name in ("func.return", "kernel.yield", "arith.constant", "tensor.dim"):
                continue
            if name in CASTS:
                self.ids[op.operation.results[0]] = self.ids[op.operation.operands[0]]
            elif name == "kernel.exchange":
                _, (words,) = tensor_of(op.operation.results[0].type, op)
                self.exchanges.append({"value": self.new_id(op.operation.results[0]), "words": words})
            elif name == "kernel.launch":
                yield self.launch(op.operation)
            elif name == "kernel.alternatives":
                yield self.alternatives(op.operation)
            elif name.startswith("torch.constant.") or name == "torch.prim.ListConstruct":
                self.literals[op.operation.results[0]] = self.literal(op.operation)
            elif name.startswith("torch.aten.") or name == "torch.operator":
                yield self.aten(op.operation)
            else:
                raise PassError(op, f"'{name}' cannot run in an artifact; lower it to kernels or torch.aten ops first")

    def launch(self, op: ir.Operation) -> dict:
        results = []
        for value, shape in zip(op.results, op.attributes["result_shapes"], strict=True):
            dtype = DTYPES[str(value.type.element_type)]
            exprs = [sizes.to_json(e) for e in shape.value.results]
            results.append(self.result(value, dtype, _halve_packed(dtype, exprs)))
        return {
            "launch": op.attributes["kernel"].value,
            "operands": [self.ids[value] for value in list(op.operands)[1:]],
            "strided": list(op.attributes["strided"]),
            "results": results,
            "op": op.attributes["moe.op"].value,
            "tiles": sizes.minimum(list(op.attributes["grid"].value.results)),
        }

    def alternatives(self, op: ir.Operation) -> dict:
        for value in op.results:
            if value not in self.ids:  # an outer guard may have named it
                self.new_id(value)
        branches = []
        for region in op.regions:
            block = region.blocks[0]
            yielded = block.operations[len(block.operations) - 1].operation.operands
            for value, result in zip(yielded, op.results, strict=True):
                self.ids[value] = self.ids[result]
                if not isinstance(value.owner, ir.Block) and value.owner.name in CASTS:
                    self.ids[value.owner.operands[0]] = self.ids[result]
            branches.append(list(self.steps(block)))
        guard = {name: op.attributes[name].value for name in ("choice", "max_m", "reason")}
        return {"alternatives": guard, "first": branches[0], "second": branches[1]}

    def literal(self, op: ir.Operation) -> dict:
        if op.name == "torch.prim.ListConstruct":
            return {"list": [self.operand(value) for value in op.operands]}
        if op.name == "torch.constant.none":
            return {"literal": None}
        value = op.attributes["value"].value
        return {"literal": bool(value) if op.name == "torch.constant.bool" else value}

    def operand(self, value: ir.Value) -> dict:
        return self.literals[value] if value in self.literals else {"value": self.ids[value]}

    def aten(self, op: ir.Operation) -> dict:
        """A residual ATen op, checked against PyTorch's own schema."""
        import torch  # not for what is kernels alone: it takes longer than the passes

        name = op.attributes["name"].value if op.name == "torch.operator" else op.name
        name = name.removeprefix("torch.")
        name = name if name.count(".") == 2 else f"{name}.default"
        namespace, base, overload = name.split(".")
        packet = getattr(getattr(torch.ops, namespace), base, None)
        if packet is None or overload not in packet.overloads():
            raise PassError(op, f"PyTorch has no operator {name}")
        schema = getattr(packet, overload)._schema
        arguments = []
        for value, wanted in zip(op.operands, schema.arguments, strict=False):
            argument = self.operand(value)
            if "ScalarType" in str(wanted.real_type) and argument.get("literal") is not None:
                argument = {"dtype": _scalar_type(argument["literal"])}
            arguments.append(argument)
        view = bool(schema.returns and schema.returns[0].alias_info is not None)
        base_value = self.ids[op.operands[0]] if view else None
        results = []
        for value in op.results:
            if str(value.type).startswith("!torch.vtensor"):
                results.append(self.result(value, *tensor_of(value.type, op), view_of=base_value))
            else:
                results.append(self.new_id(value))
        return {"aten": name, "args": arguments, "results": results}

    def outputs(self, terminator: ir.OpView) -> list[dict]:
        outputs: list[dict] = []
        for value in terminator.operation.operands:
            number = self.ids[value]
            if number not in self.values or number in {output["value"] for output in outputs}:
                raise PassError(
                    self.function, "a function must return values it computes, each once; an input is returned here"
                )
            dtype, shape = self.values[number]["dtype"], self.values[number]["shape"]
            outputs.append({"value": number, "dtype": dtype, "shape": shape})
        return outputs


def declared_weights(function: func.FuncOp) -> dict[str, dict]:
    """dtype and shape of every weight argument before lowering, by its name in the checkpoint."""
    found = {}
    for number, argument in enumerate(function.arguments):
        attrs = function.arg_attrs[number] if "arg_attrs" in function.attributes else {}
        if "moe.weight" in attrs:
            dtype, shape = tensor_of(argument.type, function)
            found[attrs["moe.weight"].value] = {"dtype": dtype, "shape": shape}
    return found


def packed_name(attrs: dict[str, ir.Attribute]) -> str:
    """A weight's name in the artifact: the checkpoint's, with the part where one tensor is packed into two."""
    name = attrs["moe.weight"].value
    return f"{name}.{attrs['moe.part'].value}" if "moe.part" in attrs else name


def _as_is(attrs: dict[str, ir.Attribute]) -> dict:
    return {"kind": "as_is", "sources": [attrs["moe.weight"].value], "rows": "plain", "quantize": "none", "order": "nk"}


def _plain(attr: ir.Attribute):
    """An attribute as Python data."""
    if isinstance(attr, ir.DictAttr):
        return {attr[i].name: _plain(attr[i].attr) for i in range(len(attr))}
    if isinstance(attr, ir.ArrayAttr):
        return [_plain(a) for a in attr]
    return attr.value


def _strided_operands(block: ir.Block) -> set[ir.Value]:
    """Arguments whose every reader takes a row stride, so that their rows may lie apart."""
    taken: dict[ir.Value, bool] = {}
    for argument in block.arguments:
        readers = list(_readers(argument))
        taken[argument] = bool(readers) and all(readers)
    return {argument for argument, strided in taken.items() if strided}


def _readers(value: ir.Value) -> Iterator[bool]:
    """For each reader of `value`, whether it takes any row stride; ATen ops do."""
    for use in value.uses:
        op = use.owner.operation if hasattr(use.owner, "operation") else use.owner
        if op.name in CASTS:
            yield from _readers(op.results[0])
        elif op.name == "kernel.launch":
            yield use.operand_number - 1 in list(op.attributes["strided"])
        elif op.name != "tensor.dim":
            yield op.name.startswith("torch.")


def tensor_of(kind: ir.Type, where) -> tuple[str, list]:
    """(dtype, shape) of a tensor type; a dynamic size is M."""
    if isinstance(kind, ir.RankedTensorType):
        element = str(kind.element_type)
        shape = ["M" if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)]
    else:
        match = _VTENSOR.fullmatch(str(kind))
        if match is None:
            raise PassError(where, f"a value of type {kind} cannot be an input or result of an artifact")
        element = match.group(2)
        shape = ["M" if size == "?" else int(size) for size in match.group(1).split(",") if size]
    if element not in DTYPES:
        raise PassError(where, f"element type {element} has no PyTorch dtype")
    return DTYPES[element], _halve_packed(DTYPES[element], shape)


def _halve_packed(dtype: str, shape: list) -> list:
    """FP4 tensors hold two codes a byte along the last axis, whose size is always static."""
    return [*shape[:-1], shape[-1] // 2] if dtype == "float4_e2m1fn_x2" else shape


def _typical_bytes(entry: dict) -> int:
    dims = [evaluate(form, TYPICAL_TOKENS) for form in entry["shape"]]
    return math.prod(dims) * BYTES.get(entry["dtype"], 1)


def _scalar_type(number: int) -> str:
    """The dtype that PyTorch numbers `number`, as torch-mlir passes dtypes."""
    numbered = {
        0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
        11: "bool", 15: "bfloat16",
    }  # fmt: skip
    return numbered[number]
