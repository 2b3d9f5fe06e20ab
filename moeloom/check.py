"""Checks an artifact on the machine it runs on: numbers against the reference, bytes against bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moeloom import switches
from moeloom.inputs import random_inputs
from moeloom.replay import Replay
from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Alternatives, Launch, Step
from moeloom.runtime.reference import quantise

TOLERANCE = 5e-3
"""Relative L2 over the whole output, against float64 (docs/contract.md, section 5)."""
UNDEFINED = {torch.uint8: 0xFF, torch.int32: -1}
"""What the reference puts where the contract defines nothing."""
FRESH, PREQUANTISED = ".experts", ".experts_prequantised"


@dataclass(frozen=True)
class Figure:
    """One comparison: relative L2, or how many bytes differ; it passes up to `limit`."""

    entry: str
    tokens: int
    compared: Literal["reference", "fused and split", "fresh and prequantised"]
    measure: Literal["relative L2", "bytes that differ"]
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


def check(executable: Executable, entries: Sequence[str], tokens: Sequence[int], seed: int = 0) -> Iterator[Figure]:
    """Every comparison that `entries` allow, at each M of `tokens`, on seeded random inputs.

    Each entry against the reference on the artifact's own weights; fused against split where its program has both; the
    prequantised entry, fed with the quantiser's own output, against the fresh one.
    """
    fused, split = (forced(executable, which) for which in ("first", "second"))
    for name in entries:
        for m in tokens:
            inputs = inputs_of(executable, name, m, seed)
            found = _run(executable, name, inputs)
            expected = Replay(executable, name).run(inputs)
            yield from (_against_reference(name, m, f, e) for f, e in zip(found, expected, strict=True))
            if _has_alternatives(executable[name].program.steps):
                bytes_differ = _different(_run(fused, name, inputs), _run(split, name, inputs))
                yield Figure(name, m, "fused and split", "bytes that differ", bytes_differ, 0)
            if name.endswith(PREQUANTISED):
                fresh = name.removesuffix(PREQUANTISED) + FRESH
                yield Figure(
                    name,
                    m,
                    "fresh and prequantised",
                    "bytes that differ",
                    _prequantised(executable, fresh, name, m, seed),
                    0,
                )


def inputs_of(executable: Executable, name: str, tokens: int, seed: int) -> dict[str, Tensor]:
    """Random inputs for an entry of `executable`, the same on every device, on its device."""
    made = random_inputs(executable[name].program, experts_of(executable, name), tokens, seed)
    return {name: tensor.to(executable.device.torch_device) for name, tensor in made.items()}


def experts_of(executable: Executable, name: str) -> int | None:
    """How many experts an entry chooses from, None where it sorts no tokens."""
    kernels = executable.target.kernels
    params = [kernels[step.kernel]["params"] for step in executable[name].program.chosen(1) if isinstance(step, Launch)]
    return next((found["experts"] for found in params if "experts" in found), None)


def forced(executable: Executable, which: switches.Side) -> Executable:
    """The same artifact, always taking the fused quantiser ("first") or the split pair ("second"), whatever M."""
    return switches.forced(executable, which, _is_fusion)


def _is_fusion(step: Alternatives) -> bool:
    return step.choice == "fusion"


def _has_alternatives(steps: Sequence[Step]) -> bool:
    """Whether the fused and the split quantiser both stand in the program."""
    return any(map(_is_fusion, switches.alternatives(steps)))


def _run(executable: Executable, name: str, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    outputs = executable[name](**inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _against_reference(name: str, m: int, found: Tensor, expected: Tensor) -> Figure:
    if expected.is_floating_point():
        return Figure(name, m, "reference", "relative L2", relative_l2(found, expected), TOLERANCE)
    found, expected = found.view(expected.dtype), expected.view(found.shape)
    defined = expected != UNDEFINED[expected.dtype]
    differ = int((found != expected)[defined].sum())
    return Figure(name, m, "reference", "bytes that differ", differ * expected.element_size(), 0)


def relative_l2(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected|| in float64; 0 for two zeros."""
    error = (found.double() - expected.double()).norm()
    return 0.0 if error == 0 else float(error / expected.double().norm())


def _different(one: Sequence[Tensor], other: Sequence[Tensor]) -> int:
    pairs = zip(one, other, strict=True)
    return sum(int((a.view(torch.uint8) != b.view(torch.uint8)).sum()) for a, b in pairs)


def _prequantised(executable: Executable, fresh: str, prequantised: str, m: int, seed: int) -> int:
    """Bytes that differ between the two entries, the second fed with the first's activations quantised."""
    inputs = inputs_of(executable, fresh, m, seed)
    payload, scales = quantise(inputs["x"], executable.manifest.raw["options"]["scale_mode"])
    rest = {name: tensor for name, tensor in inputs.items() if name != "x"}
    given = {**rest, "payload": payload, "scales": scales}
    return _different(_run(executable, fresh, inputs), _run(executable, prequantised, given))
