"""Write a random checkpoint, in the names, shapes and formats of a real one, of any size.

    python examples/make_checkpoint.py tiny --layers 2 --hidden 64 --intermediate 64 --experts 8
    python examples/make_checkpoint.py layer --layers 1 --hidden 2880 --intermediate 2880 --experts 32
    python examples/make_checkpoint.py qwen --family qwen3_moe

gpt_oss (the default) has MXFP4 experts and is written tensor by tensor, a shard a layer: memory holds one tensor. It
loads in transformers by `from_pretrained(directory, quantization_config=Mxfp4Config(dequantize=True))`. The other
families are bf16, written by transformers itself, and meant to be small. The same seed gives the same bytes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import click
import numpy as np
import torch
from rich.progress import track

GROUP = 32
E2M1_RMS = 2.93  # of a uniformly random code
BIAS_STD = 0.02
SAFETENSORS = {torch.bfloat16: "BF16", torch.uint8: "U8"}


@dataclass(frozen=True)
class Sizes:
    """What the command line says about the model."""

    layers: int
    hidden: int
    intermediate: int
    experts: int
    topk: int
    vocab: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    seed: int


@dataclass(frozen=True)
class Fill:
    """How to fill one tensor: `codes` and `scales` are MXFP4 of rows of `columns` values; `std` is of a normal bf16."""

    shape: tuple[int, ...]
    kind: str
    std: float = 0.0
    columns: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.kind in ("codes", "scales") else torch.bfloat16

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def make(self, name: str, seed: int) -> torch.Tensor:
        """The tensor; its values depend on the seed and its name alone."""
        random = np.random.default_rng([seed, crc32(name.encode())])
        if self.kind == "codes":
            return torch.frombuffer(bytearray(random.bytes(self.size_bytes)), dtype=torch.uint8).view(self.shape)
        if self.kind == "scales":
            # Rows of unit norm on average, so that every layer keeps the size of what passes through.
            centre = 127 - round(math.log2(E2M1_RMS * math.sqrt(self.columns)))
            return torch.from_numpy(random.integers(centre - 1, centre + 2, self.shape, np.uint8))
        if self.kind == "ones":
            return torch.ones(self.shape, dtype=torch.bfloat16)
        return torch.from_numpy(random.standard_normal(self.shape, np.float32) * np.float32(self.std)).bfloat16()


def linear(name: str, rows: int, columns: int) -> dict[str, Fill]:
    return {
        f"{name}.weight": Fill((rows, columns), "normal", columns**-0.5),
        f"{name}.bias": Fill((rows,), "normal", BIAS_STD),
    }


def mxfp4(name: str, experts: int, rows: int, columns: int) -> dict[str, Fill]:
    groups = columns // GROUP
    return {
        f"{name}_blocks": Fill((experts, rows, groups, GROUP // 2), "codes"),
        f"{name}_scales": Fill((experts, rows, groups), "scales", columns=columns),
        f"{name}_bias": Fill((experts, rows), "normal", BIAS_STD),
    }


def gpt_oss_shards(sizes: Sizes) -> Iterator[dict[str, Fill]]:
    """The tensors of a gpt-oss checkpoint, a shard a layer and one for the rest."""
    hidden = sizes.hidden
    query, key_value = sizes.attention_heads * sizes.head_dim, sizes.key_value_heads * sizes.head_dim
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}"
        yield {
            **linear(f"{at}.self_attn.q_proj", query, hidden),
            **linear(f"{at}.self_attn.k_proj", key_value, hidden),
            **linear(f"{at}.self_attn.v_proj", key_value, hidden),
            **linear(f"{at}.self_attn.o_proj", hidden, query),
            f"{at}.self_attn.sinks": Fill((sizes.attention_heads,), "normal", BIAS_STD),
            **linear(f"{at}.mlp.router", sizes.experts, hidden),
            **mxfp4(f"{at}.mlp.experts.gate_up_proj", sizes.experts, 2 * sizes.intermediate, hidden),
            **mxfp4(f"{at}.mlp.experts.down_proj", sizes.experts, hidden, sizes.intermediate),
            f"{at}.input_layernorm.weight": Fill((hidden,), "ones"),
            f"{at}.post_attention_layernorm.weight": Fill((hidden,), "ones"),
        }
    yield {
        "model.embed_tokens.weight": Fill((sizes.vocab, hidden), "normal", 1.0),
        "model.norm.weight": Fill((hidden,), "ones"),
        "lm_head.weight": Fill((sizes.vocab, hidden), "normal", hidden**-0.5),
    }


def gpt_oss_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": "bfloat16",
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.topk,
        "vocab_size": sizes.vocab,
        "num_attention_heads": sizes.attention_heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_dim,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    }


def write_shard(path: Path, tensors: dict[str, Fill], seed: int) -> None:
    """A safetensors file, its tensors made and written one after the other."""
    header, end = {}, 0
    for name, fill in tensors.items():
        start, end = end, end + fill.size_bytes
        header[name] = {"dtype": SAFETENSORS[fill.dtype], "shape": fill.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, fill in tensors.items():
            file.write(fill.make(name, seed).view(torch.uint8).numpy().data)


def write_gpt_oss(directory: Path, sizes: Sizes) -> None:
    shards = list(gpt_oss_shards(sizes))
    places, total = {}, 0
    for number, tensors in enumerate(track(shards, description="shards"), start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(directory / name, tensors, sizes.seed)
        places |= dict.fromkeys(tensors, name)
        total += sum(fill.size_bytes for fill in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (directory / "config.json").write_text(json.dumps(gpt_oss_config(sizes), indent=1))


def family_config(family: str, sizes: Sizes) -> Any:
    """A transformers config of `family`, small where the sizes say nothing."""
    import transformers

    common = {
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "num_experts_per_tok": sizes.topk,
        "vocab_size": sizes.vocab,
        "num_attention_heads": sizes.attention_heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_dim,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    dense = {"intermediate_size": 2 * sizes.intermediate, "moe_intermediate_size": sizes.intermediate}
    grouped = {**dense, "n_routed_experts": sizes.experts, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0}
    own: dict[str, dict[str, Any]] = {
        "mixtral": {"intermediate_size": sizes.intermediate, "num_local_experts": sizes.experts},
        "qwen3_moe": {**dense, "num_experts": sizes.experts, "norm_topk_prob": True},
        "olmoe": {"intermediate_size": sizes.intermediate, "num_experts": sizes.experts},
        "glm4_moe": grouped,
        "deepseek_v3": {
            **grouped,
            "num_key_value_heads": sizes.attention_heads,
            "q_lora_rank": sizes.hidden // 2,
            "kv_lora_rank": sizes.hidden // 2,
            "qk_rope_head_dim": sizes.head_dim,
            "qk_nope_head_dim": sizes.head_dim,
            "v_head_dim": sizes.head_dim,
        },
    }
    return transformers.AutoConfig.for_model(family, **{**common, **own[family]})


def write_family(directory: Path, family: str, sizes: Sizes) -> None:
    """A bf16 checkpoint as transformers saves it, in the names of published ones: a tensor an expert."""
    import transformers

    torch.manual_seed(sizes.seed)
    model = transformers.AutoModelForCausalLM.from_config(family_config(family, sizes), dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        if "e_score_correction_bias" in name:
            tensor.normal_(std=0.1)
        elif tensor.dim() > 1:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)
    model.save_pretrained(directory)


FAMILIES = ("gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "glm4_moe")


@click.command(context_settings={"show_default": True})
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--family", type=click.Choice(FAMILIES), default="gpt_oss", help="Model type.")
@click.option("--layers", default=2)
@click.option("--hidden", default=64, help="H, a multiple of 32.")
@click.option("--intermediate", default=64, help="I of one expert, a multiple of 32.")
@click.option("--experts", default=8)
@click.option("--topk", default=2, help="Experts a token.")
@click.option("--vocab", default=256)
@click.option("--attention-heads", default=4)
@click.option("--key-value-heads", default=2)
@click.option("--head-dim", default=16)
@click.option("--seed", default=0)
def main(directory: Path, family: str, **sizes: int) -> None:
    """Write a random checkpoint to DIRECTORY."""
    for name in ("hidden", "intermediate"):
        if sizes[name] % GROUP:
            raise click.UsageError(f"--{name} is {sizes[name]}; MXFP4 needs a multiple of {GROUP}")
    if sizes["topk"] > sizes["experts"]:
        raise click.UsageError(f"--topk is {sizes['topk']}, of {sizes['experts']} experts")
    directory.mkdir(parents=True, exist_ok=True)
    if family == "gpt_oss":
        write_gpt_oss(directory, Sizes(**sizes))
    else:
        write_family(directory, family, Sizes(**sizes))


if __name__ == "__main__":
    main()
