"""moeloom: an MLIR compiler for mixture-of-experts models."""

import importlib
from pathlib import Path
from typing import Any

# In a checkout the rooms (dialects, passes, lowering, runtime) lie beside this folder, not inside it; an installed
# wheel has them inside. Without this, Python started at the root of a checkout would find `moeloom` and none of them.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

# The public names, each with its home. Looked up on first use, so that `import moeloom` needs neither torch nor MLIR.
_HOMES = {"import_torch": "moeloom.torch_import"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moeloom' has no attribute '{name}'; it has {', '.join(_HOMES)}")
