"""Templates that are not the compiler's, good and broken ones; run as a module, a worker that knows them."""

import os
from collections.abc import Mapping

import triton
import triton.language as tl

from moeloom.lowering.processes import serve
from moeloom.lowering.triton.compile import write_kernel
from moeloom.lowering.triton.template import Template
from moeloom.lowering.triton.templates import TEMPLATES


@triton.jit
def scaled_kernel(x, stride, offset, out, M, N: tl.constexpr, BLOCK: tl.constexpr, TARGET: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    given = tl.load(x + row * stride + column, mask=column < N, other=0).to(tl.float32)
    given = given * 3.3
    if offset is not None:
        given += tl.load(offset + column, mask=column < N, other=0)
    tl.store(out + row * N + column, given.to(tl.bfloat16), mask=(column < N) & (row < M))


@triton.jit
def crowded_kernel(x, stride, offset, out, M, N: tl.constexpr, BLOCK: tl.constexpr, TARGET: tl.constexpr):
    """Holds a whole row in registers while it sums it up."""
    column = tl.arange(0, BLOCK)
    given = tl.load(x + column).to(tl.float32)
    tl.store(out + column, (given * tl.sum(given * given, 0)).to(tl.bfloat16))


@triton.jit
def product_kernel(x, stride, offset, out, M, N: tl.constexpr, BLOCK: tl.constexpr, TARGET: tl.constexpr):
    row, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, N, BLOCK):
        tile = tl.load(x + row[:, None] * stride + start + column[None, :])
        sums = tl.dot(tile, tile, sums)
    tl.store(out + row[:, None] * BLOCK + column[None, :], sums.to(tl.bfloat16))


@triton.jit
def _undefined(value):
    return tl.nowhere(value)


@triton.jit
def undefined_kernel(x, stride, offset, out, M, N: tl.constexpr, BLOCK: tl.constexpr, TARGET: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), _undefined(tl.load(x + tl.arange(0, BLOCK))))


@triton.jit
def constraint_kernel(x, stride, offset, out, M, N: tl.constexpr, BLOCK: tl.constexpr, TARGET: tl.constexpr):
    given = tl.load(x + tl.arange(0, BLOCK)).to(tl.float32)
    given = tl.inline_asm_elementwise("mov $0, $1;", "=?,q", [given], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(out + tl.arange(0, BLOCK), given.to(tl.bfloat16))


@triton.jit
def instruction_kernel(x, stride, offset, out, M, N: tl.constexpr, BLOCK: tl.constexpr, TARGET: tl.constexpr):
    given = tl.load(x + tl.arange(0, BLOCK)).to(tl.float32)
    given = tl.inline_asm_elementwise("nonsense $0, $1;", "=r,r", [given], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(out + tl.arange(0, BLOCK), given.to(tl.bfloat16))


def arguments(params: Mapping) -> list[tuple[str, str]]:
    return [("x", "*bf16"), ("stride", "i64"), ("offset", "*fp32"), ("out", "*bf16")]


def constants(params: Mapping) -> dict:
    return {"N": params["columns"], "BLOCK": triton.next_power_of_2(params["columns"])}


def swapped(params: Mapping) -> list[tuple[str, str]]:
    x, stride, offset, out = arguments(params)
    return [x, offset, stride, out]


def too_many(params: Mapping) -> dict:
    return constants(params) | {"ROWS": 1}


def abort(params: Mapping) -> dict:
    os.abort()


OWN = {
    "scaled": Template(scaled_kernel, arguments, constants),
    "crowded": Template(crowded_kernel, arguments, constants),
    "product": Template(product_kernel, arguments, lambda params: {"N": params["columns"], "BLOCK": params["block"]}),
    "undefined": Template(undefined_kernel, arguments, constants),
    "constraint": Template(constraint_kernel, arguments, constants),
    "instruction": Template(instruction_kernel, arguments, constants),
    "swapped": Template(scaled_kernel, swapped, constants),
    "too_many": Template(scaled_kernel, arguments, too_many),
    "abort": Template(scaled_kernel, arguments, abort),
}

if __name__ == "__main__":
    TEMPLATES.update(OWN)
    serve(write_kernel)
