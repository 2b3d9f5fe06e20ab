"""PyTorch to MLIR: what each source becomes, and what is refused."""

import json
import resource
import subprocess
import sys

import pytest
import torch

import moeloom
from moeloom import families
from moeloom.checkpoint import Checkpoint
from moeloom.model_config import ModelError
from moeloom.passes.pipeline import run
from moeloom.runtime.errors import ArtifactError
from moeloom.torch_import import import_torch

FAMILIES = [family.model_type for family in families.FAMILIES]
IMPORT_SECONDS, IMPORT_GIGABYTES = 40, 1.2  # of gpt-oss-120b's config, the interpreter's start included


def arguments(function):
    """(input or weight name, type) of every argument."""
    names = [attrs["moe.input" if "moe.input" in attrs else "moe.weight"].value for attrs in function.arg_attrs]
    return dict(zip(names, map(str, function.type.inputs), strict=True))


def functions(imported):
    return {op.name.value: op for op in imported.module.body.operations if op.operation.name == "func.func"}


def operations(function):
    return [op.operation.name for op in function.entry_block.operations]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_import_raise_plan_and_fuse(checkpoint, family):
    imported = import_torch(checkpoint(family))
    run(imported.module, "moe-raise-torch,canonicalize")
    assert imported.module.operation.verify()
    found = functions(imported)
    assert list(found) == ["moe_block_0", "moe_block_0.experts", "moe_block_0.experts_prequantised"]
    assert [entry.name for entry in imported.entries] == [
        f"model.layers.{layer}.mlp{part}" for layer in (0, 1) for part in ("", ".experts", ".experts_prequantised")
    ]
    assert {entry.prefix for entry in imported.entries} == {"model.layers.0.mlp.", "model.layers.1.mlp."}
    assert imported.needs_weights
    block, experts, prequantised = map(operations, found.values())
    assert block.count("moe.route") == block.count("moe.experts") == 1
    left = {"torch.operator", "torch.aten.view", "torch.aten.reshape", "torch.aten.unsqueeze", "torch.aten.to.dtype"}
    assert left.isdisjoint(block)
    assert block.count("torch.aten.linear") == (4 if family in ("deepseek_v3", "glm4_moe") else 1)
    assert experts == prequantised == ["moe.experts", "func.return"]
    assert list(arguments(found["moe_block_0"]))[:2] == ["x", "num_tokens"]
    assert list(arguments(found["moe_block_0.experts"]))[:3] == ["x", "ids", "weights"]
    assert arguments(found["moe_block_0.experts_prequantised"]) | {
        "payload": "tensor<?x64xf4E2M1FN>",
        "scales": "tensor<?x2xf8E8M0FNU>",
        "ids": "tensor<?x2xi32>",
        "weights": "tensor<?x2xf32>",
    } == arguments(found["moe_block_0.experts_prequantised"])
    report = run(imported.module, "moe-quantize-weights,moe-plan-experts,moe-fuse-quant-sort")
    assert imported.module.operation.verify()
    # Two sites in the block and in .experts; the pre-quantised first stage has no quantiser to fuse.
    assert len(report.fused) == 5 and len(report.refused) == 1
    assert report.refused[0].function == "moe_block_0.experts_prequantised"
    assert f"modeling_{family}.py" in report.fused[0].location and not report.fused[0].location.startswith("/")


ROUTES = {
    "gpt_oss": ("softmax_after_topk", False, 1.0, 1, 1),
    "mixtral": ("softmax_before_topk", True, 1.0, 1, 1),
    "qwen3_moe": ("softmax_before_topk", True, 1.0, 1, 1),
    "olmoe": ("softmax_before_topk", False, 1.0, 1, 1),
    "deepseek_v3": ("sigmoid", True, 2.5, 2, 1),
    "glm4_moe": ("sigmoid", True, 1.0, 2, 1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_attributes_say_how_the_family_computes(checkpoint, family):
    imported = import_torch(checkpoint(family), activations="bf16")
    run(imported.module, "moe-raise-torch")
    assert list(functions(imported)) == ["moe_block_0", "moe_block_0.experts"]
    body = functions(imported)["moe_block_0"].entry_block.operations
    (route,) = [op for op in body if op.operation.name == "moe.route"]
    (experts,) = [op for op in body if op.operation.name == "moe.experts"]
    names = ("score", "renormalise", "scale", "groups", "top_groups")
    assert tuple(route.attributes[name].value for name in names) == ROUTES[family]
    assert route.attributes["topk"].value == 2
    assert (route.correction_bias is not None) == (family in ("deepseek_v3", "glm4_moe"))
    order, activation = experts.attributes["gate_up_order"].value, experts.attributes["activation"].value
    assert (order, activation) == (("interleaved", "swiglu") if family == "gpt_oss" else ("concatenated", "silu"))
    assert (experts.gate_up_bias is not None) == (experts.down_bias is not None) == (family == "gpt_oss")
    assert experts.weight_order.value == "nk"


def test_sigmoid_routers_take_their_weights_as_f32(checkpoint):
    imported = import_torch(checkpoint("deepseek_v3"))
    types = arguments(functions(imported)["moe_block_0"])
    assert types["gate.weight"] == "!torch.vtensor<[8,64],f32>"
    assert types["gate.e_score_correction_bias"] == "!torch.vtensor<[8],f32>"
    assert imported.weights.get("model.layers.0.mlp.gate.weight").dtype == torch.float32
    assert imported.weights.get("model.layers.0.mlp.experts.down_proj").dtype == torch.bfloat16


def test_weights_are_found_by_entry_prefix_and_argument_name(checkpoint):
    imported = import_torch(checkpoint("mixtral"))
    for entry in imported.entries:
        for attrs in functions(imported)[entry.program].arg_attrs:
            if "moe.input" not in attrs:
                assert imported.weights.get(entry.prefix + attrs["moe.weight"].value) is not None


def test_bf16_gpt_oss_module_keeps_its_transposed_weights(moe_model):
    model = moe_model("gpt_oss")
    imported = import_torch(model)
    run(imported.module, "moe-raise-torch")
    body = functions(imported)["moe_block_0"].entry_block.operations
    (experts,) = [op for op in body if op.operation.name == "moe.experts"]
    assert experts.weight_order.value == "kn" and experts.gate_up_order.value == "interleaved"
    wanted = model.model.layers[0].mlp.experts.down_proj
    assert imported.weights.get("model.layers.0.mlp.experts.down_proj").data_ptr() == wanted.data_ptr()


def test_one_block_is_a_model(moe_model):
    block = moe_model("qwen3_moe").model.layers[0].mlp
    imported = import_torch(block, activations="bf16")
    assert [(entry.name, entry.prefix) for entry in imported.entries] == [("moe", ""), ("moe.experts", "")]
    assert imported.weights.get("experts.gate_up_proj") is not None


def test_only_sparse_layers_have_entries(tmp_path, checkpoint):
    for family, changes, sparse in (
        ("deepseek_v3", {"num_hidden_layers": 3, "first_k_dense_replace": 1}, [1, 2]),
        ("qwen3_moe", {"num_hidden_layers": 4, "mlp_only_layers": [3], "decoder_sparse_step": 2}, [1]),
    ):
        config = write_config(tmp_path, checkpoint(family), **changes)
        found = [entry.name for entry in import_torch(config, activations="bf16").entries]
        assert found == [f"model.layers.{layer}.mlp{part}" for layer in sparse for part in ("", ".experts")]


def test_blocks_that_differ_have_functions_of_their_own(moe_model):
    model = moe_model("olmoe", num_hidden_layers=3)
    model.model.layers[1].mlp.gate.top_k = 3
    imported = import_torch(model, activations="bf16")
    programs = [entry.program for entry in imported.entries if not entry.name.endswith(".experts")]
    assert programs == ["moe_block_0", "moe_block_1", "moe_block_0"]


def test_mlir_file_is_parsed(tmp_path):
    (tmp_path / "layer.mlir").write_text(
        "func.func @layer(%x: tensor<?x64xbf16>) -> tensor<?x64xbf16> { return %x : tensor<?x64xbf16> }\n"
        "func.func private @inner(%x: tensor<?x64xbf16>)"
    )
    imported = import_torch(tmp_path / "layer.mlir")
    assert [(entry.name, entry.program) for entry in imported.entries] == [("layer", "layer")]
    assert imported.weights is None and not imported.needs_weights


def test_factory_is_called(tmp_path, monkeypatch, checkpoint):
    (tmp_path / "my_models.py").write_text(
        "import transformers, torch\n"
        f"def tiny(): return transformers.AutoModelForCausalLM.from_pretrained({str(checkpoint('olmoe'))!r})\n"
        "def number(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert len(import_torch("my_models:tiny", activations="bf16").entries) == 4
    with pytest.raises(ModelError, match=r"'my_models:number' returned a int; it must return a torch\.nn\.Module"):
        import_torch("my_models:number")
    with pytest.raises(ModelError, match=r"cannot find 'my_models:other': .* write module:factory"):
        import_torch("my_models:other")
    with pytest.raises(ModelError, match="cannot find 'no_such_module:x'"):
        import_torch("no_such_module:x")


def write_config(folder, directory, **changes):
    """The config.json of a checkpoint, changed, alone in a file."""
    config = json.loads((directory / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        (
            "olmoe",
            {"model_type": "llama4"},
            "is a model of type 'llama4', which moeloom does not know; it imports gpt_oss, ",
        ),
        ("gpt_oss", {"hidden_size": 80}, "the hidden size of 'model.layers.0.mlp' is 80; MXFP4 needs a multiple of 32"),
        ("mixtral", {"intermediate_size": 48}, "the intermediate size of 'model.layers.0.mlp' is 48; MXFP4 needs"),
        (
            "olmoe",
            {"dtype": "float32"},
            "the dtype in .* is 'float32'; moeloom compiles bfloat16 and float16, set one of them",
        ),
        ("olmoe", {"dtype": ["bfloat16"]}, r"the dtype in .* is \['bfloat16'\]; moeloom compiles"),
        ("olmoe", {"quantization_config": {"quant_method": "mxfp4"}}, "moeloom reads that format of gpt_oss only"),
        ("olmoe", {"quantization_config": {"quant_method": "gptq"}}, "is quantised by 'gptq'; moeloom reads mxfp4"),
        ("gpt_oss", {"quantization_config": ["fp4"]}, r"is quantised by \['fp4'\]; moeloom reads mxfp4"),
        ("olmoe", {"num_hidden_layers": "two"}, "transformers cannot build the model of .*config.json: "),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "has no MoE block that moeloom knows"),
    ],
)
def test_configs_that_do_not_fit_are_refused_in_one_line(tmp_path, checkpoint, family, changes, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        import_torch(write_config(tmp_path, checkpoint(family), **changes))
    assert "\n" not in str(caught.value)


def test_checkpoint_that_contradicts_its_config_is_refused(tmp_path, checkpoint):
    for path in checkpoint("olmoe").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    write_config(tmp_path, checkpoint("olmoe"), num_experts=9)
    with pytest.raises(
        ModelError, match=r"'model.layers.0.mlp.gate.weight' in .* is \(8, 64\); config.json asks for \(9, 64\)"
    ):
        import_torch(tmp_path)
    write_config(tmp_path, checkpoint("olmoe"), num_hidden_layers=3)
    with pytest.raises(ArtifactError, match=r"has no tensor 'model.layers.2.mlp.gate.weight'"):
        import_torch(tmp_path)


def test_modules_and_files_that_do_not_fit_are_refused(tmp_path, moe_model):
    with pytest.raises(ModelError, match="Linear has no MoE block that moeloom knows; it imports gpt_oss, mixtral"):
        import_torch(torch.nn.Linear(4, 4))
    with pytest.raises(
        ModelError, match=r"'model.layers.0.mlp' is float32; .* convert the module by \.to\(torch.bfloat16\)"
    ):
        import_torch(moe_model("mixtral").float())
    with pytest.raises(ModelError, match="activations is 'fp8'; it must be mxfp4 or bf16"):
        import_torch(tmp_path / "layer.mlir", activations="fp8")
    with pytest.raises(ModelError, match=r"there is no file .*layer\.mlir"):
        import_torch(tmp_path / "layer.mlir")
    (tmp_path / "layer.mlir").write_text("func.func @f( {")
    with pytest.raises(ModelError, match=r"not a valid module: .*layer\.mlir:1:14: error: expected non-function type"):
        import_torch(tmp_path / "layer.mlir")
    with pytest.raises(ModelError, match=r"there is no directory .*none"):
        import_torch(tmp_path / "none")


def test_import_torch_is_a_lazy_name_of_the_package():
    assert moeloom.import_torch is import_torch
    with pytest.raises(AttributeError, match="module 'moeloom' has no attribute 'imprt'"):
        _ = moeloom.imprt
    code = "import moeloom, sys; sys.exit(any(name in sys.modules for name in ('torch', 'torch_mlir', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_gpt_oss_120b_config_is_imported_once_in_little_time_and_memory(tmp_path):
    config = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "vocab_size": 201088,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import sys, moeloom; found = moeloom.import_torch(sys.argv[1]); "
        "print(len(found.entries), len({entry.program for entry in found.entries}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=True)
    assert done.stdout.split() == ["108", "3"]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6 < IMPORT_GIGABYTES


def test_opening_a_checkpoint_reads_no_tensor(checkpoint, monkeypatch):
    monkeypatch.setattr(Checkpoint, "get", None)
    monkeypatch.setattr(Checkpoint, "expert", None)
    assert import_torch(checkpoint("mixtral")).entries


def without_importing(model, cache):
    """What a new process imports of `model` where anything that imports it anew is an error."""
    code = (
        "import sys, pathlib, moeloom\n"
        "sys.modules['moeloom.block_import'] = None\n"
        "found = moeloom.import_torch(sys.argv[1], cache=pathlib.Path(sys.argv[2]))\n"
        "print(found.module.operation.get_asm(enable_debug_info=True))\n"
        "sys.exit('transformers' in sys.modules or 'torch_mlir.extras.fx_importer' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code, model, cache], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("file", ["", "config.json"])
def test_a_kept_import_is_the_import(tmp_path, checkpoint, file):
    model = checkpoint("gpt_oss") / file
    assert "ModuleNotFoundError" in without_importing(model, tmp_path).stderr
    made = import_torch(model, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    again = import_torch(model, cache=tmp_path)
    for imported in (made, again, import_torch(model)):
        assert imported.module.operation.get_asm(enable_debug_info=True) == kept.read_text()
    done = without_importing(model, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, kept.read_text().strip())
    if not file:
        assert again.weights.dtypes == made.weights.dtypes
        assert again.weights.dtypes["model.layers.0.mlp.experts.down_proj_scales"] == torch.uint8


def test_what_a_kept_import_depends_on_is_imported_anew(tmp_path, checkpoint):
    import_torch(checkpoint("gpt_oss"), cache=tmp_path / "kept")
    import_torch(checkpoint("gpt_oss"), activations="bf16", cache=tmp_path / "kept")
    import_torch(write_config(tmp_path, checkpoint("gpt_oss"), num_hidden_layers=1), cache=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_a_kept_import_that_was_cut_short_is_made_again(tmp_path, checkpoint):
    import_torch(checkpoint("gpt_oss"), cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) // 2])
    import_torch(checkpoint("gpt_oss"), cache=tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == [whole]
