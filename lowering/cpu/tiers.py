"""CPU tiers: which instructions a kernel library may use. Each tier is compiled for its own LLVM CPU, on any host."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """One set of CPU features; `features` are spelt as in /proc/cpuinfo, `llvm_features` as LLVM spells them."""

    name: str
    cpu: str
    features: tuple[str, ...]
    llvm_features: tuple[str, ...]
    lanes: int
    """f32 lanes of the widest vector register."""

    def has(self, feature: str) -> bool:
        return feature in self.features


_AVX2 = ("avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "popcnt", "sse4_2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

GENERIC = Tier("generic", "x86-64", ("sse2",), ("+sse2",), 4)
AVX2 = Tier("avx2", "x86-64-v3", _AVX2, ("+avx2", "+fma"), 8)
AVX512 = Tier("avx512", "x86-64-v4", _AVX512, ("+avx512f", "+avx512bw", "+avx512vl"), 16)
AVX512_BF16 = Tier("avx512bf16", "x86-64-v4", (*_AVX512, "avx512_bf16"), ("+avx512bf16",), 16)
AMX = Tier(
    "amx",
    "x86-64-v4",
    (*AVX512_BF16.features, "amx_tile", "amx_bf16"),
    ("+avx512bf16", "+amx-tile", "+amx-bf16"),
    16,
)
"""Needs the kernel's permission besides (arch_prctl ARCH_REQ_XCOMP_PERM)."""

BEST_FIRST = (AMX, AVX512_BF16, AVX512, AVX2, GENERIC)
