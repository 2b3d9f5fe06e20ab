"""moeloom-opt in one process: every wrong command line is one line and exit code 2; importing it stays light."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from moeloom.tools.opt import main

MODULE = "func.func @f() { return }\n"


@pytest.mark.parametrize(
    "pipeline, line",
    [
        ("xyz", "there is no pass 'xyz'; `moeloom-opt --list-passes` lists ours"),
        ("canonicalise", "there is no pass 'canonicalise'; did you mean canonicalize?"),
        (
            "moe-quantize-weights{mode=even}",
            "'moe-quantize-weights' has no option 'mode'; its options are: format, scale_mode",
        ),
        ("moe-fuse-quant-sort{x=1}", "'moe-fuse-quant-sort' has no option 'x'; its options are: none"),
        ("moe-plan-experts{stages=3}", "'moe-plan-experts' option stages is '3'; it must be 1 or 2"),
        ("moe-plan-experts{stages}", "'moe-plan-experts' option 'stages' has no value; write stages=VALUE"),
        ("moe-plan-experts{stages=1", "brackets do not match in the pipeline 'moe-plan-experts{stages=1'"),
        ("cse)", "brackets do not match in the pipeline 'cse)'"),
        (
            "moe-plan-experts{stages=1}cse",
            "'moe-plan-experts{stages=1}cse' goes on after its options; separate passes by commas",
        ),
        (
            "func.func(moe-fuse-quant-sort)",
            "'moe-fuse-quant-sort' runs on the whole module; write it outside 'func.func(moe-fuse-quant-sort)'",
        ),
        (
            "canonicalize{depth=1}",
            "pipeline element 'canonicalize{depth=1}': <Pass-Options-Parser>: no such option depth",
        ),
    ],
)
def test_a_wrong_pipeline_is_one_line(pipeline, line):
    result = CliRunner().invoke(main, ["-p", pipeline], input=MODULE)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {line}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content):
    file = tmp_path / "a.mlir"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(main, [str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_a_failing_part_leaves_no_output_file(tmp_path):
    out = tmp_path / "out.mlir"
    result = CliRunner().invoke(main, ["-o", str(out)], input="what\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("<stdin>:1:1: error: custom op 'what' is unknown")
    assert not out.exists()


@pytest.mark.parametrize(
    "expectation, line",
    [
        ("{{never closed", "the expected message has no closing '}}'"),
        ("{{a{{[}}}}", "'a{{[}}' is no regular expression: unterminated character set at position 4"),
    ],
)
def test_a_malformed_expectation_is_one_line(expectation, line):
    result = CliRunner().invoke(main, ["--verify-diagnostics"], input=f"// expected-error@below {expectation}\n")
    assert result.exit_code == 2
    assert result.stderr == f"Error: <stdin>: line 1: {line}\n"


def test_import_is_light():
    loaded = (
        "import sys, moeloom.tools.opt; print([m for m in ('torch', 'transformers', 'triton') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True) == "[]\n"
