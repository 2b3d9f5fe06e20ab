"""The fused quant + scale sort against the split pair: where `fused_rows` of the target table comes from.

    python benchmarks/quant_sort.py [--columns 2880] [--threads 2]                         on the CPU
    python benchmarks/quant_sort.py --target sm_90 --artifacts build/quant_sort --compile  on any machine, then
    python benchmarks/quant_sort.py --target sm_90 --artifacts build/quant_sort            on the GPU, without compiler

Stage 1 quantises M tokens that k experts share; on the CPU the fused kernel quantises each of the k*M routed rows, on
a GPU it is in the token sort's launch for few tokens. Stage 2 quantises the routed rows themselves, given here with
k = 1. Every program sorts the tokens first, and the time of the sort alone is taken off; the programs take turns in one
process, and their bytes are compared first. On a GPU each is replayed from a graph of calls.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

import moeloom
from moeloom.measure import SHORTEST_SECONDS, medians
from moeloom.runtime.executable import Executable

ROWS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CALLS = 50
"""Calls in a graph, so that its launch is nothing beside them."""
TILE_ROWS = 32
"""Sorted scales are defined up to a multiple of so many rows."""
KINDS = ("sort", "fused", "split")
DYNAMIC = "tensor<?x"


def program(columns: int, stage: int, topk: int, experts: int, block: int) -> str:
    """A function of one quantise and sort site."""
    x, codes = f"{DYNAMIC}{columns}xbf16>", f"{DYNAMIC}{columns}xf4E2M1FN>"
    scales, groups = f"{DYNAMIC}{columns // 32}xf8E8M0FNU>", -(-columns // 256) * 8
    ids, weights, sorted_scales = f"{DYNAMIC}{topk}xi32>", f"{DYNAMIC}{topk}xf32>", f"{DYNAMIC}{groups}xf8E8M0FNU>"
    return f"""
func.func @site(%x: {x} {{moe.input = "x"}}, %ids: {ids} {{moe.input = "ids"}}, %w: {weights} {{moe.input = "weights"}})
    -> ({codes}, {sorted_scales}) {{
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {{experts = {experts} : i64, block = {block} : i64,
    operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({ids}, {weights})
    -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %codes, %scales = "moe.quant"(%x) {{kind = "per_1x32", scale_mode = "even"}} : ({x}) -> ({codes}, {scales})
  %sorted = "moe.sort_scales"(%scales, %s, %n) {{stage = {stage} : i64, topk = {topk} : i64, layout = "tiled_32x8"}}
    : ({scales}, tensor<?xi32>, tensor<2xi32>) -> {sorted_scales}
  return %codes, %sorted : {codes}, {sorted_scales}
}}
"""


def sort_alone(topk: int, experts: int, block: int) -> str:
    """The same token sort without a site."""
    ids, weights = f"{DYNAMIC}{topk}xi32>", f"{DYNAMIC}{topk}xf32>"
    return f"""
func.func @site(%ids: {ids} {{moe.input = "ids"}}, %w: {weights} {{moe.input = "weights"}})
    -> (tensor<?xi32>, tensor<2xi32>) {{
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {{experts = {experts} : i64, block = {block} : i64,
    operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({ids}, {weights})
    -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return %s, %n : tensor<?xi32>, tensor<2xi32>
}}
"""


def compile_programs(
    folder: Path, target: str, columns: int, stage: int, topk: int, experts: int, block: int | None
) -> None:
    """The artifacts of one stage."""
    from moeloom.lowering import targets  # not on the GPU's machine, which has no compiler

    if block is None:
        row = targets.target(target)
        block = row.plans(row.layout)[0].block
    for kind in KINDS:
        source = folder / f"{kind}.mlir"
        alone = kind == "sort"
        source.write_text(sort_alone(topk, experts, block) if alone else program(columns, stage, topk, experts, block))
        fusion = "auto" if alone else kind
        artifact = folder / name(columns, stage, kind)
        moeloom.compile(source, artifact, targets=[target], fusion=fusion, overwrite=True)


def name(columns: int, stage: int, kind: str) -> str:
    return f"{columns}-stage{stage}-{kind}.moel"


def timed(exe: Executable, inputs: tuple[Tensor, ...]) -> tuple[Callable[[int], object], int]:
    """What runs `exe` on `inputs` into the same outputs again and again, and how many calls one run is."""
    out = exe(*inputs)

    def call(turn: int) -> None:
        exe(*inputs, out=out)

    if inputs[0].device.type == "cpu":
        return call, 1
    exe.device.synchronise()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(CALLS):
            call(turn)

    def replay(turn: int) -> None:
        graph.replay()
        exe.device.synchronise()

    return replay, CALLS


def measure(
    folder: Path,
    device: str,
    columns: int,
    stage: int,
    topk: int,
    experts: int,
    threads: int | None,
    most: int,
    seconds: float = SHORTEST_SECONDS,
) -> None:
    """Print one row for each number of routed rows up to `most`, each of its times of `seconds` of runs."""
    loaded = [moeloom.load(folder / name(columns, stage, kind), device, threads=threads) for kind in KINDS]
    torch.manual_seed(0)
    for exe in loaded:
        exe.prepare(most)
    print(f"\nstage {stage}, H = {columns}, k = {topk}, E = {experts}\n")
    print("| routed rows | M | sort us | fused us | split us | fused / split |\n|---|---|---|---|---|---|")
    for rows in (rows for rows in ROWS if topk <= rows <= most):
        tokens = rows // topk
        x = torch.randn(tokens, columns, dtype=torch.bfloat16)
        ids = torch.stack([torch.randperm(experts)[:topk] for _ in range(tokens)]).int()
        x, ids, weights = (t.to(device) for t in (x, ids, torch.rand(tokens, topk)))
        used = -(-int(loaded[0](ids, weights)[1][0]) // TILE_ROWS) * TILE_ROWS  # what the contract defines
        for what, number, defined in (("payloads", 0, tokens), ("sorted scales", 1, used)):
            one, other = (exe(x, ids, weights)[number].view(torch.uint8)[:defined] for exe in loaded[1:])
            if not torch.equal(one, other):
                raise SystemExit(f"fused and split {what} differ at {rows} rows")
        given = [(ids, weights), (x, ids, weights), (x, ids, weights)]
        runs = [timed(exe, inputs) for exe, inputs in zip(loaded, given, strict=True)]
        counts = [count for _, count in runs]
        sort, fused, split = (
            t / n for t, n in zip(medians([run for run, _ in runs], shortest=seconds), counts, strict=True)
        )
        fused, split = fused - sort, split - sort
        print(f"| {rows} | {tokens} | {sort * 1e6:.2f} | {fused * 1e6:.2f} | {split * 1e6:.2f} | {fused / split:.2f} |")


@click.command(help=__doc__)
@click.option("--columns", default=(2880,), multiple=True, show_default=True, help="H; may be given again.")
@click.option("--stage", default=(1, 2), type=click.IntRange(1, 2), multiple=True, show_default=True, help="1 or 2.")
@click.option("--topk", default=4, show_default=True, help="k.")
@click.option("--experts", default=32, show_default=True, help="E.")
@click.option("--block", type=int, help="Rows of a sort block [default: the target's for the fewest tokens].")
@click.option("--threads", default=None, type=int, help="Threads of all programs on the CPU [default: all].")
@click.option("--most", default=max(ROWS), show_default=True, help="Routed rows to measure up to.")
@click.option("--seconds", default=SHORTEST_SECONDS, show_default=True, help="Of runs that a median is of.")
@click.option("--target", default="cpu", show_default=True, help="Target to compile for.")
@click.option("--artifacts", default=None, type=Path, help="Folder to keep artifacts in [default: a temporary one].")
@click.option("--compile", "only_compile", is_flag=True, help="Compile into --artifacts and stop.")
def main(
    columns: tuple[int, ...],
    stage: tuple[int, ...],
    topk: int,
    experts: int,
    block: int | None,
    threads: int | None,
    most: int,
    seconds: float,
    target: str,
    artifacts: Path | None,
    only_compile: bool,
) -> None:
    device = "cpu" if target == "cpu" else "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        folder = artifacts or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for width in columns:
            for number in stage:
                k = topk if number == 1 else 1
                if only_compile or artifacts is None:
                    compile_programs(folder, target, width, number, k, experts, block)
                if not only_compile:
                    measure(folder, device, width, number, k, experts, threads, most, seconds)


if __name__ == "__main__":
    main()
