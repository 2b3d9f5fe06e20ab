"""What moeloom.compile does beside import, passes and kernels, which have tests of their own."""

import moeloom
from moeloom.lowering.cpu import objects
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.workers import Workers


def test_workers_start_while_a_model_is_imported_the_first_time(checkpoint, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Workers, "start", lambda workers, module, environment: started.append(module))
    model, options = checkpoint("mixtral") / "config.json", {"weights": "none", "quantize_weights": "mxfp4"}
    options |= {"cache": tmp_path / "kept", "overwrite": True}
    moeloom.compile(model, tmp_path / "made.moel", **options)
    assert started == [objects.__name__]
    moeloom.compile(model, tmp_path / "made.moel", **options)
    assert started == [objects.__name__], "the import is kept, so the kernels are too"
    moeloom.compile(model, tmp_path / "made.moel", targets=["cpu", "gfx950"], activations="bf16", **options)
    assert started == [objects.__name__, objects.__name__, build.WORKER]


def test_products_of_many_rows_are_compiled_first(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "make", lambda module, jobs, *_: asked.extend(jobs) or [tmp_path] * len(jobs))
    templates = [
        ("sort_scatter", 160),
        ("route_sort", 8),
        ("decode_down", 16),
        ("prefill_gate_up", 80),
        ("prefill_down", 160),
    ]
    kernels = {name: {"template": name, "params": {"block": block}} for name, block in templates}
    build.compile_kernels(kernels, ARCHITECTURES["sm_90"], tmp_path, lambda *_: None)
    assert [job.cost for job in asked] == [0, 1, 16, 80, 160]
