"""What `moeloom tune` tries, a table a target: changes to a row in force, each one step away from it.

A search of one round is one step of a coordinate descent: every candidate differs from the table in force in one change
of one row. The next round starts from the table that came out.
"""

from collections.abc import Iterator, Mapping, Sequence

from moeloom.lowering.packing import STREAMS
from moeloom.lowering.settings import CAP, Setting, in_force
from moeloom.lowering.targets import Target

Change = Mapping[str, int]
Space = Mapping[str, Sequence[Change]]
"""The changes to try by what they change (`Setting.what`)."""


def each(**values: Sequence[int]) -> list[Change]:
    """One param at a time."""
    return [{name: value} for name, tried in values.items() for value in tried]


UNCAPPED = 255
"""Registers a thread may have at most: a cap that caps nothing."""
# A wider tile wants more warps, a deeper one fewer stages: these go together.
PRODUCTS = [
    *each(block_n=(32, 64, 128), block_k=(64, 128, 256), num_warps=(4, 8), num_stages=(2, 3, 4)),
    {"block_n": 128, "num_warps": 8},
    {"block_n": 256, "num_warps": 8},
    {"block_k": 128, "num_stages": 2},
]
SMALL: Space = {
    "route": [{"rows": 2}, {"rows": 4, "num_warps": 2}],
    "sort_tokens": each(rows=(32, 128), num_warps=(2, 8)),
    "sort_quant": each(rows=(32, 128), groups=(16, 64), num_warps=(2, 8)),
    "sort_count": each(rows=(64, 256)),
    "combine": each(block_n=(256, 512, 1024, 2048), rows=(2,), num_warps=(2, 4, 8)),
    "quant": each(rows=(2,), groups=(16, 64), num_warps=(2, 4)),
    "quant_sort": each(rows=(2, 4), slots=(2, 4), groups=(16, 64, 128), num_warps=(1, 2, 4, 8)),
    "sort_scales": each(num_warps=(1, 2, 8)),
}
PREFILL: Space = {"prefill": each(block=(32, 64, 128))}
PORTABLE: Space = {
    **SMALL,
    **PREFILL,
    "plan": each(block=(16, 32)),
    "gate_up": PRODUCTS,
    "down": [*PRODUCTS, *each(splits=(2, 3))],
    "experts_one_stage": each(block_n=(64, 128), block_k=(64, 128), block_h=(32, 64, 128), num_warps=(4, 8)),
}
CDNA: Space = {
    **PORTABLE,
    **dict.fromkeys(("decode_mfma_gate_up", "decode_mfma_down"), each(ring=(2, 3, 4), waves=(1, 2))),
}
SPACES: dict[str, Space] = {
    "cpu": {"plan": [*each(block=(16, 32, 64, 128)), {"stages": 1}]},
    "gfx950": CDNA,
    "gfx942": CDNA,
    "sm_90": {
        **PORTABLE,
        "route_sort": each(rows=(4, 16), num_warps=(8,)),
        "router": each(rows=(1, 4), num_warps=(8,)),
        # A step is a few chunks of a record; with fewer columns more programs have room for it.
        **dict.fromkeys(
            ("prefill_gate_up", "prefill_down"),
            each(ring=(2, 3, 4, 6), step=(64, 192, 320), ordered=(0, 2048)),
        ),
        "expand": each(groups=(8, 16, 32), num_warps=(8,)),
        "fake_quant": each(groups=(64, 128), num_warps=(8,)),
        "quant_sort_sm_90": each(num_warps=(2, 8)),
        # The ring is what a warp keeps in flight; fewer registers let more programs run on an SM.
        "decode_gate_up": each(ring=(3, 4, 5, 6, 7, 8, 10), **{CAP: (96, 128, 168)}),
        "decode_down": each(ring=(4, 5, 6, 7, 8, 10, 12), **{CAP: (96, 128, 168)}),
    },
}
SPACES["sm_80"] = SPACES["sm_100"] = PORTABLE


def candidates(target: Target, wanted: Setting) -> Iterator[Setting]:
    """The settings to try instead of the one in force for `wanted`, none of them that one itself."""
    params = in_force(target, wanted.what, wanted.when)
    seen = [params]
    for change in SPACES[target.name].get(wanted.what, ()):
        tried = {**params, **change}
        # Plans of weight streams are for kernels that take their own blocks alone.
        decodes = wanted.what == "plan" and wanted.when["layout"] in STREAMS
        if tried not in seen and not decodes:
            seen.append(tried)
            yield Setting(wanted.what, wanted.when, tried)
