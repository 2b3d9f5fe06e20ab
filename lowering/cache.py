"""The cache: what imports and compilations made, kept by content in one folder that stays below a size."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 2 << 30
IN_USE_SECONDS = 3600
"""What was used within this time is never dropped, as another compilation may be about to copy it; nor is the folder
looked through again."""
LOOKED_THROUGH = ".looked-through"


class CacheError(Exception):
    """The cache cannot be used. One line."""


def default_folder() -> Path:
    """$MOELOOM_CACHE, else a folder of ours in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("MOELOOM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moeloom" / "objects"


def opened(folder: Path) -> Path:
    """`folder`, made where it is not there; CacheError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise CacheError(
            f"the cache {folder} cannot be written: {error.strerror}; choose another folder by --cache or MOELOOM_CACHE"
        ) from None


def hit(path: Path) -> bool:
    """Whether `path` is there; if so it counts as used now."""
    with suppress(OSError):  # it is not there, or somebody else's
        os.utime(path)
    return path.exists()


def trim(folder: Path, most: int = MOST_BYTES) -> None:
    """Drop what was not used for longest until `most` bytes are left."""
    looked, old = folder / LOOKED_THROUGH, time.time() - IN_USE_SECONDS
    with suppress(FileNotFoundError):
        if looked.stat().st_mtime > old:
            return
    looked.touch()
    kept = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another compilation's scratch
                kept.append((entry.stat(follow_symlinks=False).st_mtime, _size(entry), entry.path))
    excess = sum(size for _, size, _ in kept) - most
    if excess <= 0:
        return
    # What is half gone must not be taken for whole: first out of the way, in one step.
    with tempfile.TemporaryDirectory(dir=folder) as trash:
        for used, size, path in sorted(kept):
            if excess <= 0 or used > old:
                return
            with suppress(OSError):  # another compilation was faster
                os.rename(path, os.path.join(trash, os.path.basename(path)))
                excess -= size


def _size(entry: os.DirEntry) -> int:
    """Bytes of a file, or of all files in a folder; 0 where another process has just removed it."""
    with suppress(OSError):
        if not entry.is_dir(follow_symlinks=False):
            return entry.stat(follow_symlinks=False).st_size
        with os.scandir(entry.path) as entries:
            return sum(_size(each) for each in entries)
    return 0
