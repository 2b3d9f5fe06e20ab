"""What the decode kernels for CDNA GPUs cost by their code: there was no GPU to time them on.

    python benchmarks/decode_mfma_code.py      on any machine; prints the table of docs/amd.md

Instructions are those of the loop round the ring, of a wave of 64 lanes, for 512 bytes of codes; inline assembly and
scalar instructions count. Bytes under way are those of weights that the waves of a compute unit have asked for.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from moeloom.lowering.targets import target
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import SIMDS
from moeloom.lowering.triton.assembly import matrix_loop
from moeloom.lowering.triton.build import ASSEMBLY, FACTS
from moeloom.runtime.stream import STEP_BYTES, STEP_SCALE_BYTES

GPT_OSS: dict[str, Any] = {
    "hidden": 2880, "intermediate": 2880, "topk": 4, "block": 16, "x": "bf16", "layout": "none", "has_bias": True,
    "has_weights": False, "activation": "swiglu", "alpha": 1.702, "limit": 7.0, "requantize": "none",
}  # fmt: skip
DOWN = GPT_OSS | {"has_weights": True, "splits": 1}  # with the three splits of a layer the loop is unrolled
A4 = {"x": "f4E2M1FN", "layout": "tiled_32x8"}
KERNELS = {
    ("gate_up", "A16"): GPT_OSS,
    ("gate_up", "A4"): GPT_OSS | A4,
    ("down", "A16"): DOWN,
    ("down", "A4"): DOWN | A4,
}


def main() -> None:
    print("| target | kernel | registers | waves a SIMD | instructions a 512 bytes | loads a step | KiB under way |")
    print("|---|---|---|---|---|---|---|")
    for name in ("gfx950", "gfx942"):
        row = target(name)
        assert row.architecture is not None
        wanted = {}
        for (product, form), params in KERNELS.items():
            template = f"decode_mfma_{product}"
            tile = row.tile(template)
            sizes = {"programs": row.architecture.processors * SIMDS * tile["waves"]}
            wanted[f"{product} {form}"] = {"template": template, "params": params | tile | sizes}
        with tempfile.TemporaryDirectory() as cache:
            made = build.compile_kernels(wanted, row.architecture, Path(cache), lambda *_: None)
            for kernel, folder in made.items():
                ring = wanted[kernel]["params"]["ring"]
                facts = json.loads((folder / FACTS).read_text())
                loop = matrix_loop((folder / ASSEMBLY).read_text())
                loads = sum("_load_" in line for line in loop) // ring
                cost = len(loop) * 512 / (ring * (STEP_BYTES - STEP_SCALE_BYTES))
                waves = facts["occupancy"]
                print(
                    f"| {name} | {kernel} | {facts['registers']} | {waves} | {cost:.1f} | {loads} | "
                    f"{ring * STEP_BYTES * waves * SIMDS // 1024} |"
                )


if __name__ == "__main__":
    main()
