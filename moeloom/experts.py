"""The experts of a block as `torch.moe.experts` takes them (torch_ops.py), and the functions that are that alone.

Needs no torch, so that kernels can be ordered before torch is imported (ahead.py). E experts, H hidden, I intermediate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch_mlir import ir

from moeloom.shape import GROUP

SCALAR_TYPES = {"bf16": 15, "f16": 5}
"""PyTorch's numbers of the dtypes that activations have."""
Weight = tuple[tuple[int, ...], str]
"""Shape, and MLIR's element type: ui8, bf16, f16, f32."""


@dataclass(frozen=True)
class Experts:
    """What `torch.moe.experts` is given besides activations and routes.

    `element` is that of activations, `weights` are by their names in the block and in its order. `operands` name those
    that are gate_up, its scales and bias, down, its scales and bias; None is one that there is not. The rest are the
    operator's last arguments.
    """

    hidden: int
    topk: int
    element: str
    weights: Mapping[str, Weight]
    operands: tuple[str | None, ...]
    activation: str
    alpha: float
    limit: float
    gate_up_order: str
    weight_order: str


def mxfp4_weights(count: int, hidden: int, inner: int, element: str) -> Iterator[tuple[str, Weight]]:
    """Every tensor of gpt-oss experts as checkpoints store them, e2m1 `_blocks` and e8m0 `_scales`, and its name."""
    for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        yield f"{name}_blocks", ((count, rows, columns // GROUP, GROUP // 2), "ui8")
        yield f"{name}_scales", ((count, rows, columns // GROUP), "ui8")
        yield f"{name}_bias", ((count, rows), element)


def add_functions(module: ir.Module, experts: Experts, stem: str, *, prequantised: bool, location: str) -> list[str]:
    """Put `<stem>.experts` at the end of `module`, and `<stem>.experts_prequantised` where that is wanted; their names.

    location: of all operations, as MLIR writes it.
    """
    payload = {
        "payload": f"!torch.vtensor<[?,{experts.hidden // 2}],ui8>",
        "scales": f"!torch.vtensor<[?,{experts.hidden // GROUP}],ui8>",
    }
    made = {f"{stem}.experts": {"x": f"!torch.vtensor<[?,{experts.hidden}],{experts.element}>"}}
    made |= {f"{stem}.experts_prequantised": payload} if prequantised else {}
    for name, x in made.items():
        function = ir.Operation.parse(_function(experts, name, x, location), context=module.context)
        module.body.append(function)
    return list(made)


def _function(experts: Experts, name: str, x: Mapping[str, str], location: str) -> str:
    """The MLIR of a function that is the operator: of `x`, one tensor or payload and scales, ids, routing weights and
    every weight of the block."""
    routes = {"ids": f"!torch.vtensor<[?,{experts.topk}],si32>", "weights": f"!torch.vtensor<[?,{experts.topk}],f32>"}
    out = f"!torch.vtensor<[?,{experts.hidden}],{experts.element}>"
    arguments = [(f"%{key}", kind, f'moe.input = "{key}"') for key, kind in {**x, **routes}.items()]
    value_of: dict[str | None, tuple[str, str]] = {None: ("%none", "!torch.none")}
    for number, (key, (shape, element)) in enumerate(experts.weights.items()):
        value_of[key] = f"%w{number}", f"!torch.vtensor<[{','.join(map(str, shape))}],{element}>"
        arguments.append((*value_of[key], f'moe.weight = "{key}"'))
    constants = [
        ("none", "none", ""),
        ("dtype", "int", SCALAR_TYPES[experts.element]),
        ("activation", "str", f'"{experts.activation}"'),
        ("alpha", "float", f"{experts.alpha:.17e}"),
        ("limit", "float", f"{experts.limit:.17e}"),
        ("gate_up_order", "str", f'"{experts.gate_up_order}"'),
        ("weight_order", "str", f'"{experts.weight_order}"'),
    ]
    operands = [(f"%{key}", kind) for key, kind in x.items()]
    operands += [value_of[None]] * (len(x) == 1)  # x has no scales
    operands += [(f"%{key}", kind) for key, kind in routes.items()]
    operands += [value_of[key] for key in experts.operands]
    operands += [(f"%{key}", f"!torch.{kind}") for key, kind, _ in constants[1:]]
    used, kinds = zip(*operands, strict=True)
    body = [f"%{key} = torch.constant.{kind} {value}" for key, kind, value in constants if f"%{key}" in used]
    body += [
        f'%out = torch.operator "torch.moe.experts"({", ".join(used)}) : ({", ".join(kinds)}) -> {out}',
        f"return %out : {out}",
    ]
    taken = ", ".join(f"{value}: {kind} {{{about}}} {location}" for value, kind, about in arguments)
    lines = "".join(f"{line} {location}\n" for line in body)
    attributes = "attributes {torch.assume_strict_symbolic_shapes}"
    return f"func.func @{name}({taken}) -> {out} {attributes} {{\n{lines}}} {location}"
