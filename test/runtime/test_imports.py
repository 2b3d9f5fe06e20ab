"""The runtime runs where neither MLIR nor Triton nor transformers can be imported, nor any other room."""

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys
ALLOWED = {"moeloom", "moeloom.version", "moeloom.runtime"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        foreign = top == "moeloom" and name not in ALLOWED and not name.startswith("moeloom.runtime.")
        if foreign or top in ("torch_mlir", "triton", "transformers", "ml_dtypes", "torchao", "mlir"):
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
"""
RUN = (
    BLOCKED
    + """
import torch, moeloom
from moeloom.runtime.executable import load
import moeloom.runtime.reference, moeloom.runtime.pack
print(load(sys.argv[1])(torch.ones(3, 8)).shape)
"""
)


def test_runs_without_a_compiler(made: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, made], capture_output=True, text=True)
    assert done.stdout == "torch.Size([3, 8])\n", done.stderr


@pytest.mark.parametrize("name", ["torch_mlir", "triton", "moeloom.dialects"])
def test_the_blocker_blocks(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{BLOCKED}\nimport {name}"], capture_output=True, text=True)
    assert f"blocked: {name}" in done.stderr
