"""Runs single kernel templates: `kernels` compiles them for `tier`, once each, and calls them on torch tensors."""

import ctypes
import itertools
from pathlib import Path

import pytest
import torch

from moeloom.lowering.cpu.compile import write_library
from moeloom.lowering.cpu.templates import TEMPLATES
from moeloom.lowering.cpu.tiers import AMX, BEST_FIRST

GUARD = 64
"""Bytes of poison before and behind every output, checked after every run."""


def supported_tiers():
    """Those this machine runs. amx only adds matrix products, which no template run here has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    return [tier for tier in BEST_FIRST if tier is not AMX and flags.issuperset(tier.features)]


class Kernels:
    """Compiles and runs kernels of one tier. Outputs start as 0xFF bytes between guards of the same."""

    def __init__(self, tier, folder):
        self.tier, self.folder = tier, folder
        self._numbers, self._loaded, self._guarded = itertools.count(), {}, []

    def compile(self, *wanted):
        """Several (template, params) as one library: much quicker than one by one."""
        missing = {key(template, params): (template, params) for template, params in wanted}
        missing = {name: how for name, how in missing.items() if name not in self._loaded}
        if not missing:
            return
        symbols = {f"kernel_{next(self._numbers)}": name for name in missing}
        path = self.folder / f"{next(iter(symbols))}.so"
        builders = {s: (TEMPLATES[missing[name][0]], missing[name][1]) for s, name in symbols.items()}
        write_library(builders, self.tier, path)
        library = ctypes.CDLL(str(path))
        for symbol, name in symbols.items():
            self._loaded[name] = library, ctypes.cast(library[symbol], ctypes.c_void_p).value

    def output(self, shape, dtype=torch.uint8):
        """A poisoned tensor that may not be written outside of."""
        size = torch.Size(shape).numel() * dtype.itemsize
        memory = torch.full((GUARD + size + GUARD,), 0xFF, dtype=torch.uint8)
        self._guarded.append(memory)
        return memory[GUARD : GUARD + size].view(dtype).view(shape)

    def run(self, template, params, args, tiles):
        """All tiles in one call of moeloom_run; `args` are tensors and numbers in the order of the ABI's slots."""
        self.compile((template, params))
        library, kernel = self._loaded[key(template, params)]
        slots = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
        slots = (ctypes.c_int64 * len(slots))(*slots)
        command = (ctypes.c_int64 * 5)(kernel, ctypes.addressof(slots), tiles, 0, 0)
        library.moeloom_run(ctypes.byref(command), *map(ctypes.c_int64, (1, 1, 0)))
        for memory in self._guarded:
            assert bool((memory[:GUARD] == 0xFF).all()), f"{template} writes before a result"
            assert bool((memory[-GUARD:] == 0xFF).all()), f"{template} writes behind a result"
        self._guarded.clear()

    def quant(self, x, scale_mode="even"):
        rows, columns = x.shape
        codes, scales = self.output((rows, columns // 2)), self.output((rows, columns // 32))
        params = {"columns": columns, "x": half(x), "scale_mode": scale_mode}
        self.run("quant", params, [x, x.stride(0), codes, scales, rows], rows)
        return codes, scales

    def sort_scales(self, scales, sorted_ids, num_valid, stage, topk, layout="tiled_32x8"):
        columns = scales.shape[1]
        rows, width = sorted_shape(sorted_ids, columns, layout)
        out = self.output((rows, width))
        params = {"columns": columns, "stage": stage, "topk": topk, "layout": layout}
        self.run("sort_scales", params, [scales, sorted_ids, num_valid, out, len(scales)], rows // 32)
        return out

    def quant_sort(self, x, sorted_ids, num_valid, stage, topk, layout="tiled_32x8", scale_mode="even"):
        columns = x.shape[1]
        rows, width = sorted_shape(sorted_ids, columns // 32, layout)
        codes, out = self.output((len(x), columns // 2)), self.output((rows, width))
        params = {"columns": columns, "x": half(x), "scale_mode": scale_mode}
        params |= {"stage": stage, "topk": topk, "layout": layout}
        args = [x, x.stride(0), sorted_ids, num_valid, codes, out, len(x)]
        self.run("quant_sort", params, args, rows // 32)
        return codes, out


def key(template, params):
    return template, *sorted(params.items())


def half(x):
    return {torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]


def sorted_shape(sorted_ids, columns, layout):
    """Rows up to 32; columns up to 8 when tiled."""
    return -(-len(sorted_ids) // 32) * 32, -(-columns // 8) * 8 if layout == "tiled_32x8" else columns


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Tensors are small here, and spinning threads of several test runs on one machine starve each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=supported_tiers(), ids=lambda tier: tier.name)
def kernels(request, tmp_path_factory):
    return Kernels(request.param, tmp_path_factory.mktemp(request.param.name))
