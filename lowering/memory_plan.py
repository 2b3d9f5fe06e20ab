"""Which intermediate values share memory: slots given out by liveness, sized by the runtime for the largest M."""

from collections.abc import Callable, Iterator, Mapping


def plan(steps: list[dict], values: Mapping[int, dict], kept: set[int], bytes_of: Callable[[dict], int]) -> int:
    """Set `slot` of every value in `values` (None for views) and return the number of slots.

    `values` maps value ids to {"dtype", "shape"} and, for views, {"view_of": id}. `kept` are outputs, which have memory
    of their own. `bytes_of` estimates a value at a typical M: a value takes the free slot nearest to its size.
    """
    last = _last_uses(steps, values)
    slots: list[tuple[int, int]] = []  # bytes, and the step after which the slot is free
    for number, step in enumerate(steps):
        for value in _written(step):
            entry = values.get(value)
            if entry is None or value in kept:
                continue
            if "view_of" in entry:
                entry["slot"] = None
                continue
            size, until = bytes_of(entry), last.get(value, number)
            free = [i for i, (_, busy) in enumerate(slots) if busy < number]
            if free:
                slot = min(free, key=lambda i: abs(slots[i][0] - size))
                slots[slot] = (max(slots[slot][0], size), until)
            else:
                slot = len(slots)
                slots.append((size, until))
            entry["slot"] = slot
    return len(slots)


def _last_uses(steps: list[dict], values: Mapping[int, dict]) -> dict[int, int]:
    """The last step that touches each value; a view keeps what it views alive."""
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for value in (*_read(step), *_written(step)):
            root: int | None = value
            while root is not None:
                last[root] = number
                root = values.get(root, {}).get("view_of")
    return last


def _inner(step: dict) -> Iterator[dict]:
    """A step and, for alternatives, every step of both: their values live as long as the whole."""
    if "alternatives" not in step:
        yield step
        return
    for inner in (*step["first"], *step["second"]):
        yield from _inner(inner)


def _written(step: dict) -> Iterator[int]:
    seen: set[int] = set()
    for inner in _inner(step):
        for value in inner["results"]:
            if value not in seen:
                seen.add(value)
                yield value


def _read(step: dict) -> Iterator[int]:
    for inner in _inner(step):
        yield from inner.get("operands", ())
        yield from _argument_values(inner.get("args", ()))


def _argument_values(arguments) -> Iterator[int]:
    for argument in arguments:
        if "value" in argument:
            yield argument["value"]
        yield from _argument_values(argument.get("list", ()))
