"""Calls every entry of small artifacts a few times, for compute-sanitizer to watch; nothing is compared.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python test/gpu/sanitize.py DIRECTORY/small

Without torch's cache every tensor is an allocation of its own, so that a step out of it is seen.
"""

import sys
from pathlib import Path

from moeloom.check import inputs_of
from moeloom.runtime.executable import load

TOKENS = (1, 5, 16, 40, 64, 300)


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.moel")):
        with load(path, "cuda", verify="fast") as executable:
            for name in executable.entries:
                for m in TOKENS:
                    inputs = inputs_of(executable, name, m, m)
                    executable[name](**inputs)
        print(path.stem)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
