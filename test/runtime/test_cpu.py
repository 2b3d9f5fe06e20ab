"""runtime/cpu.py: which library is chosen, and how its threads behave."""

from pathlib import Path

import pytest
import torch

from moeloom.runtime.cpu import choose, features
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.executable import load
from moeloom.runtime.target import Library

BEST = Library("avx512bf16", Path("a.so"), "", ("avx512f", "avx512_bf16"))
MIDDLE = Library("avx2", Path("b.so"), "", ("avx2",))
GENERIC = Library("generic", Path("c.so"), "", ())


def test_the_best_that_fits() -> None:
    listed = [BEST, MIDDLE, GENERIC]
    assert choose(listed, have=frozenset({"avx512f", "avx512_bf16", "avx2"})) is BEST
    assert choose(listed, have=frozenset({"avx512f", "avx2"})) is MIDDLE
    assert choose(listed, have=frozenset()) is GENERIC
    assert choose(listed, "generic", frozenset({"avx2"})) is GENERIC


def test_none_fits() -> None:
    with pytest.raises(
        ArtifactError, match=r"avx512bf16 needs avx512_bf16; avx2 needs avx2\. Compile it for the generic"
    ):
        choose([BEST, MIDDLE], have=frozenset({"avx512f"}))
    with pytest.raises(ArtifactError, match="no library of the artifact runs on this CPU: avx2 needs avx2"):
        choose([MIDDLE, GENERIC], "avx2", frozenset())
    with pytest.raises(ArtifactError, match="the artifact has no tier 'sse'; it has avx2, generic"):
        choose([MIDDLE, GENERIC], "sse")


def test_features_are_those_of_this_machine() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert features() and all(feature in flags for feature in features())


def test_missing_kernel_and_bad_library(made: Path, make_artifact, tmp_path: Path) -> None:
    def rename(manifest: dict) -> None:
        target = manifest["targets"]["cpu"]
        target["kernels"]["absent"] = target["kernels"]["add_one"]
        target["programs"]["block"]["steps"][0]["launch"] = "absent"

    with pytest.raises(ArtifactError, match=r"cpu-generic\.so has no kernel 'absent'"):
        load(make_artifact(tmp_path / "absent.moel", rename))(torch.zeros(1, 8))


def test_thread_count(made: Path) -> None:
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"):
        load(made, threads=0)
    assert load(made, threads=1).device._workers == []
    assert len(load(made, threads=3).device._workers) == 2


def test_tier_by_name(made: Path) -> None:
    assert load(made, tier="generic").device.library.tier == "generic"
    with pytest.raises(ArtifactError, match="the artifact has no tier 'avx9'; it has generic"):
        load(made, tier="avx9")
