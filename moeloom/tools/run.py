"""`moeloom run`: one call of one entry."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moeloom.tools import output
from moeloom.tools.artifact import artifact_argument, blocks, json_option, load_options, named_entries, open_artifact
from moeloom.tools.errors import CommandError

if TYPE_CHECKING:
    from torch import Tensor

EPILOG = """\b
Examples:
  moeloom run model.moel --tokens 16
  moeloom run model.moel --entry model.layers.1.mlp --input in.safetensors --output out.safetensors"""


@click.command("run", epilog=EPILOG)
@artifact_argument
@click.option("--entry", metavar="NAME", help="Entry to call (default: the first).")
@click.option("--input", "source", type=click.Path(path_type=Path), help="Inputs by name, a safetensors file.")
@click.option("--output", "target", type=click.Path(path_type=Path), help="Write the outputs to a safetensors file.")
@click.option("--tokens", type=click.IntRange(1), default=4, show_default=True, help="Tokens of random inputs.")
@click.option("--seed", default=0, show_default=True, help="Seed of random inputs.")
@load_options
@json_option
def command(
    artifact: Path,
    entry: str | None,
    source: Path | None,
    target: Path | None,
    tokens: int,
    seed: int,
    as_json: bool,
    **load: Any,
) -> None:
    """Call an entry of ARTIFACT with inputs from a file or with seeded random ones, and print what came out."""
    from moeloom.check import inputs_of

    with open_artifact(artifact, **load) as executable:
        (name,) = named_entries(executable.entries, [entry] if entry else [], blocks(executable.entries)[:1])
        device = executable.device
        if source:
            inputs = {key: tensor.to(device.torch_device) for key, tensor in read_tensors(source).items()}
        else:
            inputs = inputs_of(executable, name, tokens, seed)
        start = time.perf_counter()
        result = executable[name](**inputs)
        device.synchronise()
        seconds = time.perf_counter() - start
    outputs = list(result) if isinstance(result, tuple) else [result]
    named = {"output" if len(outputs) == 1 else f"output{number}": out for number, out in enumerate(outputs)}
    if target is not None:
        write_tensors(target, named)
    described = {key: describe(out) for key, out in named.items()}
    if as_json:
        output.print_json({"entry": name, "seconds": seconds, "outputs": described})
        return
    click.echo(f"{name}: {seconds * 1e3:.2f} ms, the first call included what it plans")
    for key, about in described.items():
        numbers = ", ".join(f"{what} {about[what]:.6g}" for what in ("norm", "least", "largest") if what in about)
        click.echo(f"  {key}: {about['dtype']} {tuple(about['shape'])} {numbers}".rstrip())


def describe(tensor: "Tensor") -> dict[str, Any]:
    """dtype, shape and, where it has elements, norm and range of a tensor."""
    about: dict[str, Any] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if not tensor.numel():
        return about
    wide = tensor.double()
    return about | {"norm": wide.norm().item(), "least": wide.min().item(), "largest": wide.max().item()}


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CommandError(f"--input {path} cannot be read: {error}") from error


def write_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path)
    except OSError as error:
        raise CommandError(f"--output {path} cannot be written: {error}") from error
