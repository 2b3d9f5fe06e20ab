"""runtime/plan.py and program.py: ATen steps, views, sizes and slots, by programs written by hand, without a kernel."""

import warnings

import pytest
import torch

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.null import Null
from moeloom.runtime.plan import Plan, slot_offsets
from moeloom.runtime.program import evaluate, parse
from moeloom.runtime.target import Target
from moeloom.runtime.workspace import Workspace

ROWS = ["M", 4]
NULL = Null(Target("cpu", (), {}, {}, {}))


def tensor(slot: int | None = 0, dtype: str = "float32", shape: list | None = None) -> dict:
    return {"dtype": dtype, "shape": shape or ROWS, "slot": slot}


def value(number: int) -> dict:
    return {"value": number}


def aten(op: str, results: list[int], *args: dict) -> dict:
    return {"aten": f"aten.{op}", "args": list(args), "results": results}


def run(m: int, values: dict, steps: list, output: int = 9, shape: list | None = None, dtype: str = "float32"):
    """The output of a program with input 0 = x [M, 4] and weight 1 = w [4, 4], with x and w."""
    raw = {
        "inputs": [{"name": "x", "value": 0, "dtype": "float32", "shape": ROWS, "optional": False, "strided": True}],
        "weights": [{"name": "w", "value": 1, "dtype": "float32", "shape": [4, 4]}],
        "outputs": [{"value": output, "dtype": dtype, "shape": shape or ROWS}],
        "values": {str(number): item for number, item in values.items()},
        "slots": 4,
        "steps": steps,
    }
    program = parse("p", raw, {})
    generator = torch.Generator().manual_seed(m)
    x, w = torch.randn(m, 4, generator=generator), torch.randn(4, 4, generator=generator)
    workspace = torch.full((slot_offsets(program, 16, 64)[1],), 0xFF, dtype=torch.uint8)
    plan = Plan(program, m, {1: w}, workspace, 16, NULL)
    made = program.outputs[0].tensor
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an `out` that had to be resized warns
        for _ in range(2):
            out = torch.empty(made.at(m), dtype=made.storage)
            plan.run({0: x}, [out])
    return out, x, w


def test_out_overload_writes_into_the_output() -> None:
    out, x, w = run(3, {}, [aten("mm.default", [9], value(0), value(1))])
    assert torch.equal(out, x @ w)


def test_keyword_arguments_follow_the_schema() -> None:
    out, x, _ = run(3, {}, [aten("add.Tensor", [9], value(0), value(0), {"literal": 3})])
    torch.testing.assert_close(out, 4 * x)


def test_copy_changes_dtype_in_place() -> None:
    cast = aten(
        "to.dtype", [9], value(0), {"dtype": "bfloat16"}, {"literal": False}, {"literal": False}, {"literal": None}
    )
    out, x, _ = run(3, {}, [cast], dtype="bfloat16")
    assert torch.equal(out, x.bfloat16())


def test_copy_allocates_nothing() -> None:
    raw = {
        "inputs": [{"name": "x", "value": 0, "dtype": "float32", "shape": ROWS, "optional": False, "strided": True}],
        "weights": [],
        "outputs": [{"value": 9, "dtype": "bfloat16", "shape": ROWS}],
        "values": {},
        "slots": 0,
        "steps": [aten("to.dtype", [9], value(0), {"dtype": "bfloat16"}, *[{"literal": False}] * 2, {"literal": None})],
    }
    plan = Plan(parse("p", raw, {}), 3, {}, torch.empty(0, dtype=torch.uint8), 16, NULL)
    x, out = torch.randn(3, 4), torch.empty(3, 4, dtype=torch.bfloat16)
    with torch.profiler.profile(profile_memory=True) as profile:
        plan.run({0: x}, [out])
    assert torch.equal(out, x.bfloat16())
    assert [event.name for event in profile.events() if event.self_cpu_memory_usage > 0] == []


def test_a_device_is_where_the_program_runs() -> None:
    """By position and by keyword; the program names another."""
    moved = aten("to.device", [2], value(0), {"literal": "meta"}, {"dtype": "float32"})
    made = aten("full_like.default", [3], value(2), {"literal": 2.0})
    steps = [moved, made, aten("add.Tensor", [9], value(2), value(3))]
    out, x, _ = run(3, {2: tensor(0), 3: tensor(1)}, steps)
    assert torch.equal(out, x + 2)


class AtenAlone(Null):
    """Runs programs without a launch."""

    def execute(self, plan, live, outputs, ran) -> None:
        plan.run(live, outputs, ran)


def test_an_exchange_is_one_memory_for_all_programs() -> None:
    """Zeros at first, kept between calls, and never poisoned."""
    adds = {
        "inputs": [{"name": "x", "value": 0, "dtype": "int32", "shape": ["M"], "optional": False, "strided": False}],
        "weights": [],
        "outputs": [{"value": 9, "dtype": "int32", "shape": ["M"]}],
        "exchanges": [{"value": 5, "words": 3}],
        "values": {"6": {"dtype": "int32", "shape": [3], "slot": None}},
        "slots": 0,
        "steps": [
            aten("add_.Tensor", [6], value(5), value(0), {"literal": 1}),
            aten("clone.default", [9], value(6), {"literal": None}),
        ],
    }
    programs = [parse("one", adds, {}), parse("other", adds | {"name": "other"}, {})]
    workspace = Workspace(AtenAlone(Target("cpu", (), {}, {}, {})), programs, poison=True)
    x, out = torch.tensor([1, 2, 3], dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    for times, program in enumerate([*programs, programs[0]], 1):
        workspace.run(program.name, program, 3, {}, {0: x}, [out], None)
        assert torch.equal(out, times * x)


def test_operator_without_an_out_form() -> None:
    out, x, _ = run(3, {2: tensor()}, [aten("relu.default", [2], value(0)), aten("neg.default", [9], value(2))])
    assert torch.equal(out, -x.relu())


def test_several_results() -> None:
    values = {2: tensor(0, shape=["M", 2]), 3: tensor(1, "int64", ["M", 2])}
    top = aten("topk.default", [2, 3], value(0), {"literal": 2}, {"literal": -1}, {"literal": True}, {"literal": True})
    out, x, _ = run(5, values, [top, aten("gather.default", [9], value(0), {"literal": 1}, value(3))], shape=["M", 2])
    assert torch.equal(out, x.topk(2).values)


def test_views_of_inputs_and_of_the_workspace() -> None:
    values = {2: tensor(None), 3: tensor(0, shape=[4, "M"]), 4: tensor(None, shape=["M", 4])}
    steps = [
        aten("t.default", [2], value(0)),
        aten("mm.default", [3], value(1), value(2)),
        aten("t.default", [4], value(3)),
        aten("neg.default", [9], value(4)),
    ]
    out, x, w = run(3, values, steps)
    torch.testing.assert_close(out, -(w @ x.T).T)


def test_output_that_is_a_view_of_a_slot() -> None:
    values = {2: tensor(0), 9: tensor(None, shape=[1, "M", 4])}
    out, x, w = run(
        3,
        values,
        [aten("mm.default", [2], value(0), value(1)), aten("unsqueeze.default", [9], value(2), {"literal": 0})],
        shape=[1, "M", 4],
    )
    assert torch.equal(out, (x @ w)[None])


def test_output_that_is_the_input() -> None:
    out, x, _ = run(3, {}, [], output=0)
    assert torch.equal(out, x)


def test_sizes_and_constants() -> None:
    """view(x, [size(x, 0) * 2, 2]) + a constant tensor."""
    steps = [
        aten("size.int", [5], value(0), {"literal": 0}),
        aten("mul.int", [6], value(5), {"literal": 2}),
        aten("view.default", [7], value(0), {"list": [value(6), {"literal": 2}]}),
        aten("full.default", [8], {"list": [{"literal": 2}]}, {"literal": 0.5}),
        aten("add.Tensor", [9], value(7), value(8)),
    ]
    out, x, _ = run(3, {7: tensor(None, shape=[["mul", "M", 2], 2])}, steps, shape=[["mul", "M", 2], 2])
    assert torch.equal(out, x.view(6, 2) + 0.5)


def test_reshape_that_copies_runs_at_every_call() -> None:
    values = {2: tensor(0), 3: tensor(None, shape=[4, "M"]), 4: tensor(None, shape=[["mul", "M", 4]])}
    steps = [
        aten("mm.default", [2], value(0), value(1)),
        aten("t.default", [3], value(2)),
        aten("reshape.default", [4], value(3), {"list": [{"literal": -1}]}),
        aten("neg.default", [9], value(4)),
    ]
    out, x, w = run(3, values, steps, shape=[["mul", "M", 4]])
    assert torch.equal(out, -(x @ w).T.reshape(-1))


def test_unknown_operator() -> None:
    with pytest.raises(ArtifactError, match=r"has no operator 'aten\.frobnicate\.default'"):
        run(1, {}, [aten("frobnicate.default", [9], value(0))])


def test_alternatives_by_m() -> None:
    branches = {
        "alternatives": {"choice": "fusion", "max_m": 4, "reason": "a test"},
        "first": [aten("neg.default", [2], value(0))],
        "second": [aten("abs.default", [3], value(0)), aten("neg.default", [2], value(3))],
    }
    values = {2: tensor(0), 3: tensor(1)}
    for m in (4, 5):
        out, x, _ = run(m, values, [branches, aten("exp.default", [9], value(2))])
        assert torch.equal(out, (-x if m <= 4 else -x.abs()).exp())


@pytest.mark.parametrize(
    ("size", "want"),
    [
        (7, 7),
        ("M", 10),
        (["add", "M", 3], 13),
        (["mul", ["add", "M", -1], 4], 36),
        (["floordiv", "M", 3], 3),
        (["ceildiv", "M", 3], 4),
        (["mod", "M", 3], 1),
        (["min", "M", 12, ["floordiv", "M", 2]], 5),
    ],
)
def test_evaluate(size: object, want: int) -> None:
    assert evaluate(size, 10) == want


def test_slots_hold_their_largest_value_within_its_guard() -> None:
    values = {
        "2": {"dtype": "float32", "shape": ["M", 100], "slot": 0},  # only where M <= 4
        "3": {"dtype": "bfloat16", "shape": ["M", 8], "slot": 0},
        "4": {"dtype": "float4_e2m1fn_x2", "shape": ["M", 5], "slot": 1},
    }
    raw = {
        "inputs": [{"name": "x", "value": 0, "dtype": "float32", "shape": ROWS, "optional": False, "strided": True}],
        "weights": [],
        "outputs": [],
        "values": values,
        "slots": 2,
        "steps": [
            {
                "alternatives": {"choice": "fusion", "max_m": 4, "reason": ""},
                "first": [aten("neg.default", [2], value(0)), aten("neg.default", [3], value(2))],
                "second": [aten("neg.default", [3], value(0))],
            },
            aten("neg.default", [4], value(3)),
        ],
    }
    program = parse("p", raw, {})
    assert program.slot_bytes(1000) == [16000, 5000]
    assert program.slot_bytes(64) == [1600, 320]
    assert slot_offsets(program, 65, 64)[0] == [0, 1600] and slot_offsets(program, 65, 64)[1] == 1600 + 384
