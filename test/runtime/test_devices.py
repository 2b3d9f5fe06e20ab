"""runtime/devices.py: which code runs where, on the stand-ins of gpu_stand_in.py."""

from collections.abc import Callable

import pytest
import torch
from gpu_stand_in import Machine, tokens

from moeloom.runtime.devices import Found, runs_on
from moeloom.runtime.errors import ArtifactError
from moeloom.runtime.executable import load
from moeloom.runtime.target import Architecture


def test_null_device_takes_any_target(artifact: Callable, machine: Machine) -> None:
    exe = load(artifact(), "null", target=machine.found.name)
    assert exe.target.name == machine.found.name
    assert not exe(tokens(4)).any()
    assert exe.device.launched == ["scale_rows", "add_one", "keep_live"] and exe.device.alignment == 256
    assert load(artifact(), "null").target.name == "cpu"
    assert load(artifact(keep_cpu=False), "null").target.name == machine.found.name
    assert machine.launches() == []


def test_choice_of_device(artifact: Callable, machine: Machine) -> None:
    path, name = artifact(), machine.found.name
    assert load(path).target.name == load(path, "cuda").target.name == load(path, "cuda:0").target.name == name
    assert load(path, torch.device("cuda")).target.name == name
    assert load(path, "cpu").target.name == load(path, target="cpu").target.name == "cpu"
    with pytest.raises(ArtifactError, match=f"holds cpu, {name}; it has no target 'gfx90a'"):
        load(path, target="gfx90a")
    with pytest.raises(ArtifactError, match=r"is GPU of paper \(.*\); threads and tier are for the CPU"):
        load(path, threads=2)
    assert load(path, "cpu", threads=2).device.threads == 2


def test_no_code_for_this_gpu(artifact: Callable, machine: Machine) -> None:
    name = machine.found.name
    other = Found(0, machine.backend, "sm_120" if machine.backend == "cuda" else "gfx1201", "other GPU")
    path = artifact(keep_cpu=False)
    with pytest.raises(
        ArtifactError, match=rf"the artifact holds {name}, nothing for the CPU: compile it with --target"
    ):
        load(path, "cpu")
    machine.found = None
    with pytest.raises(
        ArtifactError, match=f"torch sees no GPU here; the artifact holds {name}: compile it with --targ"
    ):
        load(path)
    machine.found = other
    with pytest.raises(ArtifactError, match=rf"cuda:0 is other GPU \({other.name}\); the artifact holds {name}: comp"):
        load(path)


def test_the_cpu_where_no_code_is_for_the_gpu(artifact: Callable, machine: Machine) -> None:
    path, name = artifact(), machine.found.name
    machine.found = Found(0, machine.backend, "sm_120" if machine.backend == "cuda" else "gfx1201", "other GPU")
    assert load(path).target.name == "cpu"
    with pytest.raises(ArtifactError, match=rf"\({machine.found.name}\); the artifact holds cpu, {name}: compile it"):
        load(path, "cuda")


@pytest.mark.parametrize(
    ("code", "here", "runs"),
    [
        (("cuda", "sm_90"), ("cuda", "sm_90"), True),
        (("cuda", "sm_80"), ("cuda", "sm_86"), True),
        (("cuda", "sm_86"), ("cuda", "sm_80"), False),
        (("cuda", "sm_80"), ("cuda", "sm_90"), False),
        (("cuda", "sm_100"), ("cuda", "sm_103"), False),
        (("cuda", "sm_100"), ("cuda", "sm_120"), False),
        (("hip", "gfx942"), ("hip", "gfx942"), True),
        (("hip", "gfx942"), ("hip", "gfx950"), False),
        (("hip", "gfx942"), ("cuda", "sm_90"), False),
    ],
)
def test_which_code_runs_where(code: tuple[str, str], here: tuple[str, str], runs: bool) -> None:
    assert runs_on(Architecture(*code, 32), Found(0, *here, "")) is runs
    assert not runs_on(None, Found(0, *here, ""))
