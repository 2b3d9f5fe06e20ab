"""Kernels to code objects and the manifest's `kernels`, with templates of the tests' own (worker_of_test.py)."""

import hashlib
import re
from pathlib import Path

import pytest
from triton import knobs

from moeloom.lowering.jobs import CompileError
from moeloom.lowering.triton import build
from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.assembly import instructions, parameters
from moeloom.lowering.triton.build import ASSEMBLY, CODE, compile_kernels, write_kernels
from moeloom.lowering.triton.compile import Kept, divisible, kernel_facts
from moeloom.lowering.triton.templates import TEMPLATES
from moeloom.runtime import stream

pytestmark = pytest.mark.usefixtures("own_templates")
GFX942, SM_90 = ARCHITECTURES["gfx942"], ARCHITECTURES["sm_90"]
ARGUMENTS = ["*bf16", "i64", "*fp32", "*bf16"]


def kernel(template, columns=2880, num_warps=4, **more):
    return {"template": template, "params": {"columns": columns, "num_warps": num_warps, "num_stages": 2, **more}}


def quiet(done, total):
    pass


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_describes_kernels_as_the_manifest_does(architecture, tmp_path):
    kernels = {"scaled_0": kernel("scaled"), "scaled_1": kernel("scaled", columns=96, num_warps=2)}
    folder = tmp_path / "kernels"
    made = write_kernels(kernels, architecture, folder, tmp_path / "cache", quiet, {"scaled_1": [1]})
    assert made.keys() == kernels.keys()
    for name, described in made.items():
        assert {key: described[key] for key in ("template", "params")} == kernels[name]
        assert described["arguments"] == ARGUMENTS
        found = described["code"]
        code = (tmp_path / found["file"]).read_bytes()
        assert hashlib.sha256(code).hexdigest() == found["sha256"]
        assert code.startswith(b"\x7fELF")
        assert found["symbol"].encode() in code
        assert b"worker_of_test" not in code, "a path of this machine"
        assert found["threads"] == architecture.warp_size * described["params"]["num_warps"]
        assert (found["scratch"], found["spills"], found["stack"], found["shared"]) == (2, 0, 0, 0)
        assert found["registers"] > 0
        assert found["matrix"] == {}
        assert ("occupancy" in found) == (architecture.backend == "hip")
    assert made["scaled_0"]["divisible"] == [16, 16, 16, 16]
    assert made["scaled_1"]["divisible"] == [16, 1, 16, 16]
    files = {described["code"]["file"] for described in made.values()}
    assert files == {str(path.relative_to(tmp_path)) for path in folder.glob("*/*")}


def test_rows_of_an_odd_distance_are_read_narrower(tmp_path):
    made = write_kernels({"scaled_0": kernel("scaled")}, SM_90, tmp_path / "kernels", tmp_path, quiet)
    odd = write_kernels({"scaled_0": kernel("scaled")}, SM_90, tmp_path / "kernels", tmp_path, quiet, {"scaled_0": [1]})
    assert made["scaled_0"]["code"]["wide_loads"] > odd["scaled_0"]["code"]["wide_loads"]


@pytest.mark.parametrize(
    ("template", "params", "assumed"),
    [
        ("route", {"has_num_tokens": True, "has_bias": False, "logits": "f32"}, [16, 16, 1, 16, 16]),
        ("sort_count", {"has_num_tokens": True, "map": "index"}, [1, 1, 1, 16]),
        ("sort_scan", {"rows": 32}, [16, 16, 16]),
        ("combine", {"has_num_tokens": True, "map": "mask", "out": "bf16"}, [16, 16, 1, 1, 16]),
    ],
)
def test_nothing_is_assumed_of_what_is_read_by_the_element(template, params, assumed):
    assert divisible(TEMPLATES[template], params) == assumed


@pytest.mark.parametrize("architecture", [GFX942, SM_90], ids=lambda a: a.name)
def test_rounds_products_before_it_adds(architecture, tmp_path):
    """The CPU target does too, and bytes must agree."""
    compiled = compile_kernels({"scaled_0": kernel("scaled")}, architecture, tmp_path, quiet)
    found = instructions((compiled["scaled_0"] / ASSEMBLY).read_text())
    assert any("mul" in name and "f32" in name for name in found)
    assert [name for name in found if "fma" in name or "mac_f32" in name] == []


@pytest.mark.parametrize("architecture", [GFX942, SM_90], ids=lambda a: a.name)
def test_same_code_every_time(architecture, tmp_path):
    kernels = {"scaled_0": kernel("scaled"), "product_0": kernel("product", block=64)}
    first, second = (compile_kernels(kernels, architecture, tmp_path / place, quiet) for place in "ab")
    for name in kernels:
        assert (first[name] / CODE).read_bytes() == (second[name] / CODE).read_bytes()


def test_modules_are_not_printed(tmp_path, monkeypatch):
    class Module:
        def __str__(self):
            raise AssertionError("printed")

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    kept = Kept("0" * 64)
    for name in ("kernel.source", "kernel.ttir", "kernel.glir", "kernel.ttgir", "kernel.llir"):
        assert Path(kept.put(Module(), name)).read_text() == ""
    assert Path(kept.put("code", "kernel.ptx")).read_text() == "code"


def test_keeps_code_by_content(tmp_path, monkeypatch):
    kernels = {"scaled_0": kernel("scaled"), "scaled_9": kernel("scaled")}
    seen = []
    first = compile_kernels(kernels, SM_90, tmp_path, lambda *counts: seen.append(counts), {})
    assert first["scaled_0"] == first["scaled_9"], "one code object has any number of names"
    assert seen == [(0, 1), (1, 1)]
    monkeypatch.setattr(build, "WORKER", "no_such_module")
    assert compile_kernels(kernels, SM_90, tmp_path, quiet) == first
    for changed in (kernel("scaled", columns=64), kernel("scaled", num_warps=8), kernel("crowded")):
        with pytest.raises(CompileError, match="no_such_module"):
            compile_kernels({"scaled_0": changed}, SM_90, tmp_path, quiet)
    with pytest.raises(CompileError, match="no_such_module"):
        compile_kernels(kernels, ARCHITECTURES["sm_80"], tmp_path, quiet)
    with pytest.raises(CompileError, match="no_such_module"):
        compile_kernels(kernels, SM_90, tmp_path, quiet, {"scaled_0": [1]})


@pytest.mark.parametrize(
    ("architecture", "template", "problem"),
    [
        ("sm_90", "undefined", "has no attribute 'nowhere'.* at `return tl.nowhere\\(value\\)`"),
        ("gfx942", "constraint", "error: could not allocate output register for constraint '\\?'"),
        ("sm_90", "constraint", "error: could not allocate output register for constraint '\\?'"),
        ("gfx942", "instruction", "error: invalid instruction"),
        ("sm_90", "instruction", "error *: Not a name of any known instruction: 'nonsense'"),
        (
            "sm_90",
            "swapped",
            "scaled_kernel takes .*'x', 'stride', 'offset'.* passes .*'x', 'offset', 'stride'.* one order",
        ),
        ("sm_90", "too_many", "scaled_kernel has no parameter ROWS; its template sets one"),
        ("gfx942", "abort", "ended with -6"),
    ],
)
def test_refuses_in_one_line_and_leaves_nothing(architecture, template, problem, tmp_path):
    folder, cache = tmp_path / "kernels", tmp_path / "cache"
    with pytest.raises(CompileError, match=problem) as error:
        write_kernels({"broken_0": kernel(template, columns=64)}, ARCHITECTURES[architecture], folder, cache, quiet)
    assert str(error.value).startswith(f"compiling kernel broken_0 for {architecture} failed: ")
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []
    assert not folder.exists()


def test_refuses_an_unknown_template(tmp_path):
    with pytest.raises(CompileError, match="kernel k for gfx942 failed: there is no kernel template quantise"):
        write_kernels({"k": kernel("quantise")}, GFX942, tmp_path / "kernels", tmp_path / "cache", quiet)


def test_refuses_more_shared_memory_than_there_is(tmp_path):
    wide = kernel("product", columns=1024, block=256)
    with pytest.raises(CompileError, match=r"needs \d+ bytes of shared memory, gfx942 has 65536: use smaller tiles"):
        compile_kernels({"wide_0": wide}, GFX942, tmp_path, quiet)


METADATA = {"num_ctas": 1, "num_warps": 4, "shared": 0, "name": "k", "global_scratch_size": 0}
PTX = "{}\n.visible .entry k(\n\t.param .u64 .ptr .global .align 1 k_0,\n\t.param .u32 k_1,\n\t.param .u64 k_2\n)\n{{}}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("global_scratch_size", 128),
        ("profile_scratch_size", 8),
        ("tensordesc_meta", [{}]),
        ("launch_cooperative_grid", True),
        ("launch_pdl", True),
        ("num_ctas", 2),
    ],
)
def test_refuses_what_a_launch_does_not_provide(name, value):
    with pytest.raises(CompileError, match=f"its code asks for {name} .*, which a launch does not provide"):
        kernel_facts([], METADATA | {name: value}, b"", PTX, SM_90)


def test_refuses_code_that_takes_other_arguments(tmp_path):
    compiled = compile_kernels({"scaled_0": kernel("scaled")}, SM_90, tmp_path, quiet)["scaled_0"]
    code, text = (compiled / CODE).read_bytes(), (compiled / ASSEMBLY).read_text()
    assert kernel_facts(ARGUMENTS, METADATA, code, text, SM_90)["scratch"] == 2
    assert parameters(text) == ["*", "i64", "*", "*", "i32", "*", "*"]
    for types in (ARGUMENTS[:-1], [*ARGUMENTS, "i64"], ["*bf16", "*fp32", "i64", "*bf16"]):
        with pytest.raises(CompileError, match="the launch passes"):
            kernel_facts(types, METADATA, code, text, SM_90)


def test_workers_do_without_tritons_variables(monkeypatch):
    monkeypatch.setenv("TRITON_KERNEL_DUMP", "1")
    monkeypatch.setenv("TMPDIR", "/")
    environment = build.environment()
    assert [name for name in environment if name.startswith("TRITON_")] == []
    assert environment["TMPDIR"] == "/"


def test_code_is_kept_for_the_sizes_that_kernels_read(tmp_path, monkeypatch):
    """Of the runtime they import these alone, so with the templates their file is all that a kernel is made of."""
    texts = [file.read_text() for file in Path(build.__file__).parent.glob("*.py")]
    found = {
        line for text in texts for line in re.findall(r"^from moeloom\.runtime(\S* import (?:stream\b)?)", text, re.M)
    }
    assert found == {".stream import ", " import stream"}
    kernels = {"scaled_0": kernel("scaled")}
    compile_kernels(kernels, SM_90, tmp_path, quiet)
    changed = tmp_path / "stream.py"
    changed.write_text(Path(stream.__file__).read_text() + "MORE = 1\n")
    monkeypatch.setattr(stream, "__file__", str(changed))
    monkeypatch.setattr(build, "WORKER", "no_such_module")
    with pytest.raises(CompileError, match="no_such_module"):
        compile_kernels(kernels, SM_90, tmp_path, quiet)
