"""The fused quant + scale sort against the split pair on the CPU: where `fused_rows` of the target table comes from.

    python benchmarks/quant_sort.py [--columns 2880] [--threads 2]

Stage 1 quantises M tokens that k = 4 experts share: there the fused kernel quantises each of the 4*M routed rows. Stage
2 quantises the routed rows themselves. Both programs sort the tokens first; they take turns in one process, and their
bytes are compared first.
"""

import tempfile
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

import moeloom
from moeloom.measure import medians
from moeloom.runtime.executable import Executable

EXPERTS, TOPK = 32, 4
ROWS = (4, 16, 64, 256, 1024, 2048, 4096, 8192, 16384)
DYNAMIC = "tensor<?x"


def program(columns: int, stage: int, topk: int) -> str:
    """A function of one quantise and sort site."""
    x, codes = f"{DYNAMIC}{columns}xbf16>", f"{DYNAMIC}{columns}xf4E2M1FN>"
    scales, groups = f"{DYNAMIC}{columns // 32}xf8E8M0FNU>", -(-columns // 256) * 8
    ids, weights, sorted_scales = f"{DYNAMIC}{topk}xi32>", f"{DYNAMIC}{topk}xf32>", f"{DYNAMIC}{groups}xf8E8M0FNU>"
    return f"""
func.func @site(%x: {x} {{moe.input = "x"}}, %ids: {ids} {{moe.input = "ids"}}, %w: {weights} {{moe.input = "weights"}})
    -> ({codes}, {sorted_scales}) {{
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {{experts = {EXPERTS} : i64, block = 32 : i64,
    operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({ids}, {weights})
    -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %codes, %scales = "moe.quant"(%x) {{kind = "per_1x32", scale_mode = "even"}} : ({x}) -> ({codes}, {scales})
  %sorted = "moe.sort_scales"(%scales, %s, %n) {{stage = {stage} : i64, topk = {topk} : i64, layout = "tiled_32x8"}}
    : ({scales}, tensor<?xi32>, tensor<2xi32>) -> {sorted_scales}
  return %codes, %sorted : {codes}, {sorted_scales}
}}
"""


def call(exe: Executable, inputs: tuple[Tensor, ...], out: tuple[Tensor, ...], turn: int) -> None:
    exe(*inputs, out=out)


def measure(folder: Path, columns: int, stage: int, threads: int | None) -> None:
    """Print one row for each number of routed rows."""
    topk = TOPK if stage == 1 else 1
    source = folder / f"stage{stage}.mlir"
    source.write_text(program(columns, stage, topk))
    loaded = []
    for fusion in ("fused", "split"):
        artifact = folder / f"stage{stage}-{fusion}.moel"
        moeloom.compile(source, artifact, fusion=fusion)
        loaded.append(moeloom.load(artifact, threads=threads))
    print(f"\nstage {stage}, H = {columns}, k = {topk}, E = {EXPERTS}\n")
    print("| routed rows | M | fused us | split us | fused / split |\n|---|---|---|---|---|")
    for rows in ROWS:
        tokens = max(1, rows // topk)
        x = torch.randn(tokens, columns, dtype=torch.bfloat16)
        ids = torch.stack([torch.randperm(EXPERTS)[:topk] for _ in range(tokens)]).int()
        weights = torch.rand(tokens, topk)
        outs = [exe(x, ids, weights) for exe in loaded]
        if not torch.equal(outs[0][0], outs[1][0]):
            raise SystemExit(f"fused and split payloads differ at {rows} rows")
        calls = [partial(call, exe, (x, ids, weights), out) for exe, out in zip(loaded, outs, strict=True)]
        fused, split = medians(calls)
        print(f"| {rows} | {tokens} | {fused * 1e6:.1f} | {split * 1e6:.1f} | {fused / split:.2f} |")


@click.command(help=__doc__)
@click.option("--columns", default=2880, show_default=True)
@click.option("--threads", default=None, type=int, help="Threads of both [default: all].")
def main(columns: int, threads: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for stage in (1, 2):
            measure(Path(folder), columns, stage, threads)


if __name__ == "__main__":
    main()
