"""An artifact is a directory `name.moel/`: written whole or not at all, read only when every hash and bound holds."""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.target import Target, parse_target
from moeloom.runtime.weights import Spec, TensorFileWriter, map_tensors, raw_bytes

SCHEMA = 3
MANIFEST, MANIFEST_HASH = "manifest.json", "manifest.sha256"
RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100
VERIFY = ("full", "fast")


class ArtifactWriter:
    """Writes an artifact in a temporary directory beside `path` and renames it when the block ends without error.

    An exception, a kill or a crash leaves `path` as it was; what a killed writer left behind goes with the next write.

        with ArtifactWriter(path) as out:
            build(out.directory / "kernels" / "cpu.so")
            with out.tensors("weights/cpu.safetensors", specs) as file: ...
            out.manifest = {...}
    """

    def __init__(self, path: str | os.PathLike, *, overwrite: bool = False):
        self.path = Path(path).absolute()
        self.overwrite = overwrite
        self.manifest: Mapping[str, Any] | None = None

    def __enter__(self) -> "ArtifactWriter":
        if self.path.exists():
            self._check_replaceable()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            self.directory, self._lock = self._make_directory()
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be written: {error.strerror}; name another output") from None
        (self.directory / "kernels").mkdir()
        (self.directory / "weights").mkdir()
        return self

    def tensors(self, file: str, specs: Mapping[str, Spec]) -> TensorFileWriter:
        """A tensor file at `file` (relative), to be filled in the order of `specs`."""
        return TensorFileWriter(self.directory / file, specs)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            # After an exchange this is the replaced artifact; after a plain rename nothing is left here.
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._lock)

    def _check_replaceable(self) -> None:
        if not self.overwrite:
            raise ArtifactError(f"{self.path} exists; name another output or allow overwriting it")
        if not (self.path / MANIFEST).is_file():
            raise ArtifactError(f"{self.path} exists and is no artifact (it has no {MANIFEST}); name another output")

    def _make_directory(self) -> tuple[Path, int]:
        """A locked directory. A cleaner may take it between its making and its locking: then try again."""
        while True:
            directory = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent))
            lock = os.open(directory, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                directory.chmod(0o777 & ~_umask())
                return directory, lock
            os.close(lock)

    def _remove_stale(self) -> None:
        """Temporary directories whose writer is gone: the lock of a dead process is free."""
        for directory in self.path.parent.glob(f".{self.path.name}.*.partial"):
            try:
                lock = os.open(directory, os.O_RDONLY)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)

    def _publish(self) -> None:
        if self.manifest is None:
            raise ArtifactError(f"{self.path}: the manifest was never set")
        text = json.dumps({"schema": SCHEMA, **self.manifest}, indent=1).encode()
        (self.directory / MANIFEST).write_bytes(text)
        (self.directory / MANIFEST_HASH).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")
        read(self.directory, verify="fast")
        for folder, _, files in os.walk(self.directory):
            for name in [*files, "."]:
                _sync(os.path.join(folder, name))
        if self.path.exists():
            self._check_replaceable()
            _exchange(self.directory, self.path)
        else:
            os.rename(self.directory, self.path)
        _sync(self.path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step; on a file system that cannot, in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise ArtifactError(f"{old} cannot be replaced: {os.strerror(code)}")
    aside = new.with_suffix(".replaced")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


@dataclass(frozen=True)
class Entry:
    name: str
    program: str
    prefix: str


@dataclass(frozen=True)
class Manifest:
    """A checked artifact. `raw` is the manifest itself (report, options, tools)."""

    path: Path
    raw: Mapping[str, Any]
    entries: Mapping[str, Entry]
    targets: Mapping[str, Target]

    def map_weights(self, target: str) -> dict[str, Tensor]:
        """The packed weights of `target` by prefix + packed name, memory-mapped. Shapes and sizes are checked."""
        wanted = self.targets[target].weights
        files = {item["file"]: map_tensors(self.path / item["file"]) for item in wanted.values()}
        found = {}
        for name, item in wanted.items():
            tensor = files[item["file"]].get(item["tensor"])
            if tensor is None:
                raise ArtifactError(f"{self.path / item['file']} has no tensor {item['tensor']!r}")
            if str(tensor.dtype) != f"torch.{item['dtype']}" or list(tensor.shape) != item["shape"]:
                raise ArtifactError(
                    f"weight {name!r} is {tensor.dtype} {tuple(tensor.shape)} in {item['file']}; "
                    f"the manifest wants {item['dtype']} {tuple(item['shape'])}"
                )
            found[name] = tensor
        return found


def read(path: str | os.PathLike, verify: str = "full") -> Manifest:
    """The checked manifest of an artifact. ArtifactError when anything does not hold.

    Always: schema, structure, paths, sizes, the hashes of the manifest and of all native code. With `verify`
    "full" also the hash of every weight, which reads them once; "fast" leaves that out.
    """
    if verify not in VERIFY:
        raise ValueError(f"verify is {verify!r}; it must be one of {', '.join(VERIFY)}")
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} is no artifact: it has no {MANIFEST}")
    text = (path / MANIFEST).read_bytes()
    _check_hash(path, text)
    raw = json.loads(text)
    try:
        if raw["schema"] != SCHEMA:
            raise ArtifactError(f"{path} has schema {raw['schema']}; this runtime reads {SCHEMA}. Compile it again")
        targets = {name: parse_target(path, name, target) for name, target in raw["targets"].items()}
        entries = {name: Entry(name, e["program"], e["prefix"]) for name, e in raw["entries"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise ArtifactError(f"{path / MANIFEST} {what}; compile the model again") from None
    for entry in entries.values():
        for target in targets.values():
            if entry.program not in target.programs:
                raise ArtifactError(f"entry {entry.name!r} wants program {entry.program!r}, absent for {target.name}")
    manifest = Manifest(path, raw, entries, targets)
    for name in targets:
        tensors = manifest.map_weights(name)
        if verify == "full":
            _check_weights(manifest, name, tensors)
    return manifest


def _check_hash(path: Path, text: bytes) -> None:
    try:
        wanted = (path / MANIFEST_HASH).read_text().split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        raise ArtifactError(f"{path} has no readable {MANIFEST_HASH}; compile or copy it again") from None
    if hashlib.sha256(text).hexdigest() != wanted:
        raise ArtifactError(f"{path / MANIFEST} does not match {MANIFEST_HASH}; compile or copy the artifact again")


def _check_weights(manifest: Manifest, target: str, tensors: Mapping[str, Tensor]) -> None:
    """Hash every weight; several at a time, as hashing releases the interpreter."""

    def differs(item: tuple[str, Tensor]) -> bool:
        name, tensor = item
        return hashlib.sha256(raw_bytes(tensor)).hexdigest() != manifest.targets[target].weights[name]["sha256"]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, bad in zip(tensors, pool.map(differs, tensors.items()), strict=True):
            if bad:
                file = manifest.targets[target].weights[name]["file"]
                raise ArtifactError(f"weight {name!r} in {manifest.path / file} does not match its hash; copy it again")
