"""Run by `lit test`: every .mlir file below this folder, with the tools of the environment that lit runs in."""

import os
import sys
from pathlib import Path

import lit.formats

root = Path(__file__).resolve().parent

# lit puts its configuration there before it runs this file.
config = globals()["config"]
config.name = "moeloom"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir"]
config.test_source_root = str(root)
config.test_exec_root = str(root.parent / "build" / "lit")
# moeloom-opt and filecheck are scripts beside the interpreter.
config.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
