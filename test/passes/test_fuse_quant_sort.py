"""The fusion on random orders of one site: fused exactly where a place exists, valid and stable in every case."""

import random

import pytest
from torch_mlir import ir

from moeloom import dialects
from moeloom.passes.pipeline import run

HEAD = """func.func @site(%x: tensor<?x64xbf16>, %given: tensor<?xi32>, %count: tensor<2xi32>, %tids: tensor<?x2xi32>,
    %w: tensor<?x2xf32>, %c: i1) {"""
QUANT = """%q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)"""
IDS = """%ids, %sw, %e, %nv = "moe.sort_tokens"(%tids, %w) {experts = 4 : i64, block = 32 : i64,
      operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)"""
SORT = """%ss = "moe.sort_scales"(%s, {ids}) {{stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>"""
READ = "tensor.cast %q : tensor<?x64xf4E2M1FN> to tensor<4x64xf4E2M1FN>"
READ_INSIDE = f"scf.if %c {{ %i{{n}} = {READ} }}"
READ_SORTED = "%u = tensor.cast %ss : tensor<?x8xf8E8M0FNU> to tensor<4x8xf8E8M0FNU>"
READ_SCALES = "%t = tensor.cast %s : tensor<?x2xf8E8M0FNU> to tensor<4x2xf8E8M0FNU>"


def program(seed: int) -> tuple[str, bool]:
    """A site with its ops in a random valid order, and whether a fused op has a place in it."""
    choose = random.Random(seed)
    ids = choose.choice(["%given, %count", "%ids, %nv", "%ids, %count", "%given, %nv"])
    readers = [
        choose.choice([f"%r{{n}} = {READ}", READ_INSIDE]).replace("{n}", str(n)) for n in range(choose.randrange(4))
    ]
    scale_readers = [READ_SCALES] * (choose.random() < 0.2)
    sort = SORT.format(ids=ids)
    after = {sort: [QUANT, IDS], READ_SORTED: [sort]} | {reader: [QUANT] for reader in readers + scale_readers}
    left, order = [QUANT, IDS, sort, READ_SORTED, *readers, *scale_readers], []
    while left:
        ready = [op for op in left if not any(need in left for need in after.get(op, []))]
        order.append(choose.choice(ready))
        left.remove(order[-1])
    first_read = min((order.index(reader) for reader in readers), default=len(order))
    has_place = ids == "%given, %count" or order.index(IDS) < first_read
    return "\n  ".join([HEAD, *order, "return\n}"]), has_place and not scale_readers


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_random_orders(start):
    fused = 0
    context = dialects.context()
    for seed in range(start, start + 100):
        text, fits = program(seed)
        module = ir.Module.parse(text, context)
        report = run(module, "moe-fuse-quant-sort")
        assert module.operation.verify()
        assert len(report.fused) == fits, text
        assert ('"moe.quant"' in str(module)) == (not fits)
        once = str(module)
        run(module, "moe-fuse-quant-sort")
        assert str(module) == once
        fused += fits
    assert 20 < fused < 80, "the orders should show both"
