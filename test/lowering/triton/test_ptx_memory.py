"""The PTX machine's memory notices what kernels must not do, also when the threads of one instruction do it."""

import numpy as np
import pytest
from ptx.memory import Memory, Shared

THREADS = np.arange(64)  # two warps
FOUR_BYTES = np.zeros((64, 4), np.uint8)


@pytest.fixture
def shared() -> Shared:
    return Shared(np.zeros(1024, np.uint8))


def test_threads_of_two_warps_read_one_place_and_none_of_them_may_write_it(shared):
    shared.load(np.zeros(64, np.int64), 4, THREADS)
    for warp in (THREADS[:1], THREADS[63:]):
        with pytest.raises(AssertionError, match="another warp touched"):
            shared.store(np.zeros(1, np.int64), FOUR_BYTES[:1], warp)
    shared.barrier()
    shared.store(np.zeros(1, np.int64), FOUR_BYTES[:1], THREADS[:1])


def test_a_warp_writes_what_it_alone_read(shared):
    shared.load(4 * THREADS, 4, THREADS)
    shared.store(4 * THREADS, FOUR_BYTES, THREADS)
    with pytest.raises(AssertionError, match="another warp wrote"):
        shared.load(4 * THREADS[::-1], 4, THREADS)


def test_two_warps_write_one_place_at_once(shared):
    one_place = np.zeros(64, np.int64)
    shared.store(one_place, FOUR_BYTES, THREADS)  # the same value
    with pytest.raises(AssertionError, match="another warp wrote"):
        shared.load(one_place[:1], 4, THREADS[:1])
    shared.barrier()
    with pytest.raises(AssertionError, match="another value"):
        shared.store(one_place, THREADS.astype(np.uint32)[:, None].view(np.uint8), THREADS)


def test_shared_memory_ends(shared):
    shared.load(np.array([1020]), 4, THREADS[:1])
    with pytest.raises(AssertionError, match="behind the end"):
        shared.load(np.array([1024]), 4, THREADS[:1])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_buffer_ends_where_it_ends(size):
    """Whatever it is rounded up to."""
    memory = Memory()
    start = memory.place(np.arange(20, dtype=np.uint8), writable=True)
    memory.place(np.zeros(64, np.uint8), writable=True)
    last = np.array([start + 20 - size])
    assert memory.load(last, size, THREADS[:1]).tolist() == [list(range(20 - size, 20))]
    with pytest.raises(AssertionError, match="not to be touched"):
        memory.load(last + size, size, THREADS[:1])
    with pytest.raises(AssertionError, match="not to be touched"):
        memory.store(last + size, FOUR_BYTES[:1, :size], THREADS[:1])


def test_bytes_that_nothing_wrote_are_read_by_no_one():
    memory = Memory()
    start = memory.place(np.zeros(8, np.uint8), written=np.arange(8) != 5)
    memory.load(np.array([start]), 4, THREADS[:1])
    with pytest.raises(AssertionError, match="not to be touched"):
        memory.load(np.array([start + 4]), 4, THREADS[:1])


def test_words_are_changed_one_after_another():
    memory = Memory()
    start = memory.place(np.array([7], np.uint32), writable=True)
    before = memory.combine(np.full(3, start), np.array([1, 2, 3], np.uint32), np.add, np.zeros(3, bool))
    assert before.tolist() == [7, 8, 10]
    assert memory.read_back(start, np.zeros(1, np.uint32)).tolist() == [13]
