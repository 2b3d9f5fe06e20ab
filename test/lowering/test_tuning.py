"""lowering/tuning.py: every candidate of every target is one that the target can have, and one change away."""

import pytest

from moeloom.lowering.packing import STREAMS
from moeloom.lowering.settings import Setting, apply, check
from moeloom.lowering.targets import TARGETS
from moeloom.lowering.triton.tiles import FACTS
from moeloom.lowering.tuning import SPACES, candidates

WHEN = {
    "block": 64,
    "quantised": False,
    "stream": False,
    "experts": 128,
    "many_slots": False,
}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_candidates_are_settings_of_the_target(name):
    target = TARGETS[name]
    for what in SPACES[name]:
        places = [{fact: WHEN[fact] for fact in FACTS.get(what, ())}]
        if what == "quant_sort":
            places.append({"many_slots": True})
        if what == "plan":
            places = [
                {"layout": name, "number": n} for name, plans in target.layouts.items() for n in range(len(plans))
            ]
        for when in places:
            tried = list(candidates(target, Setting(what, when)))
            assert tried or when["layout"] in STREAMS
            assert len({tuple(sorted(one.params.items())) for one in tried}) == len(tried)
            for one in tried:
                check(target, one)
                assert apply(target, [one]) != target


def test_candidates_start_from_the_table_in_force():
    when = {"layout": "n16k32", "number": 0}
    tuned = apply(TARGETS["cpu"], [Setting("plan", when, {"block": 64, "rows": 0, "stages": 2})])
    blocks = {one.params["block"] for one in candidates(tuned, Setting("plan", when)) if one.params["stages"] == 2}
    assert blocks == {16, 32, 128}
