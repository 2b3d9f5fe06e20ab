"""The GPUs that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KIB = 1024
ALIGNED = 16
"""Bytes of a pointer and elements of a stride that kernels assume multiples of: the widest load has so many bytes."""

SHARED_RESERVE = KIB
"""Bytes of an SM's shared memory that CUDA keeps for each resident program."""
FIRST_OVERLAPPING = 90
"""Of NVIDIA's, the first whose launches can overlap."""
SIMDS = 4
"""Of a compute unit, on CDNA."""


@dataclass(frozen=True)
class Architecture:
    """What Triton compiles for. `name` is the vendor's: gfx950, sm_90; it is the templates' TARGET.

    `warp_size` is in threads, `shared_limit` the bytes of LDS or shared memory that a workgroup may ask for. Persistent
    kernels, where a target has them, fill its `processors`: SMs of so many `registers` and `shared` bytes, of which
    each resident program takes SHARED_RESERVE more than it asks for (CUDA C++ Programming Guide, compute
    capability 9.0); or compute units.
    """

    backend: Literal["hip", "cuda"]
    name: str
    warp_size: int
    shared_limit: int
    processors: int = 0
    registers: int = 65536
    shared: int = 228 * KIB

    @property
    def overlaps(self) -> bool:
        """Whether a launch may begin before the one in front of it has ended (dependents.py)."""
        return self.backend == "cuda" and int(self.name.removeprefix("sm_")) >= FIRST_OVERLAPPING

    def resident(self, shared: int) -> int:
        """How many programs that ask for `shared` bytes an SM holds."""
        return 0 if shared > self.shared_limit else self.shared // (shared + SHARED_RESERVE)

    @property
    def arch(self) -> str | int:
        """As Triton names it: gfx950, 90."""
        return int(self.name.removeprefix("sm_")) if self.backend == "cuda" else self.name

    @property
    def code(self) -> str:
        """What a code object is called, there and as a file's suffix."""
        return "cubin" if self.backend == "cuda" else "hsaco"

    @property
    def assembly(self) -> str:
        """What its assembly is called."""
        return "ptx" if self.backend == "cuda" else "amdgcn"


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("hip", "gfx950", 64, 160 * KIB, processors=256),
        Architecture("hip", "gfx942", 64, 64 * KIB, processors=304),
        Architecture("cuda", "sm_80", 32, 163 * KIB),
        Architecture("cuda", "sm_90", 32, 227 * KIB, processors=132),
        Architecture("cuda", "sm_100", 32, 227 * KIB),
    )
}
