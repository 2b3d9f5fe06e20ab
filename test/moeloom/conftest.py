"""Small random checkpoints of every family, as examples/make_checkpoint.py writes them; one a session."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def make_checkpoint() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", EXAMPLES / "make_checkpoint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_checkpoint"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint, tmp_path_factory):
    """checkpoint(family) -> a directory with two layers, H = I = 64, 8 experts, k = 2."""
    made = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make_checkpoint.main([str(made[family]), "--family", family], standalone_mode=False)
        return made[family]

    return directory
