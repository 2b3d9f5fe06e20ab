"""The prefill products of sm_90 against a float64 reference, and their times by the rows of a sort block.

    python benchmarks/prefill_products.py --folder build/prefill --compile    on any machine, then
    python benchmarks/prefill_products.py --folder build/prefill              on the GPU, without compiler

First every kernel is checked: random weights and routing, padding rows, ids of -1, results poisoned, twice the same.
Then those of gpt-oss-120b are timed for each block as `decode_products.py` does it, with the tiles of the target table:
where one block's times cross another's is where the table changes plans. TFLOP/s are of the routed rows alone.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import torch
from decode_products import (
    BASE,
    LAYERS,
    SHAPES,
    SM,
    TOLERANCE,
    Described,
    Kernel,
    Product,
    check,
    compile_kernels,
    measure,
    routing,
)

from moeloom.runtime.cuda import Cuda

BLOCKS = (32, 64, 128, 144)
CHECKED_SHAPES = {"gpt_oss": BLOCKS, "qwen3": (64, 144), "deepseek_rank": (64, 144), "odd": (8, 16, *BLOCKS)}
CHECKED = (2, 29, 300, 600)
TIMED_SHAPE = "gpt_oss"
TIMED = (512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
EXPERTS = 128
GRAPH_SECONDS = 0.02


def kernels() -> Iterator[Described]:
    """Both products of every shape and block, with the tile of the table."""
    from moeloom.lowering.packing import STREAM_WARPS
    from moeloom.lowering.targets import target
    from moeloom.lowering.triton.architecture import ARCHITECTURES
    from moeloom.lowering.triton.decode_launches import programs_by_registers

    for shape, blocks in CHECKED_SHAPES.items():
        sizes = BASE | {key: value for key, value in SHAPES[shape].items() if key not in ("splits", "weights_in")}
        for block in blocks:
            for product in ("gate_up", "down"):
                tile = target("sm_90").tile(f"prefill_{product}", block=block)
                programs = SM * programs_by_registers(ARCHITECTURES["sm_90"], tile["maxnreg"], tile["num_warps"])
                own = {"block": block, "programs": programs, "stream_warps": STREAM_WARPS[product], "splits": 1}
                params = sizes | own | {"has_weights": product == "down"} | dict(tile)
                yield f"{shape}_{block}.{product}", f"prefill_{product}", params


def time_product(product: Product, m: int) -> str:
    """A cell of the table: microseconds, and TFLOP/s."""
    streams = [product.stream, *(product.stream[torch.randperm(EXPERTS)] for _ in range(LAYERS - 1))]
    routed = [routing(m, product.params["topk"], EXPERTS, product.params["block"])[2] for _ in range(LAYERS)]
    x, result = product.x(m), product.result(m)
    calls = [[*product.operands(x, routed[i], streams[i])[0], result] for i in range(LAYERS)]

    def launch(layer: int) -> None:
        product.kernel.launch(calls[layer], m)

    once = measure(launch, False, LAYERS)[0]
    launches = max(LAYERS, int(GRAPH_SECONDS * 1e6 / once) // LAYERS * LAYERS)
    time = measure(launch, False, launches)[0]
    flops = 2 * m * product.params["topk"] * product.rows * product.columns
    return f"{time:7.1f} us {flops / time / 1e6:4.0f}"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="where the compiled kernels are")
@click.option("--compile", "compiling", is_flag=True, help="compile the kernels; needs no GPU")
def main(folder: Path, compiling: bool) -> None:
    """Check and time the prefill products."""
    if compiling:
        compile_kernels(folder, kernels())
        return
    driver = Cuda(torch.cuda.current_device())
    driver.enter_thread()
    files = [
        f"{shape}_{block}.{p}" for shape, bs in CHECKED_SHAPES.items() for block in bs for p in ("gate_up", "down")
    ]
    for file in files:
        product = Product(Kernel(driver, folder, file), file, 16)
        errors = [check(product, m, 16) for m in CHECKED]
        click.echo(f"{file:24} relative L2 {max(errors):.1e}")
        if not max(errors) <= TOLERANCE:
            raise click.ClickException(f"{file} is wrong at M = {CHECKED[errors.index(max(errors))]}")
    click.echo(f"{'us, TFLOP/s':24} " + " ".join(f"{f'M = {m}':>16}" for m in TIMED))
    for file in files:
        if not file.startswith(TIMED_SHAPE):
            continue
        product = Product(Kernel(driver, folder, file), file, EXPERTS)
        click.echo(f"{file:24} " + " ".join(f"{time_product(product, m):>16}" for m in TIMED))


if __name__ == "__main__":
    main()
