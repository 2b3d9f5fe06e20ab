"""What a config.json says. Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ModelError(ValueError):
    """A model or checkpoint that cannot be imported. One line: what was found, what was wanted, what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError for a missing or malformed one."""
    if not path.is_file():
        raise ModelError(f"there is no {path}; a checkpoint has one, download it again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; it must hold an object")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """A config.json that names its model_type."""
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type; give the config.json of a Hugging Face model")
    return config


def quantisation(config: Mapping[str, Any], where: str) -> str:
    """How experts are stored, mxfp4 or none; ModelError for any other `quant_method`."""
    found = config.get("quantization_config")
    if not found:
        return "none"
    method = found.get("quant_method") if isinstance(found, dict) else found
    if not isinstance(found, dict) or method != "mxfp4":
        raise ModelError(
            f"{where} is quantised by {method!r}; moeloom reads mxfp4 (gpt-oss) and unquantised "
            "checkpoints, so convert it to bf16 and compile with --quantize-weights mxfp4"
        )
    return "mxfp4"
