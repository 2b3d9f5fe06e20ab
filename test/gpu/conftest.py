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
ARTIFACTS = sorted(Path(FOLDER).glob("*.moel")) if FOLDER else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "artifact" in metafunc.fixturenames:
        metafunc.parametrize("artifact", ARTIFACTS, ids=[path.stem for path in ARTIFACTS], scope="session")


@pytest.fixture(scope="session")
def gpu(artifact: Path) -> Iterator[Executable]:
    """An artifact on the GPU; its workspace is poisoned before every call."""
    with load(artifact, "cuda", verify="fast", poison=True) as executable:
        yield executable


@pytest.fixture
def layer(gpu: Executable) -> str:
    """The first entry."""
    return gpu.entries[0]
