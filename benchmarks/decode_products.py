"""The decode products of sm_90 against a float64 reference and against the floor of the memory.

    python benchmarks/decode_products.py --folder build/decode --compile      on any machine, then
    python benchmarks/decode_products.py --folder build/decode [--sustained]  on the GPU, without compiler

First every kernel of every shape is checked: random weights and routing, padding rows, ids of -1, results poisoned.
Then those of gpt-oss-120b are timed: graphs of 20 launches that take turns among four layers' weights, so that none is
cached; nine replays after a pause, and with --sustained a second of them. The floor is the bytes of the experts that
the routing names, at 4.57 TB/s.
"""

import ctypes
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

from moeloom.runtime import reference
from moeloom.runtime.cuda import Cuda
from moeloom.runtime.pack_stream import pack_stream
from moeloom.runtime.stream import EXCHANGE_FLAGS

SM = 132
BYTES_PER_SECOND = 4.57e12  # that an H200 reads, measured
WEIGHT_BYTES = 17 / 32
LAYERS, LAUNCHES, REPLAYS = 4, 20, 9
OCTET, SUMS_A_THREAD = 8, 4  # of the sums that programs exchange, which are zeroed before the first launch alone
TOLERANCE = 2e-3
F4 = {"x": "f4E2M1FN", "layout": "tiled_32x8"}
BASE: dict[str, Any] = {
    "block": 8, "x": "bf16", "layout": "none", "has_bias": False, "has_weights": False, "requantize": "none",
    "activation": "silu", "alpha": 1.702, "limit": 7.0, "num_stages": 1, "ring": 8, "maxnreg": 128, "early": False,
    "quantise": "none", "routes": "none", "experts": 0, "paired": False,
}  # fmt: skip
GATE_UP, DOWN = (
    {"num_warps": 8, "programs": 2 * SM},
    {"num_warps": 4, "stream_warps": 4, "programs": 4 * SM, "splits": 1},
)
GPT_OSS = {"hidden": 2880, "intermediate": 2880, "topk": 4, "has_bias": True, "activation": "swiglu"}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt_oss": GPT_OSS,
    "gpt_oss_a4": GPT_OSS | F4,
    "gpt_oss_split": GPT_OSS | {"splits": 3},
    "deepseek_rank": {"hidden": 7168, "intermediate": 256, "topk": 8},
    "deepseek_a4": {"hidden": 7168, "intermediate": 2048, "topk": 8, "splits": 2} | F4,
    "qwen3": {"hidden": 2048, "intermediate": 768, "topk": 8, "weights_in": "gate_up"},
    "mixtral": {"hidden": 4096, "intermediate": 14336, "topk": 2, "splits": 7},
    "odd": {"hidden": 160, "intermediate": 96, "topk": 3, "has_bias": True, "activation": "gelu_tanh"},
    "odd_rows": {"hidden": 160, "intermediate": 1056, "topk": 3, "splits": 2} | F4 | {"layout": "row_major"},
}
CHECKED = (1, 2, 7, 29)
TIMED = (1, 4, 16, 32, 64)
TIMED_SHAPES = ("gpt_oss", "gpt_oss_split", "gpt_oss_a4")
Launch = Callable[[int], None]


Described = tuple[str, str, dict[str, Any]]
"""File, template and params of a kernel."""


def kernels() -> Iterator[Described]:
    """Every shape's two kernels; routing weights are in one of them."""
    for name, shape in SHAPES.items():
        weights_in = shape.get("weights_in", "down")
        sizes = BASE | {key: value for key, value in shape.items() if key not in ("splits", "weights_in")}
        yield f"{name}.gate_up", "decode_gate_up", sizes | GATE_UP | {"has_weights": weights_in == "gate_up"}
        splits = {"splits": shape.get("splits", 1)}
        yield f"{name}.down", "decode_down", sizes | DOWN | splits | {"has_weights": weights_in == "down"}


def compile_kernels(folder: Path, kernels: Iterable[Described]) -> None:
    """Cubins and what a launch needs to know of them."""
    from moeloom.lowering.triton import build
    from moeloom.lowering.triton.architecture import ARCHITECTURES
    from moeloom.lowering.triton.build import CODE, FACTS
    from moeloom.lowering.triton.templates import TEMPLATES

    folder.mkdir(parents=True, exist_ok=True)
    described = {file: {"template": template, "params": params} for file, template, params in kernels}
    compiled = build.compile_kernels(described, ARCHITECTURES["sm_90"], folder / "cache", lambda *_: None)
    for file, made in compiled.items():
        params = described[file]["params"]
        about = {
            "params": params,
            "arguments": [name for name, _ in TEMPLATES[described[file]["template"]].arguments(params)],
            "facts": json.loads((made / FACTS).read_text()),
        }
        (folder / f"{file}.cubin").write_bytes((made / CODE).read_bytes())
        (folder / f"{file}.json").write_text(json.dumps(about))


class Kernel:
    """A compiled kernel on the current stream."""

    def __init__(self, driver: Cuda, folder: Path, file: str) -> None:
        described = json.loads((folder / f"{file}.json").read_text())
        self.params, self.arguments, facts = (described[name] for name in ("params", "arguments", "facts"))
        module = driver.load((folder / f"{file}.cubin").read_bytes(), file)
        function = driver.function(module, facts["symbol"], facts["shared"])
        self._launched = (function, self.params["programs"], 1, 1, facts["threads"], 1, 1, facts["shared"])
        self._driver, self._scratch = driver, facts["scratch"]

    def launch(self, arguments: list[Tensor | int], m: int) -> None:
        if len(arguments) != len(self.arguments):
            raise ValueError(f"{len(arguments)} arguments are given for {', '.join(self.arguments)}")
        words = [value if isinstance(value, int) else value.data_ptr() for value in arguments]
        slots = (ctypes.c_int64 * (len(words) + 1 + self._scratch))(*words, m)
        addresses = [ctypes.addressof(slots) + 8 * place for place in range(len(slots))]
        stream = torch.cuda.current_stream().cuda_stream
        code = self._driver.launch(*self._launched, stream, (ctypes.c_void_p * len(slots))(*addresses), None)
        self._driver.check(code, "a launch is refused")


class Product:
    """One of the two products of a shape: weights on the GPU, packed and as they were."""

    def __init__(self, kernel: Kernel, name: str, experts: int) -> None:
        self.kernel, self.first, self.params = kernel, name.endswith("gate_up"), kernel.params
        hidden, intermediate = self.params["hidden"], self.params["intermediate"]
        self.rows, self.columns = (2 * intermediate, hidden) if self.first else (hidden, intermediate)
        self.codes = torch.randint(256, (experts, self.rows, self.columns // 2), dtype=torch.uint8, device="cuda")
        shape = (experts, self.rows, self.columns // 32)
        self.scales = torch.randint(118, 123, shape, dtype=torch.uint8, device="cuda")
        self.bias = torch.randn(experts, self.rows, device="cuda") / 4 if self.params["has_bias"] else None
        order = "gate_up_concatenated" if self.first else "plain"
        warps = self.params.get("stream_warps", self.params["num_warps"])
        self.stream = torch.stack(
            [pack_stream(c, s, order, warps) for c, s in zip(self.codes, self.scales, strict=True)]
        )
        self.outputs = intermediate if self.first else hidden
        threads = 32 * self.params["num_warps"]
        words = EXCHANGE_FLAGS + self.params["programs"] * threads * SUMS_A_THREAD * (self.params["block"] // OCTET)
        self.exchange = torch.zeros(words, dtype=torch.int32, device="cuda")

    def x(self, m: int) -> Tensor:
        """Rows of the stage; of the first one with a stride of their own."""
        rows, wide = (m, 16) if self.first else (m * self.params["topk"], 0)
        return torch.randn(rows, self.columns + wide, device="cuda").bfloat16()[:, : self.columns]

    def operands(self, x: Tensor, sort: list[Tensor], stream: Tensor) -> tuple[list[Tensor | int], Tensor]:
        """Arguments before the result, and the values that x stands for."""
        ids, weights, expert_ids, num_valid = sort
        given: list[Tensor | int] = [x, x.stride(0)] if self.first else [x]
        values = x.double()
        if self.params["x"] != "bf16":
            codes, scales = reference.quantise(x, "even")
            stage, layout = 1 if self.first else 2, self.params["layout"]
            placed = reference.sort_scales(scales.cpu(), ids.cpu(), num_valid.cpu(), stage, self.params["topk"], layout)
            given = [codes, codes.stride(0), placed.cuda()] if self.first else [codes, placed.cuda()]
            values = reference.dequantise(codes, scales).double()
        given += [ids, expert_ids, num_valid, *([weights] if self.params["has_weights"] else []), stream]
        given += [] if self.bias is None else [self.bias]
        return given + ([self.exchange] if "exchange" in self.kernel.arguments else []), values

    def result(self, m: int) -> Tensor:
        """Poisoned."""
        rows = m * self.params["topk"]
        if self.first:
            return torch.full((rows, self.outputs), torch.nan, dtype=torch.bfloat16, device="cuda")
        return torch.full((self.params["splits"], rows, self.outputs), torch.nan, device="cuda")

    def wanted(self, values: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """float64 [M*k, outputs], NaN in rows without an expert."""
        topk = self.params["topk"]
        out = torch.full((ids.numel(), self.outputs), torch.nan, dtype=torch.float64, device="cuda")
        for e in ids[ids >= 0].unique().tolist():
            token, slot = (ids == e).nonzero(as_tuple=True)
            row, share = token * topk + slot, weights[token, slot].double()[:, None]
            y = values[token if self.first else row] @ reference.dequantise(self.codes[e], self.scales[e]).double().T
            if self.first:
                y = y * share if self.params["has_weights"] else y
                y = y if self.bias is None else y + self.bias[e].double()
                gate, up = y.chunk(2, 1)
                names = {name: self.params[name] for name in ("activation", "alpha", "limit")}
                out[row] = reference.activate(gate, up, **names)
                continue
            y = y if self.bias is None else y + self.bias[e].double()
            out[row] = y * share if self.params["has_weights"] else y
        return out


def routing(m: int, topk: int, experts: int, block: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    ids = torch.rand(m, experts).argsort(1)[:, :topk].int()
    weights = torch.rand(m, topk) + 0.2
    sort = reference.sort_tokens(ids, weights, experts, block)
    return ids, weights, [part.cuda() for part in sort]


def check(product: Product, m: int, experts: int) -> float:
    """Relative L2 error; inf where a row is not written, or written without need, or not twice the same."""
    block = product.params["block"]
    ids, weights, sort = routing(m, product.params["topk"], experts, block)
    if m > 2:
        ids[0], ids[1] = -1, ids[2]  # no expert; two tokens alike
        sort = [part.cuda() for part in reference.sort_tokens(ids, weights, experts, block)]
    arguments, values = product.operands(product.x(m), sort, product.stream)
    result = product.result(m)
    product.kernel.launch([*arguments, result], m)
    again = product.result(m)
    product.kernel.launch([*arguments, again], m)
    if not torch.equal(result.view(torch.uint8), again.view(torch.uint8)):
        return float("inf")
    found = result.double() if product.first else result.double().sum(0)
    wanted = product.wanted(values, ids.cuda(), weights.cuda())
    if product.first:  # rounded as its result: of a few tokens, the rounding alone can be more than the tolerance
        wanted = wanted.bfloat16().double()
    if not torch.equal(found.isnan(), wanted.isnan()):
        return float("inf")
    live = ~wanted[:, 0].isnan()
    return float((found[live] - wanted[live]).norm() / wanted[live].norm())


def replays(graph: torch.cuda.CUDAGraph, count: int, launches: int) -> list[float]:
    """Microseconds a launch of each replay of a graph of so many."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / launches * 1e3 for start, end in events]


def measure(launch: Launch, sustained: bool, launches: int = LAUNCHES) -> list[float]:
    """Burst, and sustained when asked for."""
    for layer in range(LAYERS):
        launch(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(launches):
            launch(number % LAYERS)
    replays(graph, 1, launches)
    time.sleep(0.05)
    burst = median(replays(graph, REPLAYS, launches))
    if not sustained:
        return [burst]
    times, end = list[float](), time.monotonic() + 1.2
    while time.monotonic() < end:
        times += replays(graph, 5, launches)
    return [burst, median(times[len(times) // 2 :])]


def time_product(product: Product, experts: int, m: int, sustained: bool) -> str:
    """A cell of the table: microseconds and percent of the floor."""
    streams = [product.stream, *(product.stream[torch.randperm(experts)] for _ in range(LAYERS - 1))]
    routed = [routing(m, product.params["topk"], experts, product.params["block"]) for _ in range(LAYERS)]
    x, result = product.x(m), product.result(m)
    calls = [[*product.operands(x, routed[i][2], streams[i])[0], result] for i in range(LAYERS)]
    touched = sum(len(ids.unique()) for ids, _, _ in routed) / LAYERS
    floor = touched * product.rows * product.columns * WEIGHT_BYTES / BYTES_PER_SECOND * 1e6
    times = measure(lambda layer: product.kernel.launch(calls[layer], m), sustained)
    return " ".join(f"{t:6.1f} us {floor / t:4.0%}" for t in times)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="where the compiled kernels are")
@click.option("--compile", "compiling", is_flag=True, help="compile the kernels; needs no GPU")
@click.option("--sustained", is_flag=True, help="time a second of replays too")
def main(folder: Path, compiling: bool, sustained: bool) -> None:
    """Check and time the decode products."""
    if compiling:
        compile_kernels(folder, kernels())
        return
    driver = Cuda(torch.cuda.current_device())
    driver.enter_thread()
    for file, _, _ in kernels():
        product = Product(Kernel(driver, folder, file), file, 16)
        errors = [check(product, m, 16) for m in CHECKED]
        click.echo(f"{file:24} relative L2 {max(errors):.1e}")
        if max(errors) > TOLERANCE:
            raise click.ClickException(f"{file} is wrong at M = {CHECKED[errors.index(max(errors))]}")
    click.echo(f"{'':24} " + " ".join(f"{f'M = {m}':>{29 if sustained else 14}}" for m in TIMED))
    for file, _, _ in kernels():
        if file.split(".")[0] in TIMED_SHAPES:
            product = Product(Kernel(driver, folder, file), file, 128)
            click.echo(f"{file:24} " + "  ".join(time_product(product, 128, m, sustained) for m in TIMED))


if __name__ == "__main__":
    main()
