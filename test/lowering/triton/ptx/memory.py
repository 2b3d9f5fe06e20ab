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
        grow = start + -(-len(data) // 16) * 16 - len(self._bytes)
        self._bytes = np.concatenate([self._bytes, np.full(grow, 0xFF, np.uint8)])
        self._readable = np.concatenate([self._readable, np.zeros(grow, bool)])
        self._writable = np.concatenate([self._writable, np.zeros(grow, bool)])
        self._constant = np.concatenate([self._constant, np.zeros(grow, bool)])
        self._old = np.concatenate([self._old, np.zeros(grow, bool)])
        own = slice(start, start + len(data))
        self._bytes[own], self._readable[own], self._writable[own] = data, written, writable
        self._constant[own], self._old[own] = constant, old
        return BASE + start

    def read_back(self, address: int, like: np.ndarray) -> np.ndarray:
        """What lies at `address` now, in the form of `like`."""
        start = address - BASE
        return self._bytes[start : start + like.nbytes].copy().view(like.dtype).reshape(like.shape)

    def load(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """u8 [threads, size]."""
        return _pieces(self._bytes, size)[self._places(addresses, size, self._readable, "reads")]

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        size = values.shape[1]
        _pieces(self._bytes, size)[self._places(addresses, size, self._writable, "writes")] = values

    def combine(self, addresses: np.ndarray, values: np.ndarray, how: np.ufunc, early: np.ndarray) -> np.ndarray:
        """Change the words at `addresses` by `values`, one after another, and give what was there. `early`: which
        threads have not waited."""
        places = self._places(addresses, 4, self._readable, "changes")
        assert _pieces(self._writable, 4)[places].all(), "changes 4 bytes that are not to be written"
        old = _pieces(self._old, 4)[places[early]]
        assert old.all(), "changes before griddepcontrol.wait what the launch in front may write"
        words, before = self._bytes.view(values.dtype), np.empty_like(values)
        for i, place in enumerate(places):
            before[i] = words[place]
            words[place] = how(words[place], values[i])
        return before

    def check_early(self, addresses: np.ndarray, size: int, past_l1: bool) -> None:
        """That threads which have not waited may read `size` bytes at each of `addresses`."""
        if len(addresses):
            allowed = self._constant | self._old if past_l1 else self._constant
            self._places(addresses, size, allowed, "before griddepcontrol.wait reads")

    def _places(self, addresses: np.ndarray, size: int, allowed: np.ndarray, what: str) -> np.ndarray:
        """Which pieces of `size` bytes the addresses are."""
        start = addresses.astype(np.int64) - BASE
        assert not (start % size).any(), f"{what} {size} bytes at an address that is no multiple of them"
        inside = not len(start) or (start.min() >= 0 and start.max() + size <= len(self._bytes))
        assert inside, f"{what} {size} bytes outside of all buffers"
        places = start // size
        assert _pieces(allowed, size)[places].all(), f"{what} {size} bytes that are not to be touched"
        return places


def _pieces(array: np.ndarray, size: int) -> np.ndarray:
    """[.., size]: what an access of `size` bytes may touch at once."""
    return array.reshape(-1, size)


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
        places, warps = self._places(addresses, size), (threads // 32)[:, None]
        assert not _pieces(self._arriving, size)[places].any(), "reads what a copy has yet to write"
        writer = _pieces(self._writer, size)[places]
        assert ((writer == NOBODY) | (writer == warps)).all(), "reads what another warp wrote since the last barrier"
        readers = _pieces(self._reader, size)
        before = readers[places]
        after = np.where((before == NOBODY) | (before == warps), warps, SEVERAL)
        readers[places] = after
        readers[places[(readers[places] != after).any(1)]] = SEVERAL  # of this very instruction
        return _pieces(self._bytes, size)[places]

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        size, warps = values.shape[1], (threads // 32)[:, None]
        places, writers = self._free_places(addresses, size, threads), _pieces(self._writer, size)
        writers[places] = warps
        writers[places[(writers[places] != warps).any(1)]] = SEVERAL  # of this very instruction
        _pieces(self._unfenced, size)[places] = threads[:, None]
        _pieces(self._bytes, size)[places] = values
        same = (_pieces(self._bytes, size)[places] == values) | (writers[places] == warps)
        assert same.all(), "writes another value than another warp does"

    def begin_copy(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Each thread is to write `size` bytes."""
        _pieces(self._arriving, size)[self._free_places(addresses, size, threads)] = True

    def end_copy(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """It has: as by a store."""
        size = values.shape[1]
        _pieces(self._arriving, size)[self._places(addresses, size)] = False
        self.store(addresses, values, threads)

    def fence(self, active: np.ndarray) -> None:
        """What `active` threads wrote is for products to see."""
        self._unfenced[active[self._unfenced] & (self._unfenced != NOBODY)] = NOBODY

    def begin_product(self, pieces: np.ndarray) -> np.ndarray:
        """u8 [.., 16] at the addresses `pieces`, until `end_product` of the same."""
        places = self._places(pieces.ravel(), 16)
        assert not _pieces(self._arriving, 16)[places].any(), "multiplies what a copy has yet to write"
        untouched = (_pieces(self._writer, 16)[places] == NOBODY).all()
        assert untouched, "multiplies what a warp wrote since the last barrier"
        fenced = (_pieces(self._unfenced, 16)[places] == NOBODY).all()
        assert fenced, "multiplies what was written without a fence.proxy.async"
        _pieces(self._multiplied, 16)[places] += 1
        return _pieces(self._bytes, 16)[places]

    def end_product(self, pieces: np.ndarray) -> None:
        places = self._places(pieces.ravel(), 16)
        _pieces(self._multiplied, 16)[places] -= 1
        _pieces(self._reader, 16)[places] = SEVERAL

    def _free_places(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Where `threads` may write now."""
        places, warps = self._places(addresses, size), (threads // 32)[:, None]
        assert not _pieces(self._arriving, size)[places].any(), "writes what a copy has yet to write"
        assert not _pieces(self._multiplied, size)[places].any(), "writes what a product still reads"
        for state in (self._writer, self._reader):
            touched = _pieces(state, size)[places]
            free = (touched == NOBODY) | (touched == warps)
            assert free.all(), "writes what another warp touched since the last barrier"
        return places

    def add(self, addresses: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Add u32 `values` one after another; what was there before each. Only other atomics may touch these words."""
        places = self._places(addresses, 4)
        for state in (self._writer, self._reader):
            touched = _pieces(state, 4)[places]
            assert ((touched == NOBODY) | (touched == ATOMIC)).all(), "adds to what was touched since the last barrier"
        _pieces(self._writer, 4)[places] = ATOMIC
        words, before = self._bytes.view(np.uint32), np.empty_like(values)
        for i, place in enumerate(places):
            before[i] = words[place]
            words[place] += values[i]
        return before

    def _places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Which pieces of `size` bytes the addresses are."""
        start = addresses.astype(np.int64)
        assert not (start % size).any(), f"{size} bytes of shared memory at an address that is no multiple of them"
        assert (start + size <= len(self._bytes)).all(), f"{size} bytes behind the end of shared memory"
        return start // size
