"""What of a target's row a tuned table may change: tiles, thresholds and plans, each a `Setting`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from moeloom.lowering.packing import Layout
from moeloom.lowering.targets import Block, Target
from moeloom.lowering.triton.tiles import FACTS, TILE_OF, Tile, facts


class SettingError(Exception):
    """A setting that the target does not have. One line: what was found, what was wanted."""


@dataclass(frozen=True)
class Setting:
    """`params` of `what` where `when` holds.

    | what | when | params | is |
    |---|---|---|---|
    | a Triton template | any of its facts (`tiles.FACTS`) | all of its tile | a row of `Target.tiles` |
    | fusion | stage: 1 or 2 | rows | `Target.fused_rows` |
    | sort | | tokens | `Target.sort_tokens` |
    | prologue | | tokens | `Target.route_sort_tokens` |
    | linear | | tokens | `Target.router_tokens` |
    | plan | layout, number: which of its plans | block, rows, stages | `Target.layouts` |
    | prefill | | block | `Target.prefill` |
    """

    what: str
    when: Mapping[str, Any]
    params: Mapping[str, int] = field(default_factory=dict)


WHEN = {"fusion": ("stage",), "plan": ("layout", "number")}
"""What tells the rows of a setting apart that is no template's."""
GPU_SETTINGS = ("linear", "prefill", "prologue", "sort")
"""Settings of the targets that have a plan for many tokens."""
KERNEL_OF = {"linear": "router", "prologue": "route_sort"}
"""Settings of the targets that have a tile of such a kernel."""
SWITCHES = ("fusion", "linear", "plan", "prologue", "sort")
"""Settings whose rows or tokens may be 0: never. So may "ordered" of a tile: none."""
CAP = "maxnreg"
"""A param that every tile may have: the most registers of a thread."""


def in_force(target: Target, what: str, when: Mapping[str, Any]) -> dict[str, int]:
    """The params that `target` has now for such a setting; SettingError where it has none."""
    if what in FACTS:
        rows = [tile for tile in target.tiles if tile.template == what]
        unknown = sorted(when.keys() - set(FACTS[what]))
        if not rows or unknown:
            raise SettingError(_unknown(target, what, unknown, FACTS[what]))
        exact = next((row for row in rows if row.fits(what, _every(what, when))), None)
        return dict((exact or rows[0]).params)
    known: dict[tuple, dict[str, int]] = {
        ("sort",): {"tokens": target.sort_tokens},
        ("prologue",): {"tokens": target.route_sort_tokens},
        ("linear",): {"tokens": target.router_tokens},
    }
    known = {(name,): params for (name,), params in known.items() if _has_kernel(target, name)}
    known |= {("fusion", stage): {"rows": rows} for stage, rows in enumerate(target.fused_rows, 1)}
    for layout, plans in target.layouts.items():
        for number, plan in enumerate(plans):
            known["plan", layout, number] = {"block": plan.block, "rows": plan.rows, "stages": plan.stages}
    if target.prefill is not None:
        known["prefill",] = {"block": target.prefill.block}
    wanted = WHEN.get(what, ())
    key = (what, *(when.get(name) for name in wanted))
    if key not in known or when.keys() != set(wanted):
        raise SettingError(_unknown(target, what, sorted(when), wanted))
    return known[key]


def _has_kernel(target: Target, what: str) -> bool:
    """Whether the target has the kernel that a setting is about, if it is about one."""
    return what not in KERNEL_OF or any(tile.template == KERNEL_OF[what] for tile in target.tiles)


def _every(what: str, when: Mapping[str, Any]) -> dict[str, Any]:
    """`when` with None for the facts that it does not name."""
    return {name: when.get(name, 0 if name == "experts" else None) for name in FACTS[what]}


def _unknown(target: Target, what: str, found: Sequence[str], known: Sequence[str | None]) -> str:
    where = f" where {', '.join(found)}" if found else ""
    tiles = sorted({tile.template for tile in target.tiles})
    about = f"{what} may depend on {', '.join(map(str, known)) or 'nothing'}; " if what in tiles else ""
    others = [name for name in GPU_SETTINGS if target.prefill and _has_kernel(target, name)]
    listed = ", ".join(["fusion", "plan", *others, *tiles])
    return f"target {target.name} has no setting {what!r}{where}: {about}it has {listed}"


def apply(target: Target, settings: Iterable[Setting]) -> Target:
    """`target` with `settings` before its own; the first of two for the same counts. SettingError (see `check`)."""
    tiles: list[Tile] = []
    for setting in reversed(list(settings)):
        check(target, setting)
        given: dict[str, Any] = dict(setting.params)
        if setting.what in FACTS:
            tiles.insert(0, Tile(setting.what, given, dict(setting.when)))
        elif setting.what == "fusion":
            rows = list(target.fused_rows)
            rows[setting.when["stage"] - 1] = given["rows"]
            target = replace(target, fused_rows=(rows[0], rows[1]))
        elif setting.what == "sort":
            target = replace(target, sort_tokens=given["tokens"])
        elif setting.what == "prologue":
            target = replace(target, route_sort_tokens=given["tokens"])
        elif setting.what == "linear":
            target = replace(target, router_tokens=given["tokens"])
        elif setting.what == "plan":
            layout: Layout = setting.when["layout"]
            plans = list(target.layouts[layout])
            plans[setting.when["number"]] = replace(plans[setting.when["number"]], **given)
            changed: Any = {**target.layouts, layout: plans}
            target = replace(target, layouts=changed)
        else:
            assert target.prefill is not None
            target = replace(target, prefill=replace(target.prefill, **given))
    return replace(target, tiles=(*tiles, *target.tiles))


def check(target: Target, setting: Setting) -> None:
    """SettingError unless `target` has such a setting and it has just these params, each a whole number that fits."""
    before = in_force(target, setting.what, setting.when)
    known = set(before)
    optional = set()
    if setting.what in FACTS:
        rows = [tile.params for tile in target.tiles if tile.template == setting.what]
        known, optional = set.union(*map(set, rows)) | {CAP}, {CAP}
        optional |= {name for name in known if not all(name in row for row in rows)}
    found = set(setting.params)
    if not known - optional <= found <= known:
        listed = ", ".join(sorted(found)) or "none"
        may = f"; it may also have {', '.join(sorted(optional))}" if optional else ""
        raise SettingError(f"{setting.what} has params {listed}; it takes {', '.join(sorted(known - optional))}{may}")
    for name, value in setting.params.items():
        may_be_none = name == "ordered" or (name in ("rows", "tokens") and setting.what in SWITCHES)
        least = 0 if may_be_none else 1
        allowed = get_args(Block) if name == "block" else (1, 2) if name == "stages" else ()
        if type(value) is not int or value < least or (allowed and value not in allowed):
            wanted = f"one of {', '.join(map(str, allowed))}" if allowed else f"a whole number from {least}"
            raise SettingError(f"{setting.what} {name} is {value!r}; it must be {wanted}")


def tile_origin(settings: Sequence[Setting], template: str, params: Mapping[str, Any]) -> str | None:
    """Whether the tile of a kernel is "tuned", from one of `settings`, or "built-in"; None where it has none."""
    named = TILE_OF.get(template, template)
    if named not in FACTS:
        return None
    about = facts(named, params)
    rows = [Tile(setting.what, setting.params, setting.when) for setting in settings if setting.what in FACTS]
    return "tuned" if any(row.fits(named, about) for row in rows) else "built-in"
