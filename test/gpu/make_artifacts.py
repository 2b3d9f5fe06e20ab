"""Compiles the artifacts of test/gpu, on a machine without a GPU: weights are made from a seed when they are loaded.

python test/gpu/make_artifacts.py DIRECTORY [NAME...]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import moeloom

TARGETS = ("sm_90",)
SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "head_dim": 64,
    "quantization_config": {"quant_method": "mxfp4"},
}
SMALL_GPT_OSS = (
    GPT_OSS | SMALL | {"intermediate_size": 384, "num_local_experts": 8, "num_experts_per_tok": 4, "head_dim": 32}
)
LARGE_GPT_OSS = GPT_OSS | {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 1,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt-oss-small": (SMALL_GPT_OSS, {"activations": "mxfp4"}),
    "gpt-oss-small-a16": (SMALL_GPT_OSS, {"activations": "bf16"}),
    "gpt-oss-small-one-stage": (SMALL_GPT_OSS, {"activations": "mxfp4", "stages": 1}),
    "gpt-oss-120b": (LARGE_GPT_OSS, {"activations": "mxfp4"}),
    "gpt-oss-120b-a16": (LARGE_GPT_OSS, {"activations": "bf16"}),
}
"""config.json and options of `moeloom.compile` by name."""


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        config, options = MODELS[name]
        with tempfile.TemporaryDirectory() as kept:
            path = Path(kept) / "config.json"
            path.write_text(json.dumps(config))
            out = folder / f"{name}.moel"
            moeloom.compile(path, out, targets=["cpu", *TARGETS], weights="random", overwrite=True, **options)
        print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
