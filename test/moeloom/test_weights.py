"""`weights=` of compile: every way to the weights gives the program the same ones, or says why not."""

import shutil

import pytest
import torch

import moeloom
from moeloom.checkpoint import ModuleWeights
from moeloom.compiler import CompileRefused
from moeloom.runtime.artifact import read
from moeloom.runtime.bind import bind, named_source
from moeloom.runtime.errors import LaunchError

BLOCK = "model.layers.1.mlp"


def packed(path) -> dict[str, torch.Tensor]:
    return bind(read(path), "cpu")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("family", "options"), [("gpt_oss", {}), ("deepseek_v3", {"quantize_weights": "mxfp4"})])
def test_reference_packs_what_copy_packs(checkpoint, tmp_path, family, options):
    for weights in ("copy", "reference"):
        moeloom.compile(checkpoint(family), tmp_path / weights, weights=weights, **options)
    assert not list((tmp_path / "reference" / "weights").iterdir())
    assert same(packed(tmp_path / "reference"), packed(tmp_path / "copy"))


def test_reference_may_be_moved(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "before")
    moeloom.compile(tmp_path / "before", tmp_path / "a.moel", weights="reference")
    (tmp_path / "before").rename(tmp_path / "after")
    x = torch.randn(3, 64).bfloat16()
    with (
        moeloom.load(tmp_path / "a.moel", weights=tmp_path / "after") as moved,
        moeloom.load(tmp_path / "a.moel", weights=str(tiny_checkpoint)) as original,
    ):
        assert torch.equal(moved[BLOCK](x), original[BLOCK](x))


def test_reference_needs_a_directory(moe_model, tiny_checkpoint, tmp_path):
    for model in (moe_model("gpt_oss"), tiny_checkpoint / "config.json"):
        with pytest.raises(CompileRefused, match="--weights reference needs a checkpoint directory"):
            moeloom.compile(model, tmp_path / "a.moel", weights="reference", quantize_weights="mxfp4")


@pytest.mark.parametrize(("family", "options"), [("gpt_oss", {}), ("deepseek_v3", {"quantize_weights": "mxfp4"})])
def test_random_weights_need_no_checkpoint(checkpoint, tmp_path, family, options):
    """The same program from config.json and from the checkpoint has the same weights, another seed has others, and a
    checkpoint that holds them is packed to the same bytes."""
    for name, model, seed in (("config", "config.json", 1), ("whole", ".", 1), ("other", "config.json", 2)):
        moeloom.compile(checkpoint(family) / model, tmp_path / name, weights="random", seed=seed, **options)
    found = packed(tmp_path / "config")
    assert same(found, packed(tmp_path / "whole"))
    other = packed(tmp_path / "other")
    assert all(not torch.equal(found[name], other[name]) for name in found)
    manifest = read(tmp_path / "config")
    source = named_source(manifest, "cpu")
    given = {name: source.get(name) for name in source.tensors}
    assert same(bind(manifest, "cpu", given), found)


def test_random_layer_keeps_the_size_of_its_input(tiny_checkpoint, tmp_path):
    moeloom.compile(tiny_checkpoint / "config.json", tmp_path / "a.moel", weights="random")
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with moeloom.load(tmp_path / "a.moel") as executable:
        first, second = (executable[f"model.layers.{layer}.mlp"](x) for layer in (0, 1))
    assert 0.05 < first.float().std() < 5 and not torch.equal(first, second)


def test_none_names_the_way_out(tiny_checkpoint, tmp_path):
    moeloom.compile(tiny_checkpoint / "config.json", tmp_path / "a.moel", weights="none")
    with moeloom.load(tmp_path / "a.moel") as executable, pytest.raises(LaunchError, match="--weights-from"):
        executable[BLOCK](torch.zeros(1, 64).bfloat16())


def test_a_module_is_a_source_too(tmp_path, moe_model):
    model = moe_model("mixtral")
    moeloom.compile(model, tmp_path / "a.moel", quantize_weights="mxfp4")
    assert same(bind(read(tmp_path / "a.moel"), "cpu", ModuleWeights(model)), packed(tmp_path / "a.moel"))
