"""Stand-ins for the GPU drivers: C libraries with their entry points that record every launch and run the tiny kernels
of conftest.py by the GPU ABI on the host's memory; and that artifact, compiled for them."""

import copy
import ctypes
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from moeloom.runtime import devices, gpu
from moeloom.runtime.cuda import Cuda
from moeloom.runtime.devices import Found
from moeloom.runtime.hip import Hip

WIDTH = 8
SHARED = {"scale_rows": 65536, "add_one": 65536, "keep_live": 128}  # over and under what CUDA gives without asking
DIVISIBLE = {"scale_rows": [16, 8, 16, 16], "add_one": [16, 16], "keep_live": [16, 1, 16]}
MOST_WORDS = 8
SOURCE = Path(__file__).with_name("driver.c")


class Recorded(ctypes.Structure):
    """A launch as the stand-in saw it."""

    _fields_ = (
        ("grid", ctypes.c_int64 * 3),
        ("block", ctypes.c_int64 * 3),
        ("shared", ctypes.c_int64),
        ("stream", ctypes.c_int64),
        ("words", ctypes.c_int64 * MOST_WORDS),
        ("m", ctypes.c_int64),
        ("scratch", ctypes.c_int64),
        ("early", ctypes.c_int64),
    )


class Stream:
    """A stand-in for torch's streams; `waits` are the streams that it was told to wait for."""

    def __init__(self, handle: int):
        self.cuda_stream, self.waits = handle, []

    def wait_stream(self, other: "Stream") -> None:
        self.waits.append(other)


class Machine:
    """What the drivers of a test see: a library, the caller's stream, whether it is captured."""

    def __init__(self, backend: str, library: Path):
        self.backend, self.library = backend, library
        self.found = Found(0, backend, {"cuda": "sm_90", "hip": "gfx942"}[backend], "GPU of paper")
        self.stream, self.capturing = Stream(0x500000000), False
        self.code = ctypes.CDLL(str(library))

    def launches(self) -> list[Recorded]:
        """What was launched since the last call."""
        count = ctypes.c_int64.in_dll(self.code, "launched")
        found = (Recorded * count.value).from_buffer_copy((Recorded * 64).in_dll(self.code, "launches"))
        count.value = 0
        return list(found)

    def driver(self) -> gpu.Driver:
        """A driver for the one GPU."""
        return devices.Cuda(0) if self.backend == "cuda" else devices.Hip(0)

    def number(self, name: str) -> ctypes.c_int64:
        return ctypes.c_int64.in_dll(self.code, name)


@pytest.fixture(scope="session", params=["cuda", "hip"])
def stand_in(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A backend and its stand-in. For HIP the file is named as torch's own copy, which is found where it is loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    made = folder / {"cuda": "libcuda.so.1", "hip": "libamdhip64.so"}[request.param]
    defines = ["-DCUDA"] if request.param == "cuda" else []
    subprocess.run(["cc", "-shared", "-fPIC", *defines, "-o", made, SOURCE], check=True)
    return request.param, made


@pytest.fixture
def machine(stand_in: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with one GPU of paper, whose memory is the host's."""
    here = Machine(*stand_in)

    def on_paper(kind: type[gpu.Driver]) -> type[gpu.Driver]:
        class Paper(kind):
            library = str(here.library) if here.backend == "cuda" else "libamdhip64.so"

            def __init__(self, index: int):
                super().__init__(index)
                self.torch_device = torch.device("cpu")

            def current(self) -> AbstractContextManager:
                return nullcontext()

            def stream(self) -> Stream:
                return here.stream

            def capturing(self) -> bool:
                return here.capturing

            def synchronise(self) -> None:
                pass

            def seconds(self, launch: Callable[[], None]) -> float:
                launch()
                return 1e-6

        return Paper

    monkeypatch.setattr(gpu, "_modules", {})
    monkeypatch.setattr(devices, "find_gpu", lambda index=None: here.found)
    monkeypatch.setattr(devices, "Cuda", on_paper(Cuda))
    monkeypatch.setattr(devices, "Hip", on_paper(Hip))
    yield here
    here.launches()
    here.number("refuse").value = 0


ARGUMENTS = {
    "scale_rows": ["*fp32", "i64", "*fp32", "*fp32"],
    "add_one": ["*fp32", "*fp32"],
    "keep_live": ["*fp32", "*i32", "*fp32"],
}


def gpu_target(path: Path, manifest: dict, backend: str, name: str) -> dict:
    """The tiny program for a GPU, its code objects written into the artifact that is being made."""
    warp = 64 if backend == "hip" else 32
    kernels = {}
    for kernel, arguments in ARGUMENTS.items():
        file, content = f"kernels/{kernel}.bin", f"code {kernel}".encode() + b"\0"
        (path / file).write_bytes(content)
        code = {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "symbol": kernel, "threads": 4 * warp}
        code |= {"scratch": 2, "shared": SHARED[kernel], "dependent": backend == "cuda"}
        described = {"template": kernel, "params": {}, "arguments": list(arguments)}
        kernels[kernel] = described | {"divisible": list(DIVISIBLE[kernel]), "code": code}
    cpu = manifest["targets"]["cpu"]
    return {
        "architecture": {"backend": backend, "name": name, "warp_size": warp},
        "libraries": [],
        "kernels": kernels,
        "programs": copy.deepcopy(cpu["programs"]),
        "weights": cpu["weights"],
    }


@pytest.fixture
def artifact(make_artifact: Callable[..., Path], machine: Machine, tmp_path: Path) -> Callable[..., Path]:
    """artifact(change) -> one for the CPU and for the machine's GPU; `change` edits the GPU's target."""

    def make(change: Callable[[dict], object] = lambda target: None, keep_cpu: bool = True) -> Path:
        def add(manifest: dict) -> None:
            (partial,) = tmp_path.glob(".gpu.moel.*.partial")
            target = gpu_target(partial, manifest, machine.backend, machine.found.name)
            change(target)
            manifest["targets"][machine.found.name] = target
            if not keep_cpu:
                del manifest["targets"]["cpu"]

        return make_artifact(tmp_path / "gpu.moel", add, overwrite=True)

    return make


def tokens(m: int) -> torch.Tensor:
    return torch.randn(m, WIDTH, generator=torch.Generator().manual_seed(m))
