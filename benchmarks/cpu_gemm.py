"""The two expert products of a gpt-oss layer on this CPU, against its read bandwidth.

    python benchmarks/cpu_gemm.py [--tiers avx512bf16 ...] [--tokens 1 4 16 64] [--threads 2]

Prints, for every tier and M: milliseconds a layer (gate_up and down, best of the rounds), GB/s of the weight bytes the
routed experts have, its share of the read bandwidth measured with the same threads before and after, and GFLOP/s.
Weights are drawn at random and routes differ from repeat to repeat, so weights come from memory at small M.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from moeloom.lowering.cpu import down, gate_up
from moeloom.lowering.cpu.compile import write_library
from moeloom.lowering.cpu.dsl import const, i32, loop, vec
from moeloom.lowering.cpu.kernel_function import define
from moeloom.lowering.cpu.tiers import BEST_FIRST, Tier
from moeloom.runtime.cpu import features

HIDDEN = INTERMEDIATE = 2880
EXPERTS, TOPK, BLOCK = 32, 4, 32
PARAMS = {
    "hidden": HIDDEN,
    "intermediate": INTERMEDIATE,
    "topk": TOPK,
    "block": BLOCK,
    "activation": "swiglu",
    "alpha": 1.702,
    "limit": 7.0,
    "x": "bf16",
    "has_bias": True,
}
READ_TILE = 1 << 16
"""Bytes a tile of the reading kernel streams."""


def read(name: str, params: dict, tier: Tier) -> None:
    """Sum a tile of 32-bit integers into out[tile]: the read bandwidth."""

    def body(k):
        source, out = k.tensor(i32()), k.tensor(i32())
        kind, words = vec(tier.lanes, i32()), READ_TILE // 4
        start = k.tile * words

        def some(i, *sums):
            return [s + source.load(start + i + n * tier.lanes, tier.lanes) for n, s in enumerate(sums)]

        sums = loop(0, words, 4 * tier.lanes, [const(0, kind)] * 4, some)
        out.store((sums[0] + sums[1] + sums[2] + sums[3]).reduce("add"), k.tile)

    define(name, tier, body)


class Pool:
    """Runs commands through moeloom_run on `threads` threads; seconds, the best of `rounds`."""

    def __init__(self, library: ctypes.CDLL, threads: int):
        self.library, self.threads = library, threads
        library.moeloom_run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]

    def command(self, kernel: str, args: np.ndarray, tiles: int) -> list[int]:
        address = ctypes.cast(getattr(self.library, kernel), ctypes.c_void_p).value
        assert address is not None
        return [address, args.ctypes.data, tiles, 0]

    def seconds(self, commands: list[list[int]], rounds: int) -> float:
        table = np.array(commands, np.int64)
        barrier = np.array([self.threads, 0, 0], np.int64)

        def work(thread: int) -> None:
            self.library.moeloom_run(table.ctypes.data, len(commands), barrier.ctypes.data, thread)

        best = float("inf")
        for _ in range(rounds):
            others = [threading.Thread(target=work, args=(t,)) for t in range(1, self.threads)]
            start = time.perf_counter()
            for other in others:
                other.start()
            work(0)
            for other in others:
                other.join()
            best = min(best, time.perf_counter() - start)
        return best


class Layer:
    def __init__(self, rng: np.random.Generator):
        def weight(rows: int, columns: int) -> list[np.ndarray]:
            payload = rng.integers(0, 256, EXPERTS * rows * columns // 2, dtype=np.uint8)
            scales = rng.integers(115, 121, EXPERTS * rows * columns // 32, dtype=np.uint8)
            return [payload, scales, rng.standard_normal(EXPERTS * rows).astype(np.float32)]

        self.w1, self.w2 = weight(2 * INTERMEDIATE, HIDDEN), weight(HIDDEN, INTERMEDIATE)
        self.expert_bytes = sum(array.nbytes for array in self.w1[:2] + self.w2[:2]) // EXPERTS

    def commands(
        self, pool: Pool, tokens: int, rng: np.random.Generator, keep: list[np.ndarray]
    ) -> tuple[list[list[int]], int]:
        """gate_up and down of freshly routed tokens, and the bytes of the experts they name."""
        routed = np.stack([rng.permutation(EXPERTS)[:TOPK] for _ in range(tokens)])
        ids: list[int] = []
        experts: list[int] = []
        for expert in range(EXPERTS):
            live = [int(s) << 24 | int(t) for t, s in np.argwhere(routed == expert)]
            blocks = -(-len(live) // BLOCK)
            ids += live + [TOPK << 24 | tokens] * (blocks * BLOCK - len(live))
            experts += [expert] * blocks
        rows = tokens * TOPK
        x = (rng.standard_normal((tokens, HIDDEN)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        h, out = np.zeros((rows, INTERMEDIATE), np.uint16), np.zeros((rows, HIDDEN), np.float32)
        lists = [np.array(ids, np.int32), np.array(experts, np.int32), np.array([len(ids), tokens], np.int32)]
        routing = np.ones(len(ids), np.float32)
        keep += [x, h, out, *lists, routing]
        first = slots(x, HIDDEN, *lists, *self.w1, h, tokens)
        second = slots(h, *lists, routing, *self.w2, out, tokens)
        keep += [first, second]
        commands = [
            pool.command("gate_up", first, len(experts) * INTERMEDIATE // 16),
            pool.command("down", second, len(experts) * HIDDEN // 16),
        ]
        return commands, len(set(experts)) * self.expert_bytes


def slots(*operands: np.ndarray | int) -> np.ndarray:
    return np.array([v.ctypes.data if isinstance(v, np.ndarray) else v for v in operands], np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    have = features()
    usable = {tier.name: tier for tier in BEST_FIRST if have.issuperset(tier.features)}
    parser.add_argument("--tiers", nargs="+", choices=usable, default=list(usable))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    layer = Layer(rng)
    flops_per_row = 2 * 3 * HIDDEN * INTERMEDIATE
    print("tier          M   ms/layer   GB/s   of read   GFLOP/s")
    for name in arguments.tiers:
        kernels = {
            "gate_up": (gate_up.build, {**PARAMS, "has_weights": False}),
            "down": (down.build, {**PARAMS, "has_weights": True}),
            "read": (read, {}),
        }
        path = Path(tempfile.mkdtemp()) / "kernels.so"
        write_library(kernels, usable[name], path)
        pool = Pool(ctypes.CDLL(str(path)), arguments.threads)
        tiles = layer.w1[0].nbytes // READ_TILE
        sums = np.zeros(tiles, np.int32)
        read_args = slots(layer.w1[0], sums, 0)
        reading = [pool.command("read", read_args, tiles)]

        def bandwidth(pool=pool, reading=reading, tiles=tiles) -> float:
            return tiles * READ_TILE / pool.seconds(reading, 5) / 1e9

        for tokens in arguments.tokens:
            before = bandwidth()
            commands: list[list[int]] = []
            keep: list[np.ndarray] = []
            touched = 0
            repeats = max(1, 8 // tokens)
            for _ in range(repeats):
                more, bytes_ = layer.commands(pool, tokens, rng, keep)
                commands, touched = commands + more, touched + bytes_
            seconds = pool.seconds(commands, arguments.rounds)
            ms, rate = seconds / repeats * 1e3, touched / seconds / 1e9
            share = rate / max(before, bandwidth())
            flops = repeats * tokens * TOPK * flops_per_row / seconds / 1e9
            print(f"{name:12} {tokens:3} {ms:9.2f} {rate:7.1f} {share:8.0%} {flops:9.0f}", flush=True)


if __name__ == "__main__":
    main()
