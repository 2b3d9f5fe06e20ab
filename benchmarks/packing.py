"""How fast a checkpoint's experts become the stream that decode kernels read, and in how much memory.

    python benchmarks/packing.py [--threads 2] [--experts 8] [--json]

Experts of gpt-oss-120b: payload u8 [E, 5760, 90, 16] and [E, 2880, 90, 16] with their scales, random, in memory.
Both tensors are packed by the recipes of an sm_90 artifact, an expert at a time into one tensor, as at load; MB/s are
10^6 bytes of the source. Peak memory is what the process grew by beyond source and result.
"""

import json
import os
import resource
import statistics
import time

import click
import torch
from torch import Tensor

from moeloom.runtime.pack import pack
from moeloom.runtime.stream import Stream

HIDDEN = INTERMEDIATE = 2880
GROUP = 32
TENSORS = {
    "gate_up": (2 * INTERMEDIATE, HIDDEN, "gate_up_interleaved", 8),
    "down": (HIDDEN, INTERMEDIATE, "plain", 4),
}
"""Rows, columns, order of the rows, warps of a tile."""


def source(name: str, experts: int) -> dict[str, Tensor]:
    rows, columns, _, _ = TENSORS[name]
    return {
        f"{name}_blocks": torch.randint(256, (experts, rows, columns // GROUP, GROUP // 2), dtype=torch.uint8),
        f"{name}_scales": torch.randint(118, 124, (experts, rows, columns // GROUP), dtype=torch.uint8),
    }


def packed(name: str, tensors: dict[str, Tensor], into: Tensor) -> None:
    """Every expert of `tensors` as its stream."""
    rows, columns, order, warps = TENSORS[name]
    recipe = {
        "kind": "stream", "layout": "stream", "sources": list(tensors), "rows": order, "warps": warps,
        "count": rows, "columns": columns,
    }  # fmt: skip
    for row, stream in zip(into, pack(recipe, tensors), strict=True):
        row.copy_(stream)


def peak() -> int:
    """The most bytes that the process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, experts: int, repeats: int) -> dict[str, float | str]:
    rows, columns, _, warps = TENSORS[name]
    tensors = source(name, experts)
    read = sum(tensor.nbytes for tensor in tensors.values())
    into = torch.zeros(experts, *Stream(rows, columns, warps).shape, dtype=torch.uint8)
    packed(name, {key: tensor[:1] for key, tensor in tensors.items()}, into[:1])
    before, times = peak(), []
    for _ in range(repeats):
        start = time.perf_counter()
        packed(name, tensors, into)
        times.append(time.perf_counter() - start)
    taken = {"seconds": statistics.median(times), "least_seconds": min(times)}
    return {"tensor": name, "source_bytes": read} | taken | {"peak_bytes": peak() - before}


@click.command(help=__doc__)
@click.option("--threads", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)), help="Of torch.")
@click.option("--experts", default=8, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(threads: int, experts: int, repeats: int, as_json: bool) -> None:
    torch.set_num_threads(threads)
    rows = [measure(name, experts, repeats) for name in TENSORS]
    read = sum(float(row["source_bytes"]) for row in rows)
    rates = {kind: read / sum(float(row[kind]) for row in rows) for kind in ("seconds", "least_seconds")}
    median, best = rates.values()
    if as_json:
        click.echo(json.dumps({"threads": threads, "median": median, "best": best, "rows": rows}, indent=2))
        return
    for row in rows:
        rate, beside = float(row["source_bytes"]) / float(row["seconds"]), float(row["peak_bytes"])
        click.echo(f"{row['tensor']:8} {rate / 1e6:5.0f} MB/s, {beside / 1e6:.0f} MB of memory beside the tensors")
    click.echo(f"both     {median / 1e6:5.0f} MB/s, at best {best / 1e6:.0f} MB/s, {threads} threads")


if __name__ == "__main__":
    main()
