"""A gpt-oss MoE block compiled for the CPU against transformers' bf16 block with the same dequantised weights.

    python benchmarks/cpu_layer.py [--tokens 1,4,16,64] [--threads 2] [--json]

Both sides run router and experts, on the same inputs, with the same number of threads, in turns in one process. Two
layers and 32 inputs take turns, so that weights come from memory. Numbers are compared before anything is timed. The
floor is the bytes of the MXFP4 weights that a call touches over the read bandwidth, read before and after each row.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

import moeloom
from moeloom.check import relative_l2
from moeloom.measure import medians, read_bandwidth
from moeloom.peers import TOLERANCE
from moeloom.transformers_peer import IMPLEMENTATIONS, fits, run, use, without_ties

ROOT = Path(__file__).resolve().parent.parent
INPUTS = 32
"""Enough that at M = 1 most experts of both layers take part, more than a last-level cache of 480 MB holds."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass
class Row:
    """One number of tokens. Times are median seconds; `peers` by implementation."""

    tokens: int
    experts: float
    floor: float
    bandwidth: float
    a16: float
    a4: float
    peers: dict[str, float]

    @property
    def fastest(self) -> str:
        return min(self.peers, key=lambda name: self.peers[name])

    @property
    def speedup(self) -> float:
        return self.peers[self.fastest] / self.a16


def load_block(checkpoint: Path, layer: int) -> GptOssMLP:
    """transformers' own block of one layer, its expert weights dequantised to bf16 by transformers' own code."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config._experts_implementation = "eager"
    with torch.device("meta"):
        block = GptOssMLP(config)
    prefix = f"model.layers.{layer}.mlp."
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]

    def tensor(name: str) -> Tensor:
        with safe_open(checkpoint / index[prefix + name], "pt") as file:
            return file.get_tensor(prefix + name)

    state = {name: tensor(name) for name in block.state_dict() if prefix + name in index}
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        state[name] = convert_moe_packed_tensors(tensor(f"{name}_blocks"), tensor(f"{name}_scales"))
    block.load_state_dict(state, assign=True)
    return block.eval()


def implementations(block: GptOssMLP, tokens: int) -> list[str]:
    """transformers' ways to run the experts that fit in memory at this M."""
    return [name for name in IMPLEMENTATIONS if fits(block, name, tokens)] + ["torch.compile"]


def peer_calls(blocks: list[GptOssMLP], name: str) -> list[Callable[[Tensor], Tensor]]:
    """The blocks, their experts run by `name`; torch.compile is of grouped_mm, the one without a loop."""
    if name != "torch.compile":
        return [partial(run, block, name) for block in blocks]
    for block in blocks:
        use(block, "grouped_mm")
    compiled = [torch.compile(block, dynamic=False) for block in blocks]
    return [lambda x, b=block: b(x.unsqueeze(0))[0][0] for block in compiled]


def turns(calls: list[Callable[[Tensor], Tensor]], inputs: list[Tensor]) -> Callable[[int], Tensor]:
    """A call that takes layers and inputs in turns."""
    return lambda turn: calls[turn % len(calls)](inputs[turn % len(inputs)])


def touched(block: GptOssMLP, inputs: list[Tensor]) -> tuple[float, float]:
    """Mean number of experts with a token, and mean bytes of MXFP4 weights, biases and router that a call reads."""
    config = block.experts.config
    counts = [len(block.router(x)[2].unique()) for x in inputs]
    experts = sum(counts) / len(counts)
    h, i = config.hidden_size, config.intermediate_size
    expert = 3 * h * i * 17 // 32 + 4 * (2 * i + h)
    return experts, experts * expert + block.router.weight.nbytes + block.router.bias.nbytes


def compare(kind: str, entry: Callable[[Tensor], Tensor], block: GptOssMLP) -> float:
    """Relative L2 of a compiled layer against transformers' eager one; exits where it is beyond the tolerance."""
    x = torch.randn(16, block.experts.hidden_size, dtype=torch.bfloat16)
    rows = without_ties(block, x)
    error = relative_l2(entry(x)[rows], run(block, "eager", x)[rows])
    if error > TOLERANCE[kind]:
        sys.exit(f"{kind}: relative L2 against transformers is {error:.3g}, beyond {TOLERANCE[kind]}")
    return error


def measure(blocks: list[GptOssMLP], layers: dict[str, list], tokens: int, threads: int) -> Row:
    """Time every side at one M, in turns within each pairing."""
    hidden = blocks[0].experts.hidden_size
    inputs = [torch.randn(tokens, hidden, dtype=torch.bfloat16) for _ in range(INPUTS)]
    experts, bytes_read = touched(blocks[0], inputs)
    before = read_bandwidth(threads)
    a16, a4 = medians([turns(layers["bf16"], inputs), turns(layers["mxfp4"], inputs)])
    bandwidth = max(before, read_bandwidth(threads))
    peers = {name: medians([turns(peer_calls(blocks, name), inputs)])[0] for name in implementations(blocks[0], tokens)}
    return Row(tokens, experts, bytes_read / bandwidth, bandwidth, a16, a4, peers)


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    about = {key.strip(): value.strip() for key, _, value in lines}
    flags = [flag for flag in FLAGS if flag in about.get("flags", "").split()]
    return {
        "cpu": about.get("model name", platform.processor()),
        "cores": str(os.cpu_count()),
        "flags": " ".join(flags),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "moeloom": moeloom.__version__,
    }


def markdown(rows: list[Row]) -> str:
    """The table of the README."""
    lines = [
        "| M | experts touched | floor ms (GB/s) | A16 ms | of it | A4 ms | fastest transformers ms | A16 faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        peer = f"{r.peers[r.fastest] * 1e3:.2f} ({r.fastest})"
        lines.append(
            f"| {r.tokens} | {r.experts:.1f} | {r.floor * 1e3:.2f} ({r.bandwidth / 1e9:.1f}) | {r.a16 * 1e3:.2f} "
            f"| {100 * r.floor / r.a16:.0f} % | {r.a4 * 1e3:.2f} | {peer} | {r.speedup:.1f}x |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--tokens", default="1,4,16,64", show_default=True)
@click.option("--threads", type=int, default=lambda: len(os.sched_getaffinity(0)), help="For both sides.")
@click.option("--layers", default=2, show_default=True, help="Layers called in turns.")
@click.option("--hidden", default=2880, show_default=True, help="Hidden and intermediate size.")
@click.option("--experts", default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@torch.no_grad()
def main(tokens: str, threads: int, layers: int, hidden: int, experts: int, as_json: bool) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore", module="torch._dynamo")
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        sizes = ["--hidden", hidden, "--intermediate", hidden, "--layers", layers, "--experts", experts, "--topk", 4]
        script = [sys.executable, str(ROOT / "examples" / "make_checkpoint.py"), str(checkpoint), *map(str, sizes)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        blocks = [load_block(checkpoint, layer) for layer in range(layers)]
        compiled, opened, errors = {}, [], {}
        for kind in ("bf16", "mxfp4"):
            moeloom.compile(checkpoint, Path(folder) / f"{kind}.moel", activations=kind)
            executable = moeloom.load(Path(folder) / f"{kind}.moel", threads=threads)
            executable.prepare(max(16, *map(int, tokens.split(","))))
            compiled[kind] = [executable[f"model.layers.{layer}.mlp"] for layer in range(layers)]
            opened.append(executable)
            errors[kind] = compare(kind, compiled[kind][0], blocks[0])
        rows = [measure(blocks, compiled, int(m), threads) for m in tokens.split(",")]
        for executable in opened:
            executable.close()
    about = machine() | {"threads": str(threads), "tier": opened[0].device.library.tier}
    if as_json:
        click.echo(
            json.dumps({"machine": about, "relative_l2": errors, "rows": [asdict(row) for row in rows]}, indent=2)
        )
        return
    click.echo(markdown(rows))
    click.echo(
        f"\nH = I = {hidden}, E = {experts}, k = 4, {layers} layers in turns; "
        + ", ".join(f"{k} {v}" for k, v in about.items())
    )
    click.echo(f"Relative L2 against transformers, 16 tokens: A16 {errors['bf16']:.2g}, A4 {errors['mxfp4']:.2g}.")


if __name__ == "__main__":
    main()
