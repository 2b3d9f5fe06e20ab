"""Memory of the PTX machine: buffers with guards between them, and shared memory that sees races."""

from __future__ import annotations

import numpy as np

GUARD_BYTES = 512
BASE = 1 << 33  # so that an address cut to 32 bits is seen


class Memory:
    """Global memory. Every access must lie in a buffer, be aligned, and write only what is to be written.

    Before a thread has waited for the launch in front of its own, it may touch constants alone, and of what older
    launches wrote what it reads past L1, or changes by atomics.
    """

    def __init__(self) -> None:
        self._bytes = np.zeros(0, np.uint8)
        self._readable = np.zeros(0, bool)
        self._writable = np.zeros(0, bool)
        self._constant = np.zeros(0, bool)
        self._old = np.zeros(0, bool)

    def place(
        self,
        content: np.ndarray,
        writable: bool = False,
        constant: bool = False,
        old: bool = False,
        written: np.ndarray | bool = True,
    ) -> int:
        """Copy `content` to a new address, a multiple of 16 and of no more, as kernels assume. `constant`: no launch
        writes it. `old`: the launch in front of the kernel's own does not. `written`: its bytes that something wrote;
        nobody may read the others, even to ignore them (compute-sanitizer's initcheck)."""
        data = np.ascontiguousarray(content).view(np.uint8).ravel()
        start = -(-(len(self._bytes) + GUARD_BYTES) // 256) * 256 + 16
        grow = start + len(data) - len(self._bytes)
        self._bytes = np.concatenate([self._bytes, np.full(grow, 0xFF, np.uint8)])
        self._readable = np.concatenate([self._readable, np.zeros(grow, bool)])
        self._writable = np.concatenate([self._writable, np.zeros(grow, bool)])
        self._constant = np.concatenate([self._constant, np.zeros(grow, bool)])
        self._old = np.concatenate([self._old, np.zeros(grow, bool)])
        self._bytes[start:], self._readable[start:], self._writable[start:] = data, written, writable
        self._constant[start:], self._old[start:] = constant, old
        return BASE + start

    def read_back(self, address: int, like: np.ndarray) -> np.ndarray:
        """What lies at `address` now, in the form of `like`."""
        start = address - BASE
        return self._bytes[start : start + like.nbytes].copy().view(like.dtype).reshape(like.shape)

    def load(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """u8 [threads, size]."""
        return self._bytes[self._places(addresses, size, self._readable, "reads")]

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        self._bytes[self._places(addresses, values.shape[1], self._writable, "writes")] = values

    def combine(self, addresses: np.ndarray, values: np.ndarray, how: np.ufunc, early: np.ndarray) -> np.ndarray:
        """Change the words at `addresses` by `values`, one after another, and give what was there. `early`: which
        threads have not waited."""
        places = self._places(addresses, 4, self._readable & self._writable, "changes")
        assert self._old[places[early]].all(), "changes before griddepcontrol.wait what the launch in front may write"
        before = np.empty_like(values)
        for i, place in enumerate(places[:, 0]):
            word = self._bytes[place : place + 4].view(values.dtype)
            before[i] = word[0]
            word[0] = how(word[0], values[i])
        return before

    def check_early(self, addresses: np.ndarray, size: int, past_l1: bool) -> None:
        """That threads which have not waited may read `size` bytes at each of `addresses`."""
        allowed = self._constant | self._old if past_l1 else self._constant
        self._places(addresses, size, allowed, "before griddepcontrol.wait reads")

    def _places(self, addresses: np.ndarray, size: int, allowed: np.ndarray, what: str) -> np.ndarray:
        start = addresses.astype(np.int64) - BASE
        assert not (start % size).any(), f"{what} {size} bytes at an address that is no multiple of them"
        inside = (start >= 0) & (start + size <= len(self._bytes))
        assert inside.all(), f"{what} {size} bytes outside of all buffers"
        places = start[:, None] + np.arange(size)
        assert allowed[places].all(), f"{what} {size} bytes that are not to be touched"
        return places


NOBODY, SEVERAL, ATOMIC = -1, -2, -3


class Shared:
    """Shared memory of a block. Between barriers no warp may touch what another one writes.

    Copies and products are asynchronous (asynchronous.py): between begin and end nobody touches what a copy writes, nor
    writes what a product reads. Products do not see what was written and not fenced.
    """

    def __init__(self, content: np.ndarray) -> None:
        self._bytes = content.copy()
        self._arriving = np.zeros(len(content), bool)
        self._multiplied = np.zeros(len(content), np.int64)
        self._unfenced = np.full(len(content), NOBODY, np.int64)
        self.barrier()

    def barrier(self) -> None:
        self._writer = np.full(len(self._bytes), NOBODY, np.int64)
        self._reader = np.full(len(self._bytes), NOBODY, np.int64)

    def load(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        places, warps = self._places(addresses, size), np.repeat(threads // 32, size).reshape(-1, size)
        assert not self._arriving[places].any(), "reads what a copy has yet to write"
        writer = self._writer[places]
        assert ((writer == NOBODY) | (writer == warps)).all(), "reads what another warp wrote since the last barrier"
        reader = self._reader[places]
        self._reader[places] = np.where((reader == NOBODY) | (reader == warps), warps, SEVERAL)
        return self._bytes[places]

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        places = self._free_places(addresses, values.shape[1], threads)
        self._writer[places], self._unfenced[places] = (threads // 32)[:, None], threads[:, None]
        self._bytes[places] = values

    def begin_copy(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Each thread is to write `size` bytes."""
        self._arriving[self._free_places(addresses, size, threads)] = True

    def end_copy(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """It has: as by a store."""
        self._arriving[self._places(addresses, values.shape[1])] = False
        self.store(addresses, values, threads)

    def fence(self, active: np.ndarray) -> None:
        """What `active` threads wrote is for products to see."""
        self._unfenced[active[self._unfenced] & (self._unfenced != NOBODY)] = NOBODY

    def begin_product(self, pieces: np.ndarray) -> np.ndarray:
        """u8 [.., 16] at the addresses `pieces`, until `end_product` of the same."""
        places = self._places(pieces.ravel(), 16)
        assert not self._arriving[places].any(), "multiplies what a copy has yet to write"
        assert (self._writer[places] == NOBODY).all(), "multiplies what a warp wrote since the last barrier"
        assert (self._unfenced[places] == NOBODY).all(), "multiplies what was written without a fence.proxy.async"
        self._multiplied[places] += 1
        return self._bytes[places]

    def end_product(self, pieces: np.ndarray) -> None:
        places = self._places(pieces.ravel(), 16)
        self._multiplied[places] -= 1
        self._reader[places] = SEVERAL

    def _free_places(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Where `threads` may write now."""
        places, warps = self._places(addresses, size), (threads // 32)[:, None]
        assert not self._arriving[places].any(), "writes what a copy has yet to write"
        assert not self._multiplied[places].any(), "writes what a product still reads"
        for touched in (self._writer[places], self._reader[places]):
            free = (touched == NOBODY) | (touched == warps)
            assert free.all(), "writes what another warp touched since the last barrier"
        return places

    def add(self, addresses: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Add u32 `values` one after another; what was there before each. Only other atomics may touch these words."""
        places = self._places(addresses, 4)
        for touched in (self._writer[places], self._reader[places]):
            assert ((touched == NOBODY) | (touched == ATOMIC)).all(), "adds to what was touched since the last barrier"
        self._writer[places] = ATOMIC
        before = np.empty_like(values)
        for i, place in enumerate(places[:, 0]):
            word = self._bytes[place : place + 4].view(np.uint32)
            before[i] = word[0]
            word += values[i]
        return before

    def _places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        start = addresses.astype(np.int64)
        assert not (start % size).any(), f"{size} bytes of shared memory at an address that is no multiple of them"
        assert (start + size <= len(self._bytes)).all(), f"{size} bytes behind the end of shared memory"
        return start[:, None] + np.arange(size)
