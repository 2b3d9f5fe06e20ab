"""moeloom: an MLIR compiler for mixture-of-experts models."""

from pathlib import Path

# In a checkout the rooms (dialects, passes, lowering, runtime) lie beside this folder, not inside it; an installed
# wheel has them inside. Without this, Python started at the root of a checkout would find `moeloom` and none of them.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))
