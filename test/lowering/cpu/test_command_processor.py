"""`moeloom_run`, as every library has it: each tile once, commands in order, late threads, more threads than cores."""

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest

from moeloom.lowering.cpu.compile import write_library
from moeloom.lowering.cpu.dsl import const, i64
from moeloom.lowering.cpu.kernel_function import KernelFunction, define
from moeloom.lowering.cpu.tiers import GENERIC

TILES, COMMANDS, WORDS = 97, 20, 5


def build(name, params, tier):
    """here[tile] = before[last - tile] + 1: wrong unless the command before is over."""

    def body(k: KernelFunction) -> None:
        before, here = k.tensor(i64()), k.tensor(i64())
        value = before.load(const(TILES - 1, k.tile.type) - k.tile)
        here.store(here.load(k.tile) + value + 1, k.tile)

    define(name, tier, body)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("run") / "run.so"
    write_library({"chain": (build, {})}, GENERIC, Path(path))
    loaded = ctypes.CDLL(str(path))
    loaded.moeloom_run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    return loaded


class Chain:
    """Commands of which each reads what the one before wrote."""

    def __init__(self, library: ctypes.CDLL):
        self.run = library.moeloom_run
        self.rows = np.zeros((COMMANDS + 1, TILES), np.int64)
        at = self.rows.ctypes.data
        self.args = np.array([[at + 8 * TILES * i, at + 8 * TILES * (i + 1)] for i in range(COMMANDS)], np.int64)
        self.commands = np.zeros((COMMANDS, WORDS), np.int64)
        self.commands[:, 0] = ctypes.cast(library.chain, ctypes.c_void_p).value
        self.commands[:, 1] = [row.ctypes.data for row in self.args]
        self.commands[:, 2] = TILES

    def start(self, epoch: int) -> None:
        self.rows[:] = 0
        self.commands[:, 3:] = epoch << 32

    def join(self, threads: int, epoch: int) -> None:
        self.run(self.commands.ctypes.data, COMMANDS, threads, epoch)

    def is_right(self) -> bool:
        return bool((self.rows == np.arange(COMMANDS + 1).reshape(-1, 1)).all())


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_tile_once_and_commands_in_order(library: ctypes.CDLL, threads: int) -> None:
    chain = Chain(library)
    for epoch in range(1, 51):
        chain.start(epoch)
        others = [threading.Thread(target=chain.join, args=(threads, epoch)) for _ in range(threads - 1)]
        for other in others:
            other.start()
        chain.join(threads, epoch)
        assert chain.is_right()
        for other in others:
            other.join()
        assert chain.is_right()


def test_one_thread_does_not_wait_for_others_that_never_come(library: ctypes.CDLL) -> None:
    chain = Chain(library)
    chain.start(7)
    chain.join(64, 7)
    assert chain.is_right()


def test_a_thread_of_another_epoch_leaves_everything_alone(library: ctypes.CDLL) -> None:
    chain = Chain(library)
    chain.start(9)
    before = chain.commands.copy()
    chain.join(2, 8)
    assert not chain.rows.any()
    assert np.array_equal(chain.commands, before)


def test_stragglers_of_earlier_runs_do_no_harm(library: ctypes.CDLL) -> None:
    """Threads that keep joining with whatever epoch they last saw, while one caller starts run after run."""
    chain, epoch, stop = Chain(library), [1], threading.Event()

    def straggle() -> None:
        while not stop.is_set():
            seen = epoch[0]
            chain.join(3, seen)

    chain.start(1)
    stragglers = [threading.Thread(target=straggle) for _ in range(2)]
    for straggler in stragglers:
        straggler.start()
    try:
        for number in range(1, 301):
            chain.join(3, number)
            assert chain.is_right()
            chain.start(number + 1)
            epoch[0] = number + 1
    finally:
        stop.set()
        for straggler in stragglers:
            straggler.join()
