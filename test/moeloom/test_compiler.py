"""What moeloom.compile does beside import, passes and kernels, which have tests of their own."""

import json

import pytest

import moeloom
from moeloom import ahead, block_import, compiler, families, torch_import
from moeloom.lowering.build import order_code
from moeloom.lowering.cpu import objects
from moeloom.lowering.jobs import CompileError
from moeloom.lowering.pipeline import Options
from moeloom.lowering.targets import target
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.workers import Workers
from moeloom.model_config import read_config
from moeloom.shape import Shape


def test_workers_start_while_a_model_is_imported_the_first_time(checkpoint, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Workers, "start", lambda workers, module, environment: started.append(module))
    monkeypatch.setattr(compiler, "write_code", None)  # what is behind the import does not matter
    options = {"weights": "none", "quantize_weights": "mxfp4", "cache": tmp_path / "kept"}

    def compile_until_kernels(**more):
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            moeloom.compile(checkpoint("mixtral") / "config.json", tmp_path / "made.moel", **options, **more)

    compile_until_kernels()
    assert started == [objects.__name__]
    compile_until_kernels()
    assert started == [objects.__name__], "the import is kept, so the kernels are too"
    compile_until_kernels(targets=["cpu", "gfx950"], activations="bf16")
    assert started == [objects.__name__, objects.__name__, build.WORKER]


def test_products_of_many_rows_are_compiled_first(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "make", lambda module, jobs, *_: asked.extend(jobs) or [tmp_path] * len(jobs))
    templates = [
        ("sort_scatter", 144),
        ("route_sort", 8),
        ("decode_down", 16),
        ("prefill_gate_up", 32),
        ("prefill_down", 144),
    ]
    kernels = {name: {"template": name, "params": {"block": block}} for name, block in templates}
    build.compile_kernels(kernels, ARCHITECTURES["sm_90"], tmp_path, lambda *_: None)
    assert [job.cost for job in asked] == [0, 1, 16, 32, 144]


def write_gpt_oss(folder, **changes):
    config = {**Shape(64, 96, 8, 2, 1).config(), **changes}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "float16"}, {"swiglu_alpha": 1.5, "swiglu_limit": 9.0}, {"dtype": None}]
)
def test_what_a_config_says_of_its_experts_is_what_the_model_has(tmp_path, changes):
    config = read_config(write_gpt_oss(tmp_path, **changes))
    (block,) = families.find_blocks(block_import.from_config(config, "here")).values()
    assert ahead.gpt_oss(config) == block_import.experts_of(block)


@pytest.mark.parametrize("activations", ["mxfp4", "bf16"])
def test_kernels_ordered_ahead_are_wanted_and_most_of_them_are(tmp_path, monkeypatch, activations):
    """Those of both kinds of target, before the model is imported: none in vain, and those that take longest."""
    ordered = []
    imported = torch_import.import_torch

    def importing(*arguments, **options):
        assert len(ordered) == 2
        return imported(*arguments, **options)

    def wanted_of(target, kernels, programs, folder, workers, step):
        order_code(target, kernels, programs, workers)
        if len(ordered) == 4:
            raise CompileError("that is all")
        return {}

    monkeypatch.setattr(Workers, "start", lambda *_: None)
    monkeypatch.setattr(
        Workers, "order", lambda workers, module, jobs, environment: ordered.append({job.key: job.cost for job in jobs})
    )
    monkeypatch.setattr(compiler, "write_code", wanted_of)
    monkeypatch.setattr(torch_import, "import_torch", importing)
    options = {"targets": ["cpu", "sm_90"], "activations": activations, "weights": "none", "cache": tmp_path / "kept"}
    with pytest.raises(CompileError, match="that is all"):
        moeloom.compile(write_gpt_oss(tmp_path), tmp_path / "made.moel", **options)
    for ahead_of_it, wanted in zip(ordered[:2], ordered[2:], strict=True):
        assert ahead_of_it.items() <= wanted.items()
        assert len(ahead_of_it) > len(wanted) / 2
        assert max(ahead_of_it.values()) == max(wanted.values())


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"model_type": "mixtral"}, {}),
        ({"quantization_config": None}, {}),
        ({"quantization_config": "mxfp4"}, {}),
        ({"dtype": "float32"}, {}),
        ({"dtype": ["bfloat16"]}, {}),
        ({"hidden_size": 80}, {}),
        ({"intermediate_size": "many"}, {}),
        ({"num_experts_per_tok": None}, {}),
        ({"swiglu_limit": "none"}, {}),
        ({}, {"activations": "fp8"}),
    ],
)
def test_what_does_not_fit_is_not_ordered_ahead(tmp_path, monkeypatch, changes, options):
    """And is told by what compiles the model itself."""
    ordered = []
    monkeypatch.setattr(Workers, "start", lambda *_: None)
    monkeypatch.setattr(Workers, "order", lambda workers, module, jobs, environment: ordered.extend(jobs))
    with Workers(tmp_path) as workers:
        ahead.order(read_config(write_gpt_oss(tmp_path, **changes)), Options(**options), [target("cpu")], workers)
    assert ordered == []
