"""moeloom: an MLIR compiler for mixture-of-experts models.

moeloom.compile(model, "out.moel")     a model becomes an artifact (needs the `compiler` extra)
moeloom.load("out.moel")(x)            an artifact runs (needs torch alone)
moeloom.import_torch(model)            the MLIR that compile starts from
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeloom.version import VERSION as __version__

if TYPE_CHECKING:
    from moeloom.compiler import compile
    from moeloom.runtime.executable import load
    from moeloom.torch_import import import_torch

__all__ = ["__version__", "compile", "import_torch", "load"]

# In a checkout the rooms (dialects, passes, lowering, runtime) lie beside this folder, not inside it; an installed
# wheel has them inside. Without this, Python started at the root of a checkout would find `moeloom` and none of them.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

_HOME = {"compile": "moeloom.compiler", "load": "moeloom.runtime.executable", "import_torch": "moeloom.torch_import"}


def __getattr__(name: str) -> Any:
    """Import a front door when it is first asked for: `import moeloom` alone imports neither torch nor MLIR."""
    if name not in _HOME:
        raise AttributeError(f"module 'moeloom' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
