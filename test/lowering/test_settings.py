"""lowering/settings.py: what a tuned table may change of a target, and how it is refused."""

import pytest

from moeloom.lowering.settings import Setting, SettingError, apply, check, in_force, tile_origin
from moeloom.lowering.targets import TARGETS

CPU, SM_90, GFX950 = TARGETS["cpu"], TARGETS["sm_90"], TARGETS["gfx950"]
PREFILL = {"ring": 3, "step": 64, "steps": 4, "maxnreg": 128, "num_warps": 8, "num_stages": 1}
FACTS = {"block": 64, "quantised": False}
TILE = {"block_n": 64, "block_k": 64, "num_warps": 8, "num_stages": 3}


def test_settings_come_before_the_targets_own():
    tuned = apply(
        SM_90,
        [
            Setting("gate_up", FACTS, TILE | {"block_n": 128}),
            Setting("gate_up", FACTS, TILE | {"block_n": 32}),
            Setting("fusion", {"stage": 2}, {"rows": 7}),
            Setting("sort", {}, {"tokens": 9}),
            Setting("plan", {"layout": "stream", "number": 0}, {"block": 8, "rows": 3, "stages": 2}),
            Setting("prefill", {}, {"block": 128}),
        ],
    )
    assert tuned.tile("gate_up", **FACTS)["block_n"] == 128
    assert tuned.tile("gate_up", **FACTS | {"quantised": True}) == SM_90.tile("gate_up", **FACTS)
    assert (tuned.fused_rows, tuned.sort_tokens) == ((SM_90.fused_rows[0], 7), 9)
    assert [plan.rows for plan in tuned.layouts["stream"]] == [3, *(p.rows for p in SM_90.layouts["stream"][1:])]
    assert tuned.layouts["row_major"] == SM_90.layouts["row_major"]
    assert tuned.prefill.block == 128
    assert apply(SM_90, []) == SM_90
    never = apply(SM_90, [Setting("prefill_down", {"block": 64}, PREFILL | {"ordered": 0})])
    assert never.tile("prefill_down", block=64)["ordered"] == 0


def test_what_is_in_force():
    assert in_force(CPU, "fusion", {"stage": 1}) == {"rows": 4}
    assert in_force(CPU, "plan", {"layout": "n16k32", "number": 0}) == {"block": 32, "rows": 0, "stages": 2}
    assert in_force(SM_90, "gate_up", FACTS) == SM_90.tile("gate_up", **FACTS)
    rows = {"block": 32, "quantised": True}
    assert in_force(SM_90, "down", rows) == SM_90.tile("down", **rows)
    assert in_force(SM_90, "prefill_down", {"block": 128}) == SM_90.tile("prefill_down", block=128)
    assert in_force(SM_90, "prefill_down", {}) == SM_90.tile("prefill_down", block=32)
    assert in_force(SM_90, "quant_sort", {"many_slots": False}) == SM_90.tile("quant_sort", many_slots=False)
    assert in_force(SM_90, "quant_sort", {}) == SM_90.tile("quant_sort", many_slots=True)


@pytest.mark.parametrize(
    ("target", "setting", "says"),
    [
        (CPU, Setting("gate_up", FACTS, TILE), "target cpu has no setting 'gate_up'"),
        (CPU, Setting("prefill", {}, {"block": 64}), "target cpu has no setting 'prefill'"),
        (CPU, Setting("plan", {"layout": "stream", "number": 0}, {}), "target cpu has no setting 'plan'"),
        (SM_90, Setting("plan", {"layout": "stream", "number": 5}, {}), "target sm_90 has no setting 'plan'"),
        (SM_90, Setting("frob", {}, {}), "target sm_90 has no setting 'frob'"),
        (SM_90, Setting("fusion", {}, {"rows": 1}), "target sm_90 has no setting 'fusion'"),
        (SM_90, Setting("route", {"block": 8}, {"rows": 1}), "route may depend on experts"),
        (
            SM_90,
            Setting("route", {}, {"rows": 1, "frob": 1}),
            "takes num_stages, num_warps, rows; it may also have max",
        ),
        (SM_90, Setting("route", {}, {"rows": 1}), "route has params rows; it takes"),
        (SM_90, Setting("gate_up", FACTS, TILE | {"block_n": "x"}), "block_n is 'x'; it must be a whole number from 1"),
        (SM_90, Setting("gate_up", FACTS, TILE | {"block_n": True}), "block_n is True"),
        (SM_90, Setting("prefill_down", {"quantised": True}, {}), "prefill_down may depend on block"),
        (SM_90, Setting("fusion", {"stage": 1}, {"rows": -1}), "a whole number from 0"),
        (
            GFX950,
            Setting("linear", {}, {"tokens": 8}),
            "gfx950 has no setting .linear.: it has fusion, plan, prefill, sort, ",
        ),
        (GFX950, Setting("prologue", {}, {"tokens": 8}), "target gfx950 has no setting 'prologue'"),
        (SM_90, Setting("prefill_down", {"block": 64}, PREFILL | {"ordered": -1}), "ordered is -1; .* from 0"),
        (SM_90, Setting("prefill", {}, {"block": 48}), "block is 48; it must be one of 8, 16, 32, 64, 128, 144"),
    ],
)
def test_refusals_say_what_there_is(target, setting, says):
    with pytest.raises(SettingError, match=says) as refusal:
        check(target, setting)
    assert "\n" not in str(refusal.value)


def test_origin_of_a_tile():
    settings = [Setting("gate_up", FACTS, TILE), Setting("sort_count", {"experts": 8}, {}), Setting("fusion", {}, {})]
    kernel = {"block": 64, "x": "bf16"}
    assert tile_origin(settings, "gate_up", kernel) == "tuned"
    assert tile_origin(settings, "gate_up", kernel | {"x": "f4E2M1FN"}) == "built-in"
    assert tile_origin(settings, "sort_scatter", {"experts": 8}) == "tuned"
    assert tile_origin(settings, "sort_scatter", {"experts": 9}) == "built-in"
    assert tile_origin(settings, "expand", {}) == "built-in"
    settings = [Setting("quant_sort", {"many_slots": True}, {})]
    assert tile_origin(settings, "quant_sort", {"stage": 1, "topk": 5}) == "tuned"
    assert tile_origin(settings, "quant_sort", {"stage": 1, "topk": 4}) == "built-in"
    assert tile_origin(settings, "quant_sort", {"stage": 2, "topk": 5}) == "built-in"
    assert tile_origin(settings, "frob", {}) is None
