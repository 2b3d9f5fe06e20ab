"""A function of a module -> torch.export: M dynamic, weights as arguments, on fake tensors that take no memory."""

import inspect
import operator
import re
import sys
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import TensorArgument

EXAMPLE_TOKENS = 4  # export takes sizes 0 and 1 for constants
ATEN = torch.ops.aten
VIEWS = (ATEN.view.default, ATEN.reshape.default, ATEN.unsqueeze.default, ATEN.squeeze.dim)
WHOLE = (*VIEWS, ATEN.linear.default, ATEN.sym_size.int, operator.getitem)
"""With the operators of torch_ops.py, what decompositions leave as it is, or `_drop_views` drops. To look for what else
there is takes a fifth of a second."""
FRAME = re.compile(r'File "([^"]+)", line (\d+)')

# (shape, dtype); None is M.
Spec = tuple[tuple[int | None, ...], torch.dtype]


def export(
    block: nn.Module, function: Callable[..., Tensor], inputs: Mapping[str, Spec], weights: Mapping[str, Spec]
) -> ExportedProgram:
    """`function(block, *inputs)` as a program of the arguments `inputs` and then `weights`, in order.

    `weights` are those tensors of `block` that become arguments, by their names in it. No tensor of `block` is touched.
    """
    with FakeTensorMode():
        example = tuple(_empty(spec) for spec in inputs.values())
        lent = {name: _empty(spec) for name, spec in weights.items()}
    tokens = Dim("M")
    dynamic = tuple({0: tokens} if shape[0] is None else None for shape, _ in inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch.export.export(
            _Pure(block, function), (example, lent), dynamic_shapes=(dynamic, dict.fromkeys(lent)), strict=False
        )
        if not all(map(_is_whole, program.graph.nodes)):
            program = program.run_decompositions({})
    _drop_views(program)
    _locate(program.graph_module.graph, type(block))
    return program


def _is_whole(node: fx.Node) -> bool:
    """Whether decompositions would leave a node as it is (`WHOLE`)."""
    ours = getattr(node.target, "namespace", None) == "moe"
    return ours or node.op != "call_function" or node.target in WHOLE


class _Call(nn.Module):
    """`function(block, *inputs)` as a module, so that `functional_call` can lend the block other weights."""

    def __init__(self, block: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.block, self.function = block, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.block, *inputs)


class _Pure(nn.Module):
    """The same without any weight of its own: weights are an argument, so export makes arguments of them."""

    def __init__(self, block: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        call = _Call(block, function)
        self.run = lambda weights, inputs: torch.func.functional_call(call, weights, inputs)

    def forward(self, inputs: tuple[Tensor, ...], weights: dict[str, Tensor]) -> Tensor:
        return self.run({f"block.{name}": value for name, value in weights.items()}, inputs)


def _empty(spec: Spec) -> Tensor:
    shape, dtype = spec
    return torch.empty([EXAMPLE_TOKENS if size is None else size for size in shape], dtype=dtype)


def _drop_views(program: ExportedProgram) -> None:
    """Let readers of a view read what it views where both have one shape, as after [M, H] -> [1, M, H] -> [M, H]."""
    graph = program.graph_module.graph
    viewed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.target in VIEWS:
            source = viewed[node] = viewed.get(node.args[0], node.args[0])
            if source.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(source)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    for spec, node in zip(program.graph_signature.output_specs, graph.output_node().args[0], strict=True):
        spec.arg = TensorArgument(name=node.name)


def _locate(graph: fx.Graph, origin: type[nn.Module]) -> None:
    """Keep of each node's stack the lines in the file that defines `origin`, by its path below the import root.

    Nodes without any get the line of the definition itself.
    """
    defined = definition_of(origin)
    if defined is None:
        return
    path, (shown, definition) = inspect.getfile(origin), defined
    for node in graph.nodes:
        frames = FRAME.findall(node.stack_trace or "")
        lines = [line for file, line in frames if file == path] or [definition]
        node.meta["stack_trace"] = "\n".join(f'File "{shown}", line {line}, in forward' for line in lines)


def definition_of(cls: type) -> tuple[str, int] | None:
    """The file that defines `cls`, by its path below the import root, and the line; None where it was typed."""
    try:
        return _relative(inspect.getfile(cls)), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None


def _relative(path: str) -> str:
    """`path` without the import root that it was found under."""
    roots = [root for root in sys.path if root and path.startswith(root.rstrip("/") + "/")]
    return path[len(max(roots, key=len).rstrip("/")) + 1 :] if roots else path
