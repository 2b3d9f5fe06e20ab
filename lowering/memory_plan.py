"""Which intermediate values share memory: slots given out by liveness, sized by the runtime for the largest M."""

from collections.abc import Callable, Iterator, Mapping


def plan(steps: list[dict], values: Mapping[int, dict], kept: set[int], bytes_of: Callable[[dict], int]) -> int:
    """Set `slot` of every value in `values` (None for views) and return the number of slots.

    `values` maps value ids to {"dtype", "shape"} and, for views, {"view_of": id}. `kept` are outputs, which have memory
    of their own. `bytes_of` estimates a value at a typical M: a value takes the free slot nearest to its size.
    """
    straight = list(_straight(steps))
    last = _last_uses(straight, values)
    slots: list[tuple[int, int]] = []  # bytes, and the step after which the slot is free
    for number, step in enumerate(straight):
        for value in step["results"]:
            entry = values.get(value)
            if entry is None or value in kept or "slot" in entry:
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


def _straight(steps: list[dict]) -> Iterator[dict]:
    """The steps as if both branches of every alternative ran, one after the other.

    Only one of them runs, so what the first leaves dead the second may overwrite; what both make lives from the first
    on.
    """
    for step in steps:
        if "alternatives" in step:
            yield from _straight([*step["first"], *step["second"]])
        else:
            yield step


def _last_uses(straight: list[dict], values: Mapping[int, dict]) -> dict[int, int]:
    """The last step that touches each value; a view keeps what it views alive."""
    last: dict[int, int] = {}
    for number, step in enumerate(straight):
        for value in (*step.get("operands", ()), *_argument_values(step.get("args", ())), *step["results"]):
            root: int | None = value
            while root is not None:
                last[root] = number
                root = values.get(root, {}).get("view_of")
    return last


def _argument_values(arguments) -> Iterator[int]:
    for argument in arguments:
        if "value" in argument:
            yield argument["value"]
        yield from _argument_values(argument.get("list", ()))
