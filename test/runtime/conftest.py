"""A tiny artifact for the CPU: three C kernels and `moeloom_run` by the ABI of docs/program.md, weights, a program with
launches, ATen, a view and an alternative."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from moeloom.runtime.artifact import ArtifactWriter

# Its fixtures are for all tests here, which import it by name.
sys.path.insert(0, str(Path(__file__).parent))
_gpu = import_module("gpu_stand_in")
artifact, machine, stand_in = _gpu.artifact, _gpu.machine, _gpu.stand_in

WIDTH = 8
SWITCH = 4  # M up to which the first alternative runs
SOURCE = """
#include <stdint.h>
#include <sched.h>
typedef struct { void (*kernel)(void **, int64_t, int64_t); void **args; int64_t tiles, next, finished; } Command;
void moeloom_run(Command *commands, int64_t count, int64_t threads, int64_t epoch) {
    for (int64_t i = 0; i < count; i++) {
        Command *c = &commands[i];
        for (;;) {
            int64_t seen = __atomic_load_n(&c->next, __ATOMIC_ACQUIRE), tile = seen & 0xffffffff;
            if (seen >> 32 != epoch) return;
            if (tile >= c->tiles) break;
            if (!__atomic_compare_exchange_n(&c->next, &seen, seen + 1, 0, __ATOMIC_ACQ_REL, 0)) continue;
            c->kernel(c->args, tile, tile + 1);
            __atomic_fetch_add(&c->finished, 1, __ATOMIC_ACQ_REL);
        }
        for (int64_t state; (state = __atomic_load_n(&c->finished, __ATOMIC_ACQUIRE)), state >> 32 == epoch;) {
            if ((state & 0xffffffff) >= c->tiles) break;
            sched_yield();
        }
    }
}
enum { WIDTH = 8 };
/* x (strided), factors -> out */
void scale_rows(void **args, int64_t row, int64_t end) {
    float *x = args[0], *factors = args[2], *out = args[3];
    for (int c = 0; c < WIDTH; c++) out[row * WIDTH + c] = x[row * (int64_t)args[1] + c] * factors[c];
}
/* x -> out */
void add_one(void **args, int64_t row, int64_t end) {
    float *x = args[0], *out = args[1];
    for (int c = 0; c < WIDTH; c++) out[row * WIDTH + c] = x[row * WIDTH + c] + 1;
}
/* x, num_tokens -> out */
void keep_live(void **args, int64_t row, int64_t end) {
    float *x = args[0], *out = args[2];
    for (int c = 0; c < WIDTH; c++) out[row * WIDTH + c] = row < *(int32_t *)args[1] ? x[row * WIDTH + c] : 0;
}
"""


def launch(kernel: str, operands: list[int], results: list[int], strided: list[int] | None = None) -> dict:
    return {
        "launch": kernel,
        "operands": operands,
        "strided": strided or [],
        "results": results,
        "tiles": "M",
        "op": f"moe.{kernel}",
    }


def rows(dtype: str = "float32") -> dict:
    return {"dtype": dtype, "shape": ["M", WIDTH]}


def program() -> dict:
    """keep_live(linear(x * factors + 1), num_tokens); + 2 where M > SWITCH."""
    return {
        "inputs": [
            {"name": "x", "value": 0, **rows(), "optional": False, "strided": True},
            {"name": "num_tokens", "value": 1, "dtype": "int32", "shape": [1], "optional": True, "strided": False},
        ],
        "weights": [
            {"name": "factors", "value": 2, "dtype": "float32", "shape": [WIDTH], "pack": None},
            {"name": "linear", "value": 3, "dtype": "float32", "shape": [WIDTH, WIDTH], "pack": None},
        ],
        "outputs": [{"value": 9, **rows()}],
        "values": {
            "4": {**rows(), "slot": 0},
            "5": {**rows(), "slot": 1},
            "6": {**rows(), "slot": 2},
            "7": {**rows(), "slot": 0},
            "8": {"dtype": "float32", "shape": ["M", WIDTH], "slot": None},
        },
        "slots": 3,
        "steps": [
            launch("scale_rows", [0, 2], [4], strided=[0]),
            {
                "alternatives": {"choice": "fusion", "max_m": SWITCH, "reason": "a test"},
                "first": [launch("add_one", [4], [5])],
                "second": [launch("add_one", [4], [6]), launch("add_one", [6], [5])],
            },
            {
                "aten": "aten.linear.default",
                "args": [{"value": 5}, {"value": 3}, {"literal": None}],
                "results": [7],
            },
            {"aten": "aten.size.int", "args": [{"value": 0}, {"literal": 0}], "results": [10]},
            {
                "aten": "aten.view.default",
                "args": [{"value": 7}, {"list": [{"value": 10}, {"literal": WIDTH}]}],
                "results": [8],
            },
            launch("keep_live", [8, 1], [9]),
        ],
    }


def expected(x: torch.Tensor, weights: dict[str, torch.Tensor], live: int | None = None) -> torch.Tensor:
    added = 1 if x.shape[0] <= SWITCH else 2
    y = torch.nn.functional.linear(x * weights["factors"] + added, weights["linear"])
    y[len(x) if live is None else live :] = 0
    return y


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("library")
    (folder / "kernels.c").write_text(SOURCE)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", folder / "k.so", folder / "kernels.c"], check=True)
    return (folder / "k.so").read_bytes()


@pytest.fixture(scope="session")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "factors": torch.randn(WIDTH, generator=generator),
        "linear": torch.randn(WIDTH, WIDTH, generator=generator),
    }


@pytest.fixture(scope="session")
def oracle(weights: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, live=None: expected(x, weights, live)


@pytest.fixture
def make_artifact(library: bytes, weights: dict[str, torch.Tensor]) -> Callable[..., Path]:
    """make_artifact(path, change=..., overwrite=..., stop=...): `change` edits the manifest before it is written."""

    def make(path: Path, change: Callable[[dict], object] = lambda manifest: None, overwrite: bool = False) -> Path:
        specs = {f"b.{name}": ("float32", tuple(w.shape)) for name, w in weights.items()}
        with ArtifactWriter(path, overwrite=overwrite) as out:
            (out.directory / "kernels" / "cpu-generic.so").write_bytes(library)
            with out.tensors("weights/cpu.safetensors", specs) as file:
                for name, weight in weights.items():
                    file.append(f"b.{name}", weight)
            manifest = {
                "compiler": "0.1.0",
                "tools": {},
                "options": {},
                "report": [],
                "entries": {"b": {"program": "block", "prefix": "b."}},
                "targets": {
                    "cpu": {
                        "libraries": [
                            {
                                "tier": "generic",
                                "file": "kernels/cpu-generic.so",
                                "sha256": hashlib.sha256(library).hexdigest(),
                                "features": [],
                            }
                        ],
                        "kernels": {k: {"template": k, "params": {}} for k in ("scale_rows", "add_one", "keep_live")},
                        "programs": {"block": program()},
                        "weights": {
                            name: {
                                "file": "weights/cpu.safetensors",
                                "tensor": name,
                                "dtype": dtype,
                                "shape": list(shape),
                                "sha256": file.hashes[name],
                            }
                            for name, (dtype, shape) in specs.items()
                        },
                    }
                },
            }
            change(manifest)
            out.manifest = manifest
        return path

    return make


@pytest.fixture
def made(make_artifact: Callable[..., Path], tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "tiny.moel")
