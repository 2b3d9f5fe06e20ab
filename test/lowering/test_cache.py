"""The cache folder: where it is, what is dropped from it, and what is said where it cannot be written."""

import os
import time
from pathlib import Path

import pytest

from moeloom.lowering import cache

HOURS = 3600


def keep(folder: Path, name: str, size: int, hours: float) -> Path:
    """A file, or a folder where `name` ends with a slash, last used so many hours ago."""
    path = folder / name
    if name.endswith("/"):
        path.mkdir()
        (path / "code").write_bytes(bytes(size - 1))
        (path / "facts").write_bytes(bytes(1))
    else:
        path.write_bytes(bytes(size))
    os.utime(path, times=(time.time() - hours * HOURS,) * 2)
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != cache.LOOKED_THROUGH)


@pytest.mark.parametrize(
    ("most", "names"),
    [(60, ["a", "b", "c", "d"]), (59, ["a", "c", "d"]), (40, ["a", "c", "d"]), (39, ["c", "d"]), (0, ["d"])],
)
def test_drops_what_was_not_used_for_longest(tmp_path, most, names):
    keep(tmp_path, "a/", 10, 4)
    keep(tmp_path, "b/", 20, 5)
    keep(tmp_path, "c", 10, 3)
    keep(tmp_path, "d", 20, 0.5)  # too fresh to be dropped
    cache.trim(tmp_path, most)
    assert left(tmp_path) == names


def test_a_hit_counts_as_use(tmp_path):
    for name, hours in (("a", 4), ("b", 3)):
        keep(tmp_path, name, 10, hours)
    assert cache.hit(tmp_path / "a")
    assert not cache.hit(tmp_path / "c")
    cache.trim(tmp_path, 10)
    assert left(tmp_path) == ["a"]


def test_looks_through_it_once_an_hour(tmp_path):
    for _ in range(2):
        keep(tmp_path, "a", 10, 4)
        cache.trim(tmp_path, 5)
    assert left(tmp_path) == ["a"]
    keep(tmp_path, cache.LOOKED_THROUGH, 0, 1.1)
    cache.trim(tmp_path, 5)
    assert left(tmp_path) == []


def test_where_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MOELOOM_CACHE", raising=False)
    assert cache.default_folder() == Path("/home/somebody/.cache/moeloom/objects")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache.default_folder() == Path("/var/cache/moeloom/objects")
    monkeypatch.setenv("MOELOOM_CACHE", "/scratch/kept")
    assert cache.default_folder() == Path("/scratch/kept")


def test_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(cache.CacheError) as error:
        cache.opened(tmp_path / "file" / "cache")
    assert str(error.value) == (
        f"the cache {tmp_path}/file/cache cannot be written: Not a directory; choose another folder by --cache or "
        "MOELOOM_CACHE"
    )
