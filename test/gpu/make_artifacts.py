"""Compiles the artifacts of test/gpu, on a machine without a GPU: weights are made from a seed when they are loaded.

    python test/gpu/make_artifacts.py DIRECTORY [NAME...]     names of models, or large, whole, small, odd, bytes, timed

"bytes" are programs of one site that return what the quantiser and the sorts wrote. By default all are made.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

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
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "vocab_size": 64,
}
# DeepSeek-R1 as one of eight ranks has it: 256 of the 2048 columns of every expert.
DEEPSEEK_R1 = DEEPSEEK | {
    "hidden_size": 7168,
    "moe_intermediate_size": 256,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
}
DEEPSEEK_R1_WHOLE = DEEPSEEK_R1 | {"moe_intermediate_size": 2048}
KIMI_K2 = DEEPSEEK_R1_WHOLE | {
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
}
QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 1,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 64,
}
A4, A16 = {"activations": "mxfp4"}, {"activations": "bf16"}
QUANTIZE = {"quantize_weights": "mxfp4"}
LARGE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt-oss-120b": (LARGE_GPT_OSS, A4),
    "gpt-oss-120b-a16": (LARGE_GPT_OSS, A16),
    "gpt-oss-120b-one-stage": (LARGE_GPT_OSS, A4 | {"stages": 1}),
    "deepseek-r1": (DEEPSEEK_R1, A4 | QUANTIZE),
    "deepseek-r1-a16": (DEEPSEEK_R1, A16 | QUANTIZE),
    "mixtral": (MIXTRAL, A4 | QUANTIZE),
    "qwen3": (QWEN3, A4 | QUANTIZE),
}
# Up to 9 GB of weights a layer: for decode tokens alone.
WHOLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"{name}{suffix}": (config, options | QUANTIZE)
    for name, config in (("deepseek-r1-whole", DEEPSEEK_R1_WHOLE), ("kimi-k2", KIMI_K2))
    for suffix, options in (("", A4), ("-a16", A16))
}
SMALL_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt-oss-small": (SMALL_GPT_OSS, A4),
    "gpt-oss-small-fused": (SMALL_GPT_OSS, A4 | {"fusion": "fused"}),
    "gpt-oss-small-split": (SMALL_GPT_OSS, A4 | {"fusion": "split"}),
    "gpt-oss-small-a16": (SMALL_GPT_OSS, A16),
    "gpt-oss-small-one-stage": (SMALL_GPT_OSS, A4 | {"stages": 1}),
    "gpt-oss-small-rows": (SMALL_GPT_OSS, A4 | {"weight_layout": "row_major"}),
    "gpt-oss-small-rows-a16": (SMALL_GPT_OSS, A16 | {"weight_layout": "row_major"}),
}
# Sizes that are no multiple of anything, one slot and many, one expert and many.
ODD_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"odd-{hidden}-{intermediate}-{experts}-{slots}{suffix}": (
        QWEN3
        | {
            "hidden_size": hidden,
            "moe_intermediate_size": intermediate,
            "num_experts": experts,
            "num_experts_per_tok": slots,
        },
        options | QUANTIZE,
    )
    for hidden, intermediate, experts, slots in (
        (32, 96, 1, 1),
        (96, 32, 5, 2),
        (640, 160, 96, 16),
        (2880, 64, 130, 6),
        (224, 2016, 8, 8),
    )
    for suffix, options in (("", A4), ("-a16", A16), ("-one-stage", A4 | {"stages": 1, "scale_mode": "rceil"}))
}
# Layers that take turns, so that a benchmark's weights come from memory. The sizes of DeepSeek-R1 on one of eight ranks
# with a softmax router and no shared expert: what other libraries' routing can do too.
R1_RANK = {"hidden_size": 7168, "moe_intermediate_size": 256, "num_experts": 256}
TIMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"{name}-{suffix}": (config | {"num_hidden_layers": 4}, options)
    for name, config, quantize in (
        ("four-layers", LARGE_GPT_OSS, {}),
        ("r1-rank", QWEN3 | R1_RANK, QUANTIZE),
        ("qwen3", QWEN3, QUANTIZE),
    )
    for suffix, options in (("a16", A16 | quantize), ("a4", A4 | quantize))
}
MODELS = LARGE | WHOLE | SMALL_MODELS | ODD_MODELS | TIMED
"""config.json and options of `moeloom.compile` by name."""


SITE = """
func.func @site(%x: tensor<?x{H}xbf16> {{moe.input = "x"}}, %ids: tensor<?x{k}xi32> {{moe.input = "ids"}},
    %w: tensor<?x{k}xf32> {{moe.input = "weights"}}) -> (tensor<?x{H}xf4E2M1FN>, tensor<?x{C}xf8E8M0FNU>, tensor<?xi32>,
    tensor<?xf32>, tensor<?xi32>, tensor<2xi32>) {{
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {{experts = {E} : i64, block = {block} : i64,
    operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : (tensor<?x{k}xi32>, tensor<?x{k}xf32>)
    -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %qs = "moe.quant"(%x) {{kind = "per_1x32", scale_mode = "{mode}"}} : (tensor<?x{H}xbf16>)
    -> (tensor<?x{H}xf4E2M1FN>, tensor<?x{G}xf8E8M0FNU>)
  %ss = "moe.sort_scales"(%qs, %s, %n) {{stage = 1 : i64, topk = {k} : i64, layout = "tiled_32x8"}}
    : (tensor<?x{G}xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x{C}xf8E8M0FNU>
  return %q, %ss, %s, %sw, %e, %n : tensor<?x{H}xf4E2M1FN>, tensor<?x{C}xf8E8M0FNU>, tensor<?xi32>, tensor<?xf32>,
    tensor<?xi32>, tensor<2xi32>
}}
"""
"""Stage 1: M tokens. Stage 2 reads rows of its own, so as a program of one site it is stage 1 with k = 1."""
SITES = [
    (2880, 128, 4, 16, "even"),
    (2880, 128, 1, 32, "even"),
    (7168, 256, 8, 64, "rceil"),
    (96, 5, 2, 32, "floor"),
    (416, 96, 3, 128, "ceil"),
]
"""H, E, k, block, scale mode."""


def site(hidden: int, experts: int, slots: int, block: int, mode: str) -> str:
    groups = hidden // 32
    sizes = {"H": hidden, "G": groups, "C": -(-groups // 8) * 8, "E": experts, "k": slots, "block": block}
    return SITE.format(**sizes, mode=mode)


def make(out: Path, source: str, suffix: str, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / f"config{suffix}"
        path.write_text(source)
        moeloom.compile(path, out, targets=["cpu", *TARGETS], overwrite=True, **options)
    print(out)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("folder", metavar="DIRECTORY", type=click.Path(path_type=Path, file_okay=False))
@click.argument("names", metavar="[NAME...]", nargs=-1)
def main(folder: Path, names: tuple[str, ...]) -> None:
    groups = {"large": LARGE, "whole": WHOLE, "small": SMALL_MODELS, "odd": ODD_MODELS, "bytes": {}, "timed": TIMED}
    wanted = names or tuple(groups)
    models = [model for name in wanted for model in groups.get(name, [name])]
    if unknown := [model for model in models if model not in MODELS]:
        raise click.UsageError(f"no model {unknown[0]!r}; there are {', '.join((*groups, *MODELS))}")
    for model in models:
        config, options = MODELS[model]
        kind = folder / next((group for group, held in groups.items() if model in held), "")
        kind.mkdir(parents=True, exist_ok=True)
        make(kind / f"{model}.moel", json.dumps(config), ".json", weights="random", **options)
    if "bytes" in wanted:
        (folder / "bytes").mkdir(parents=True, exist_ok=True)
        for number, sizes in enumerate(SITES):
            for fusion in ("fused", "split"):
                make(folder / "bytes" / f"{number}-{fusion}.moel", site(*sizes), ".mlir", fusion=fusion)


if __name__ == "__main__":
    main()
