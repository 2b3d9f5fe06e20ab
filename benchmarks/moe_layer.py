"""A whole MoE layer, routing included, against the memory's floor and against other libraries' layers in the same run.

    python benchmarks/moe_layer.py ARTIFACTS --out results.jsonl [--what uniform,skewed,shapes,prefill]
        [--peers-from .peers] [--budget 540] [--resume]
    python benchmarks/moe_layer.py --plot results.jsonl layer.png       anywhere, without a GPU
    python benchmarks/moe_layer.py --markdown results.jsonl             the tables of docs/h200.md

ARTIFACTS is the folder that `python test/gpu/make_artifacts.py FOLDER timed` fills, on any machine. Each line of the
results is one row, written when it is measured: a run that is cut goes on with --resume. results.json beside it holds
all of them when the run is over.

How a row is measured: layers and inputs take turns, 20 calls or more in a graph (4 from 16384 tokens on), so that
weights come from memory. Numbers first: each artifact against the float64 reference (in the first run, up to 4096
tokens), each peer against the first artifact, on the row's first input. Then three bursts of each (9 replays after a
pause; the median of all), all sides in turns, each turn begun by another one, since who comes later meets a warmer GPU;
then each sustained (the second half of 1.2 s of replays). The floor is the bytes of the experts that this very routing
touches over the bandwidth measured before and after. Every side gets the same x, router and expert weights; peers have
ATen compute the router's product. How tokens are routed is defined in moeloom/routing.py.

Peers: transformers on a CPU. On a GPU triton_kernels and Marlin as vLLM 0.22.0 carries them, from a folder that git
ignores, prepared by

    pip download --no-deps --python-version 3.12 --only-binary :all: --platform manylinux_2_28_x86_64 vllm==0.22.0
    unzip vllm-0.22.0-*.whl 'vllm/third_party/triton_kernels/*' vllm/_moe_C.abi3.so -d .wheel
    mkdir -p .peers && mv .wheel/vllm/third_party/triton_kernels .wheel/vllm/_moe_C.abi3.so .peers/ && rm -r .wheel
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import moe_layer_report as report
import torch
from moe_layer_row import Case, Layer, Row, line

import moeloom
from moeloom import clocks, timing
from moeloom.measure import matmul_rate
from moeloom.runtime.devices import Device
from moeloom.tools.artifact import Tokens
from moeloom.tools.errors import user_errors
from moeloom.tools.output import progress, quieten_imports

RUNS = 5
LAYERS = {
    "gpt-oss-120b": ("four-layers-a16", "four-layers-a4"),
    "DeepSeek-R1, one of 8 ranks": ("r1-rank-a16", "r1-rank-a4"),
    "Qwen3-MoE": ("qwen3-a16", "qwen3-a4"),
}
"""The artifacts of each layer; peers are compared with the first one, and stand on its weights."""
GPT_OSS, *SHAPES = LAYERS


def cases(what: str, tokens: tuple[int, ...] | None) -> list[Case]:
    """The rows of one part of the benchmark, in the order in which a cut run is worth most."""
    if what == "uniform":
        return [Case(what, GPT_OSS, "uniform", m) for m in tokens or (1, 4, 16, 32, 64, 128, 256, 1024, 2048, 4096)]
    if what == "skewed":
        some = tokens or (16, 64, 128, 256)
        kinds = ("zipf", "one_set", "topics")
        return [Case(what, GPT_OSS, kind, m, run, sides=1) for run in range(RUNS) for kind in kinds for m in some]
    if what == "shapes":
        return [Case(what, layer, "uniform", m) for layer in SHAPES for m in tokens or (1, 4, 16, 32, 64)]
    return [Case(what, GPT_OSS, "uniform", m) for m in tokens or (16384, 32768, 65536)]


WHAT = ("uniform", "skewed", "shapes", "prefill")


def find(folder: Path, artifact: str) -> Path:
    """An artifact of make_artifacts.py, in its folder `timed` or here."""
    path = folder / "timed" / f"{artifact}.moel"
    return path if path.is_dir() else folder / f"{artifact}.moel"


def opened_sensors(device: torch.device) -> tuple[clocks.Clocks | None, str]:
    """The GPU's sensors, and what to say of them."""
    try:
        return clocks.open_clocks(device), "sampled"
    except clocks.NoClocks as reason:
        return None, str(reason)


def machine(device: Device, sensors: str) -> dict[str, Any]:
    """What the numbers are measured on."""
    burst, sustained = matmul_rate(device)
    return {
        "kind": "run",
        "date": time.strftime("%Y-%m-%d"),
        "device": device.description,
        "moeloom": moeloom.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.torch_device.type == "cuda" else None,
        "clocks": sensors,
        "matmul_flops": {"burst": burst, "sustained": sustained},
    }


class Results:
    """The file that a run adds to, a record a line, each on the disk before the next is measured."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The records; a line that was cut is left out."""
        for text in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                yield json.loads(text)
            except ValueError:
                continue

    def add(self, kind: str, **record: Any) -> None:
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write(("\n" if cut else "") + json.dumps({"kind": kind} | record) + "\n")


class Budget:
    """Seconds for a whole run."""

    def __init__(self, seconds: float | None):
        self._end = None if seconds is None else time.monotonic() + seconds
        self._longest = 0.0

    def allows(self) -> bool:
        """Whether a row as long as the longest one so far ends in time."""
        return self._end is None or time.monotonic() + self._longest < self._end

    @contextmanager
    def row(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._longest = max(self._longest, time.monotonic() - start)


def measure(left: list[Case], load: Callable[[str], Layer], results: Results, seconds: float, budget: Budget) -> int:
    """Measure the cases layer by layer, and add them to the results; how many are left when the budget is spent."""
    begun = False
    with progress() as bar:
        for name in LAYERS:
            mine = [case for case in left if case.layer == name]
            if not mine or not budget.allows():
                continue
            try:
                layer = load(name)
            except user_errors() as error:
                results.add("note", layer=name, text=line(error))
                continue
            for text in layer.notes:
                results.add("note", layer=name, text=text)
            sensors, about = opened_sensors(layer.first.device.torch_device)
            if not begun:
                results.add(**machine(layer.first.device, about))
                begun = True
            total = len(mine)
            while mine and budget.allows():
                case = mine.pop(0)
                with budget.row():
                    try:
                        results.add(**Row(case, layer, seconds, sensors).measure())
                    except Exception as error:
                        results.add("note", layer=name, text=f"{case}: {line(error)}")
                left.remove(case)
                bar(name, total - len(mine), total)
            layer.close()
            del layer
            gc.collect()
            torch.cuda.empty_cache()
    return len(left)


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.argument("artifacts", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("moe_layer.jsonl"), show_default=True)
@click.option("--what", default=",".join(WHAT), show_default=True, help="Parts of the benchmark.")
@click.option("--tokens", type=Tokens(), help="Other numbers of tokens than a part's own.")
@click.option("--device", default="auto", show_default=True, help="As of `moeloom bench`.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.")
@click.option("--peers", "wanted", help="Of triton_kernels, marlin, transformers these alone, or none.")
@click.option("--peers-from", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Their folder.")
@click.option("--sustained-seconds", default=timing.SUSTAINED_SECONDS, show_default=True)
@click.option("--budget", type=float, help="Seconds; no row begins that might end later.")
@click.option("--resume", is_flag=True, help="Leave out what the results hold, and add to them.")
@click.option("--plot", type=click.Path(path_type=Path), nargs=2, help="RESULTS PICTURE: draw; measures nothing.")
@click.option("--markdown", type=click.Path(path_type=Path), help="RESULTS: print tables; measures nothing.")
def main(
    artifacts: Path | None,
    out: Path,
    what: str,
    tokens: tuple[int, ...] | None,
    device: str,
    threads: int | None,
    wanted: str | None,
    peers_from: Path | None,
    sustained_seconds: float,
    budget: float | None,
    resume: bool,
    plot: tuple[Path, Path] | None,
    markdown: Path | None,
) -> None:
    if plot:
        report.plot(list(Results(plot[0])), plot[1])
    if markdown:
        click.echo(report.markdown(list(Results(markdown))))
    if plot or markdown:
        return
    parts, results, limit = what.split(","), Results(out), Budget(budget)
    if artifacts is None or not set(parts) <= set(WHAT):
        raise click.UsageError(f"what is measured are ARTIFACTS, and of --what there are {', '.join(WHAT)}")
    if out.exists() and not resume:
        raise click.UsageError(f"{out} exists; --resume adds to it")
    if peers_from is not None:
        sys.path.insert(0, str(peers_from))
    quieten_imports()
    held = {Case.key_of(record) for record in results if record["kind"] == "row"}
    left = [case for part in parts for case in cases(part, tokens) if case.key not in held]
    names = None if wanted is None else wanted.split(",")

    def load(name: str) -> Layer:
        return Layer([find(artifacts, artifact) for artifact in LAYERS[name]], device, threads, names)

    missing = measure(left, load, results, sustained_seconds, limit)
    out.with_suffix(".json").write_text(json.dumps(list(results), indent=1))
    report.show(list(results))
    if missing:
        click.echo(f"{missing} rows are left: the same command with --resume goes on")


if __name__ == "__main__":
    main()
