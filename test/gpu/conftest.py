"""Tests that need a GPU, and artifacts compiled elsewhere: `python test/gpu/make_artifacts.py DIRECTORY` makes them.

    MOELOOM_ARTIFACTS=DIRECTORY pytest test/gpu

Without a GPU or that folder nothing is collected.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moeloom.runtime.executable import Executable, load

FOLDER = os.environ.get("MOELOOM_ARTIFACTS")
collect_ignore_glob = [] if FOLDER and torch.cuda.is_available() else ["test_*.py"]
GROUPS = {
    "artifact": ("large", "small"),
    "whole": ("whole",),
    "odd": ("odd", "small"),
    "small": ("small",),
    "site": ("bytes",),
}
"""Which artifacts each fixture stands for, by the folders that make_artifacts.py writes."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, groups in GROUPS.items():
        if fixture in metafunc.fixturenames and FOLDER:
            paths = sorted(path for group in groups for path in Path(FOLDER).glob(f"{group}/*.moel"))
            metafunc.parametrize(fixture, paths, ids=[path.stem for path in paths], scope="session")


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """The folder of them all."""
    assert FOLDER
    return Path(FOLDER)


@pytest.fixture(scope="session")
def gpu(artifact: Path) -> Iterator[Executable]:
    """An artifact on the GPU; its workspace is poisoned before every call."""
    with load(artifact, "cuda", verify="fast", poison=True) as executable:
        yield executable


@pytest.fixture
def layer(gpu: Executable) -> str:
    """The first entry."""
    return gpu.entries[0]
