"""Checkpoints as weight sources: what transformers loads from them is the oracle."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moeloom import families
from moeloom.checkpoint import Checkpoint, ModuleWeights
from moeloom.model_config import ModelError
from moeloom.runtime.bind import AsDeclared
from moeloom.runtime.errors import ArtifactError


@pytest.fixture
def copied(checkpoint, tmp_path):
    """copied(family) -> a checkpoint that a test may break."""
    return lambda family: shutil.copytree(checkpoint(family), tmp_path / "model")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "glm4_moe"])
def test_every_block_tensor_is_what_transformers_loads(checkpoint, family):
    source = Checkpoint(checkpoint(family))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.bfloat16)
    for path, block in families.find_blocks(model).items():
        for name, wanted in block.state_dict().items():
            assert torch.equal(source.get(f"{path}.{name}"), wanted), name
            assert source.shape(f"{path}.{name}") == wanted.shape
            if name.startswith("experts."):
                assert len(source.sources(f"{path}.{name}")) == 8
                assert torch.equal(source.expert(f"{path}.{name}", 5), wanted[5])


def test_mxfp4_tensors_are_those_of_the_files(checkpoint):
    source = Checkpoint(checkpoint("gpt_oss"))
    wanted = load_file(checkpoint("gpt_oss") / "model-00002-of-00003.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_blocks"
    assert source.quantisation == "mxfp4"
    assert torch.equal(source.get(name), wanted[name])
    assert torch.equal(source.expert(name, 7), wanted[name][7])
    assert source.shape(name) == (8, 64, 2, 16)
    assert set(wanted) <= set(source.names())


def test_module_weights_share_the_memory_of_the_module():
    module = torch.nn.Linear(4, 2)
    source = ModuleWeights(module)
    assert source.get("weight").data_ptr() == module.weight.data_ptr()
    with pytest.raises(ModelError, match="the module has no tensor 'wieght'"):
        source.get("wieght")


def test_declared_dtypes_are_cast_to_and_others_kept():
    module = torch.nn.Linear(4, 2).bfloat16()
    source = AsDeclared(ModuleWeights(module), {"weight": torch.float32})
    assert torch.equal(source.get("weight"), module.weight.float())
    assert source.expert("weight", 0).dtype == torch.float32
    assert source.get("bias").dtype == torch.bfloat16


def test_missing_tensor_is_named(checkpoint):
    source = Checkpoint(checkpoint("olmoe"))
    with pytest.raises(
        ArtifactError, match=r"has no tensor 'model.layers.9.mlp.experts.down_proj', in one piece or one an"
    ):
        source.get("model.layers.9.mlp.experts.down_proj")


def test_experts_of_different_shapes_are_refused(copied):
    directory = copied("olmoe")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.mlp.experts.3.down_proj.weight"] = torch.zeros(64, 32)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(
        ArtifactError, match=r"the experts of 'model.layers.0.mlp.experts.down_proj' in .* differ in shape"
    ):
        Checkpoint(directory).shape("model.layers.0.mlp.experts.down_proj")


def test_missing_directory_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"there is no directory .*/none; give a checkpoint directory or a config\.json"
    ):
        Checkpoint(tmp_path / "none")


def test_missing_config_is_refused(copied):
    directory = copied("gpt_oss")
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match=r"there is no .*config\.json; a checkpoint has one"):
        Checkpoint(directory)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", r"is not JSON \("),
        ("[]", "holds a list; it must hold an object"),
        ('{"model_type": 3}', "names no model_type"),
    ],
)
def test_malformed_config_is_refused(copied, text, reason):
    directory = copied("gpt_oss")
    (directory / "config.json").write_text(text)
    with pytest.raises(ModelError, match=rf"config\.json {reason}"):
        Checkpoint(directory)


def test_directory_without_weights_is_refused(copied):
    directory = copied("gpt_oss")
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(ArtifactError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        Checkpoint(directory)


def test_missing_shard_is_refused(copied):
    directory = copied("gpt_oss")
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"shard .*/model-00002-of-00003\.safetensors is missing"):
        Checkpoint(directory)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_shard_is_refused(copied, size):
    shard = copied("gpt_oss") / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:size])
    with pytest.raises(ArtifactError, match=rf"{shard.name} has {len(content[:size])} bytes.* download it again"):
        Checkpoint(shard.parent)


def test_shard_that_is_no_safetensors_file_is_refused(copied):
    shard = copied("gpt_oss") / "model-00002-of-00003.safetensors"
    shard.write_bytes((4).to_bytes(8, "little") + b"<html>")
    with pytest.raises(ArtifactError, match="the safetensors header is unreadable"):
        Checkpoint(shard.parent)


def test_foreign_quantisation_is_refused(copied):
    directory = copied("deepseek_v3")
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is quantised by 'fp8'; moeloom reads mxfp4"):
        Checkpoint(directory)
