"""Pipelines from Python: lists and texts, the report, and what comes out when a pass fails."""

from dataclasses import dataclass
from typing import Literal

import pytest
from torch_mlir import ir

from moeloom import dialects
from moeloom.passes import FuseQuantSort, PlanExperts
from moeloom.passes.base import OptionError, Pass, PassError
from moeloom.passes.pipeline import PipelineError, parse, run
from moeloom.passes.report import Record, Report

SITE = """
func.func @site(%x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %nv: tensor<2xi32>)
    -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  %ss = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %q, %ss : tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}
"""


@pytest.fixture
def module():
    return ir.Module.parse(SITE, dialects.context())


def test_report_of_a_list(module):
    report = run(module, [FuseQuantSort(), "canonicalize", "func.func(cse)"])
    reason = "quant writes each scale to its sorted place"
    assert report.records == [Record("site", "stage 1", "fused", reason, "-:6:9")]
    assert report.fused == report.records and report.refused == []
    assert report.as_dicts()[0]["location"] == "-:6:9"
    assert report.records[0].remark() == f"-:6:9: remark: fused: stage 1 of @site: {reason}"
    assert '"moe.quant_sort"' in str(module) and '"moe.quant"' not in str(module)


def test_one_report_over_several_pipelines(module):
    report = Report()
    assert run(module, "moe-fuse-quant-sort", report) is report
    run(module, "cse", report)
    assert len(report.fused) == 1


def test_text_round_trip():
    steps = [
        PlanExperts(stages=1, scale_mode="rceil", decode="4:8,9:16:2"),
        FuseQuantSort(),
        "func.func(canonicalize,cse)",
        "cse{x=1}",
    ]
    assert parse(", ".join(map(str, steps))) == steps
    assert parse("") == [] and parse("builtin.module(cse)") == ["cse"]


@pytest.mark.parametrize("options", [{"stages": 3}, {"stages": True}, {"block": 48}, {"scale_mode": "Even"}])
def test_options_are_checked_in_python(options):
    with pytest.raises(OptionError, match=r"'moe-plan-experts' option \w+ is .*; it must be"):
        PlanExperts(**options)


@pytest.mark.parametrize(
    ("decode", "reason"),
    [
        ("8", "option decode has '8'; write ROWS:BLOCK or ROWS:BLOCK:STAGES"),
        ("0:8", "has '0:8'"),
        ("4:8:2:1", "has '4:8:2:1'"),
        ("4:8,x:16", "has 'x:16'"),
        ("4:48", "option block is '48'; it must be 8 or 16"),
        ("4:8:3", "option stages is '3'; it must be 1 or 2"),
        ("8:8,4:16", "option decode is '8:8,4:16'; its rows must ascend"),
        ("4:8,4:16", "must ascend"),
    ],
)
def test_plans_for_few_tokens_are_checked(decode, reason):
    with pytest.raises(OptionError, match=reason):
        parse(f"moe-plan-experts{{decode={decode}}}")


@dataclass
class Failing(Pass, name="test-failing"):
    """Fails at the second op of the first function: kindly, by a bug, or by leaving invalid IR."""

    how: Literal["refuse", "bug", "invalid"] = "refuse"
    count: int = 1
    flag: bool = False

    def run(self, module, report):
        op = module.regions[0].blocks[0].operations[0].entry_block.operations[1]
        if self.how == "refuse":
            raise PassError(op, "this op is not for me; write another")
        if self.how == "bug":
            raise KeyError("boo")
        op.attributes["stage"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 3)


def test_a_refusal_is_one_error_at_the_op(module):
    with pytest.raises(PipelineError) as failure:
        run(module, [Failing(), FuseQuantSort()])
    assert str(failure.value) == "-:6:9: error: this op is not for me; write another"
    assert len(failure.value.diagnostics) == 1
    assert '"moe.quant"' in str(module), "what comes after a failure does not run"


def test_a_bug_names_the_pass_and_keeps_the_exception(module):
    with pytest.raises(PipelineError) as failure:
        run(module, "test-failing{how=bug}")
    assert "'test-failing' broke (KeyError: 'boo'); this is a bug in the pass" in str(failure.value)
    assert isinstance(failure.value.__cause__, KeyError)


def test_invalid_ir_is_found_after_the_pass_that_left_it(module):
    with pytest.raises(PipelineError, match=r"-:6:9: error: 'moe.sort_scales' stage is 3; it must be 1 or 2"):
        run(module, "test-failing{how=invalid},moe-fuse-quant-sort")


def test_typed_options():
    assert parse("test-failing{count=-3 flag=true how=bug}") == [Failing("bug", -3, True)]
    for text, wanted in (("count=x", "a whole number"), ("flag=1", "true or false")):
        with pytest.raises(OptionError, match=wanted):
            parse(f"test-failing{{{text}}}")


def test_nothing_runs_when_a_later_step_does_not_exist(module):
    before = str(module)
    with pytest.raises(OptionError, match="there is no pass 'cze'; did you mean cse"):
        run(module, "moe-fuse-quant-sort,cze")
    assert str(module) == before
