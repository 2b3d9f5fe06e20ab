"""Packed weights (docs/program.md, "Packed weights"): a checkpoint's tensors as the bytes a kernel reads, and back.

Plain torch, an expert at a time, streams on a CPU two. A recipe is the `moe.pack` dictionary of a weight argument.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.pack_mfma import pack_mfma, unpack_mfma
from moeloom.runtime.pack_stream import pack_stream, unpack_stream
from moeloom.runtime.reference import quantise

TILE_ROWS = 16
CHUNK_WORDS = 32767  # i32 a step: in the second-level cache, and below what torch hands to its threads, which
# would meet after each of these short operations; on a busy machine that cost 30 times the work
STREAMS_AT_ONCE = 2  # more would wait for Python's lock
Recipe = Mapping[str, Any]
Memo = dict[tuple, list[Tensor]]


class Source(Protocol):
    """Where tensors come from: a checkpoint, or a plain dictionary. A source may also have `expert(name, e) -> Tensor`,
    which reads one expert of a stacked tensor."""

    def get(self, name: str) -> Tensor | None: ...


def pack(
    recipe: Recipe, source: Source, *, prefix: str = "", experts: int | None = None, memo: Memo | None = None
) -> Iterator[Tensor]:
    """The packed tensor, one expert at a time (`as_is`: the whole tensor at once unless the names are patterns).

    `experts` is how many a pattern name stands for (counted when left out). A quantising recipe makes payload and
    scales together: with the same `memo` for both, the scales are kept from the payload's turn and made only once.
    """
    names = [prefix + name for name in recipe["sources"]]
    pattern = "{e}" in names[0]
    if recipe["kind"] == "as_is" and not pattern:
        yield _get(source, names[0])
        return
    if recipe["kind"] == "stream":
        numbers = range(_count(source, names[:1], experts))
        yield from _streams(recipe, ([expert_of(source, name, e) for name in names] for e in numbers))
        return
    key = (*names, recipe.get("quantize"), recipe.get("rows"), recipe.get("order"))
    if recipe["kind"] == "scales" and memo is not None and key in memo:
        yield from memo.pop(key)
        return
    for e in range(_count(source, names, experts)):
        if pattern:
            parts = [_get(source, name.replace("{e}", str(e))) for name in names]
            one = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            one = expert_of(source, names[0], e)
        yield _pack_expert(recipe, one, None if memo is None else memo.setdefault(key, []))
    if memo is not None and not memo.get(key):
        memo.pop(key, None)


def _get(source: Source, name: str) -> Tensor:
    tensor = source.get(name)
    if tensor is None:
        raise ArtifactError(
            f"the checkpoint has no tensor {name!r}; check that it is complete and of the compiled model"
        )
    return tensor


def expert_of(source: Source, name: str, number: int) -> Tensor:
    """One expert of a stacked tensor, without reading the others where the source can."""
    return source.expert(name, number) if hasattr(source, "expert") else _get(source, name)[number]


def _count(source: Source, names: list[str], experts: int | None) -> int:
    if experts is not None:
        return experts
    if "{e}" not in names[0]:
        return _get(source, names[0]).shape[0]
    count = 0
    while source.get(names[0].replace("{e}", str(count))) is not None:
        count += 1
    _get(source, names[0].replace("{e}", "0"))
    return count


def _pack_expert(recipe: Recipe, one: Tensor, kept_scales: list[Tensor] | None) -> Tensor:
    kind, rows, mode = recipe["kind"], recipe.get("rows", "plain"), recipe.get("quantize", "none")
    if kind == "as_is":
        return one
    if kind == "bias":
        return gate_rows_first(one.float(), rows) if _row_major(recipe) else _tiles(one.float(), rows).flatten()
    if mode != "none":
        codes, scales = quantise(one if recipe.get("order", "nk") == "nk" else one.T, mode)
        if kind == "payload" and kept_scales is not None:
            kept_scales.append(_pack_bytes(recipe, "scales", scales))
        one = codes if kind == "payload" else scales
    if one.dtype.itemsize != 1:
        raise ArtifactError(f"{recipe['sources']} is {one.dtype}; unquantised weights need --quantize-weights mxfp4")
    return _pack_bytes(recipe, kind, one.view(torch.uint8).reshape(one.shape[0], -1))


def _streams(recipe: Recipe, experts: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
    """The streams of `experts` in their order. On a CPU two are made at a time, while the caller has another."""
    with ThreadPoolExecutor(STREAMS_AT_ONCE) as pool:
        begun: deque[Future[Tensor]] = deque()
        for parts in experts:
            if parts[0].device.type != "cpu":  # a GPU's current stream is a thread's own
                yield _stream(recipe, *parts)
                continue
            begun.append(pool.submit(_stream, recipe, *parts))
            if len(begun) > STREAMS_AT_ONCE:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _stream(recipe: Recipe, one: Tensor, scales: Tensor | None = None) -> Tensor:
    """The stream of one expert, from its payload and scales or from what is still to be quantised."""
    mode = recipe.get("quantize", "none")
    if scales is None:
        one, scales = quantise(one if recipe.get("order", "nk") == "nk" else one.T, mode)
    codes, scales = one.view(torch.uint8).reshape(one.shape[0], -1), scales.view(torch.uint8)
    if recipe["layout"] == "mfma_stream":
        return pack_mfma(codes, scales, recipe["rows"])
    return pack_stream(codes, scales, recipe["rows"], recipe["warps"])


def unpack_expert_stream(recipe: Recipe, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Payload u8 [N, K/2] and scales u8 [N, K/32] of one expert's stream, in the checkpoint's row order."""
    unpack = unpack_mfma if recipe["layout"] == "mfma_stream" else unpack_stream
    return unpack(packed, recipe["rows"], recipe["count"], recipe["columns"])


def _pack_bytes(recipe: Recipe, kind: str, one: Tensor) -> Tensor:
    rows = recipe.get("rows", "plain")
    if _row_major(recipe):
        return gate_rows_first(one, rows)
    return pack_payload(one, rows) if kind == "payload" else pack_scales(one, rows)


def _row_major(recipe: Recipe) -> bool:
    return recipe.get("layout") == "row_major"


def gate_rows_first(matrix: Tensor, rows: str) -> Tensor:
    """[N, ...] with all gate rows, then all up rows (a new tensor where they were interleaved)."""
    return torch.cat((matrix[0::2], matrix[1::2])) if rows == "gate_up_interleaved" else matrix


def _rows_restored(matrix: Tensor, rows: str) -> Tensor:
    """The inverse of `gate_rows_first`."""
    return torch.stack(matrix.chunk(2), 1).flatten(0, 1) if rows == "gate_up_interleaved" else matrix


def _tiles(matrix: Tensor, rows: str) -> Tensor:
    """[N, ...] as a view [T, P, 16, ...]: P = 2 tiles (gate, up) of the same outputs for gate_up, 1 for plain rows."""
    count, *rest = matrix.shape
    parts = 1 if rows == "plain" else 2
    if count % (TILE_ROWS * parts):
        raise ArtifactError(f"a weight has {count} rows; the n16k32 layout takes multiples of {TILE_ROWS * parts} here")
    if rows == "gate_up_interleaved":
        return matrix.view(-1, TILE_ROWS, 2, *rest).transpose(1, 2)
    return matrix.view(parts, -1, TILE_ROWS, *rest).transpose(0, 1)


def pack_payload(codes: Tensor, rows: str) -> Tensor:
    """u8 [N, K/2] (two codes a byte) to n16k32 u8 [N/16, K/32, 4, 16, 4]; `rows` as in a recipe."""
    count, half = codes.shape
    out = torch.empty(count // TILE_ROWS, half // 16, 4, TILE_ROWS, 4, dtype=torch.uint8, device=codes.device)
    source = _tiles(_words(codes), rows)
    tiles, parts, _, words = source.shape
    target = out.view(torch.int32).view(tiles, parts, words, TILE_ROWS)
    chunk_words = CHUNK_WORDS if codes.device.type == "cpu" else codes.numel()
    step = max(1, chunk_words // max(1, parts * TILE_ROWS * words))
    for start in range(0, tiles, step):
        chunk = target[start : start + step]
        chunk.copy_(source[start : start + step].transpose(2, 3))
        bits = chunk.view(torch.int64)
        # Codes 0..7 of a word become 0,2,4,6,1,3,5,7: swap nibbles 1-2 and 5-6, then bytes 1-2.
        _swap(bits, 4, 0x00F000F0_00F000F0)
        _swap(bits, 8, 0x0000FF00_0000FF00)
    return out


def unpack_payload(packed: Tensor, rows: str) -> Tensor:
    """The inverse of `pack_payload`."""
    tiles, groups = packed.shape[:2]
    bits = packed.clone().view(tiles, -1).view(torch.int64)
    _swap(bits, 8, 0x0000FF00_0000FF00)
    _swap(bits, 4, 0x00F000F0_00F000F0)
    codes = torch.empty(tiles * TILE_ROWS, groups * 16, dtype=torch.uint8, device=packed.device)
    target = _tiles(codes.view(torch.int32), rows)
    target.copy_(bits.view(torch.int32).view(*target.shape[:2], groups * 4, TILE_ROWS).transpose(2, 3))
    return codes


def pack_scales(scales: Tensor, rows: str) -> Tensor:
    """u8 [N, K/32] to n16k32 u8 [N/16, K/32, 16]."""
    return _tiles(scales.contiguous(), rows).flatten(0, 1).transpose(1, 2).contiguous()


def unpack_scales(packed: Tensor, rows: str) -> Tensor:
    """The inverse of `pack_scales`."""
    scales = torch.empty(packed.shape[0] * TILE_ROWS, packed.shape[1], dtype=torch.uint8, device=packed.device)
    target = _tiles(scales, rows)
    target.copy_(packed.transpose(1, 2).view_as(target))
    return scales


def unpack(recipe: Recipe, packed: Tensor) -> Tensor:
    """`packed` in the checkpoint's row order: payload u8 [E, N, K/2], scales u8 [E, N, K/32], bias f32 [E, N]."""
    return packed if recipe["kind"] == "as_is" else torch.stack([unpack_expert(recipe, one) for one in packed])


def unpack_expert(recipe: Recipe, packed: Tensor) -> Tensor:
    """One expert of a packed tensor, `packed[e]`, in the checkpoint's row order, as `unpack` gives it."""
    kind, rows = recipe["kind"], recipe.get("rows", "plain")
    if kind == "as_is":
        return packed
    if _row_major(recipe):
        return _rows_restored(packed, rows)
    if kind == "bias":
        restored = torch.empty_like(packed)
        tiles = _tiles(restored, rows)
        tiles.copy_(packed.view(tiles.shape))
        return restored
    return unpack_payload(packed, rows) if kind == "payload" else unpack_scales(packed, rows)


def _words(codes: Tensor) -> Tensor:
    """u8 [N, B] as i32 [N, B/4]; copied only where the bytes do not lie on word boundaries."""
    codes = codes.contiguous()
    return (codes.clone() if codes.storage_offset() % 4 or codes.data_ptr() % 4 else codes).view(torch.int32)


def _swap(bits: Tensor, distance: int, low: int) -> None:
    """Exchange the bits of mask `low` with those `distance` above them, in place."""
    moved = (bits >> distance).bitwise_xor_(bits).bitwise_and_(low)
    bits.bitwise_xor_(moved)
    bits.bitwise_xor_(moved.bitwise_left_shift_(distance))
