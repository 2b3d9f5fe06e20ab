"""Calls every entry of small artifacts a few times, for compute-sanitizer to watch; nothing is compared.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python test/gpu/sanitize.py DIRECTORY/small
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool initcheck python test/gpu/sanitize.py -o DIRECTORY/small
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool initcheck python test/gpu/sanitize.py --library-alone

Without torch's cache every tensor is an allocation of its own, so that a step out of it is seen. initcheck does not see
what cuBLAS writes with the tensor memory accelerator, and takes the logits of a linear of the library for unwritten:
with -o the compiled router computes them for every M. The third command has no kernel of ours, and errors all the same.
"""

from pathlib import Path

import click
import torch

from moeloom import switches
from moeloom.check import inputs_of
from moeloom.runtime.executable import load

TOKENS = (1, 5, 16, 40, 64, 300)


def library_alone() -> None:
    """A router's product by the library, and an addition by torch that reads it: E = 8 and 96 by TMA, E = 130 not."""
    for experts in (8, 96, 130):
        x, w = (torch.ones(rows, 384, dtype=torch.bfloat16).cuda() for rows in (64, experts))
        print(experts, (torch.nn.functional.linear(x, w) + 1).sum().item(), flush=True)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("folder", metavar="[DIRECTORY]", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("-o", "--own-router", is_flag=True, help="No linear of the library: the compiled router, whatever M.")
@click.option(
    "--library-alone", "alone", is_flag=True, help="No artifact: what initcheck says of the library's linear."
)
def main(folder: Path | None, own_router: bool, alone: bool) -> None:
    if alone:
        library_alone()
        return
    if folder is None:
        raise click.UsageError("give a DIRECTORY of artifacts, or --library-alone")
    for path in sorted(folder.glob("*.moel")):
        with load(path, "cuda", verify="fast") as loaded:
            executable = switches.forced(loaded, "first", lambda s: s.choice == "linear") if own_router else loaded
            for name in executable.entries:
                for m in TOKENS:
                    executable[name](**inputs_of(executable, name, m, m))
        print(path.stem)


if __name__ == "__main__":
    main()
