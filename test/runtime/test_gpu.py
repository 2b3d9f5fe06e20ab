"""runtime/gpu.py, cuda.py and hip.py on the stand-ins of gpu_stand_in.py."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gpu_stand_in import SHARED, WIDTH, Machine, Stream, tokens

from moeloom.runtime import devices
from moeloom.runtime.artifact import read
from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.executable import Executable, load


@pytest.mark.parametrize("poison", [False, True])
def test_result(artifact: Callable, oracle: Callable, poison: bool) -> None:
    exe = load(artifact(), poison=poison)
    for m in (1, 4, 5, 64, 3, 5):
        torch.testing.assert_close(exe(tokens(m)), oracle(tokens(m)))
    live = torch.tensor([2], dtype=torch.int32)
    torch.testing.assert_close(exe(tokens(5), live), oracle(tokens(5), 2))
    assert exe(tokens(0)).shape == (0, WIDTH)


def test_launches_by_the_abi(artifact: Callable, machine: Machine) -> None:
    exe, x, out = load(artifact()), torch.randn(3, 16)[:, :WIDTH], torch.empty(3, WIDTH)
    exe(x, out=out)
    first, second, third = machine.launches()
    block = 4 * (64 if machine.backend == "hip" else 32)
    for launch in (first, second, third):
        assert (list(launch.grid), list(launch.block)) == ([3, 1, 1], [block, 1, 1])
        assert (launch.stream, launch.m, launch.scratch) == (0x500000000, 3, 0)
        assert launch.divisible == 16 and launch.shared == SHARED[16]
    assert list(first.words)[:3] == [x.data_ptr(), 16, exe.weights["b.factors"].data_ptr()]
    assert second.words[0] == first.words[3]
    assert third.words[2] == out.data_ptr()
    slots = {first.words[3], second.words[1], third.words[0]}
    assert all((slot - first.words[3]) % 256 == 0 for slot in slots)
    if machine.backend == "cuda":
        assert (machine.number("attribute").value, machine.number("attribute_value").value) == (8, SHARED[16])
        assert machine.number("contexts").value > 0


def test_code_that_artifacts_share_keeps_the_most_shared_memory(machine: Machine) -> None:
    if machine.backend != "cuda":
        return
    driver = devices.Cuda(0)
    for shared, wanted in ((60000, 60000), (90000, 90000), (70000, 90000)):
        driver.function(0, "kernel", shared)
        assert machine.number("attribute_value").value == wanted


def early(machine: Machine) -> list[int]:
    return [launch.early for launch in machine.launches()]


def test_launches_overlap_what_is_in_front(artifact: Callable, machine: Machine) -> None:
    """The first of a call too, and the one behind ATen; one that is timed stands alone."""
    cuda = int(machine.backend == "cuda")
    exe = load(artifact())
    for m, wanted in ((3, [cuda] * 3), (3, [cuda] * 3), (5, [cuda] * 4)):
        exe(tokens(m))
        assert early(machine) == wanted
    machine.stream = Stream(0x600000000)
    exe(tokens(3))
    assert [(launch.early, launch.stream) for launch in machine.launches()] == [(cuda, 0x600000000)] * 3
    exe["b"].trace(tokens(3))
    assert early(machine) == [0, 0, 0]
    load(artifact(), overlap=False)(tokens(5))
    assert early(machine) == [0, 0, 0, 0]


def test_code_that_does_not_wait_never_overlaps(artifact: Callable, machine: Machine) -> None:
    def never_wait(target: dict) -> None:
        for variant in target["kernels"]["add_one"]["variants"]:
            variant["dependent"] = False

    load(artifact(never_wait))(tokens(5))
    cuda = int(machine.backend == "cuda")
    assert early(machine) == [cuda, 0, 0, cuda]  # the first and the last one are of other code


@pytest.mark.parametrize("where", ["pointer", "stride", "out"])
def test_variant_by_alignment(artifact: Callable, machine: Machine, oracle: Callable, where: str) -> None:
    """A misaligned tensor of the caller takes the generic code of the launches that touch it, and of no other."""
    exe, x = load(artifact()), tokens(4)

    def divisible(given: torch.Tensor, out: torch.Tensor) -> list[int]:
        torch.testing.assert_close(exe(given.copy_(x), out=out), oracle(x))
        return [launch.divisible for launch in machine.launches()]

    aligned, out = torch.empty(4, 16)[:, :WIDTH], torch.empty(4, WIDTH)
    odd = {
        "pointer": (torch.empty(4 * 16 + 1)[1:].view(4, 16)[:, :WIDTH], out),
        "stride": (torch.empty(4, 9)[:, :WIDTH], out),
        "out": (aligned, torch.empty(4 * WIDTH + 1)[1:].view(4, WIDTH)),
    }
    assert divisible(*odd[where]) == ([16, 16, 1] if where == "out" else [1, 16, 16])
    assert divisible(aligned, out) == [16, 16, 16]


def test_variant_by_the_strides_of_the_workspace(artifact: Callable, machine: Machine) -> None:
    def scale_twice(target: dict) -> None:
        steps = target["programs"]["block"]["steps"]
        steps[1] = {**steps[0], "operands": [4, 2], "results": [5]}  # rows of 8 elements, in the workspace

    exe = load(artifact(scale_twice))
    exe(torch.empty(4, 16)[:, :WIDTH])
    assert [launch.divisible for launch in machine.launches()] == [16, 1, 16]


def test_no_variant_fits(artifact: Callable, machine: Machine) -> None:
    def drop_generic(target: dict) -> None:
        target["kernels"]["add_one"]["variants"].pop()

    exe = load(artifact(drop_generic))  # its tensors lie in the workspace, so aligned code is enough
    assert exe(tokens(4)).shape == (4, WIDTH)
    aligned = exe.target.variants | {"scale_rows": exe.target.variants["scale_rows"][:1]}
    target = replace(exe.target, variants=aligned)
    narrow = Executable(exe.manifest, target, devices.Gpu(machine.driver(), target), exe.weights)
    machine.launches()
    with pytest.raises(LaunchError, match=r"no code of scale_rows fits: .* multiples of 16, its argument 1 is 0x9"):
        narrow(torch.empty(4, 9)[:, :WIDTH])
    assert machine.launches() == []


def test_weights_must_be_aligned(artifact: Callable, machine: Machine) -> None:
    """Every variant assumes it, the generic one too."""
    exe = load(artifact())
    factors = torch.empty(WIDTH + 1)[1:]
    odd = Executable(exe.manifest, exe.target, exe.device, exe.weights | {"b.factors": factors})
    with pytest.raises(LaunchError, match=r"scale_rows reads 0x[0-9a-f]+4, no multiple of 16"):
        odd(tokens(4))
    assert machine.launches() == []


def test_trace_agrees_with_the_plan(artifact: Callable) -> None:
    exe = load(artifact())
    for m in (4, 5):
        _, ran = exe["b"].trace(tokens(m))
        assert [(r.kernel, r.op, r.tiles) for r in ran] == [(s.kernel, s.op, s.tiles) for s in exe["b"].launches(m)]
        assert all(r.seconds == 1e-6 for r in ran)


def test_calls_follow_each_other_across_streams(artifact: Callable, machine: Machine) -> None:
    exe, first, second = load(artifact()), machine.stream, Stream(0x600000000)
    exe(tokens(4)), exe(tokens(4))
    assert first.waits == []
    machine.stream = second
    exe(tokens(4))
    assert second.waits == [first]
    machine.launches()
    exe(tokens(4))
    assert second.waits == [first] and {launch.stream for launch in machine.launches()} == {0x600000000}


def test_capture(artifact: Callable, machine: Machine) -> None:
    """A capture waits for no other stream, needs a plan, and keeps the memory it recorded."""
    exe = load(artifact())
    exe(tokens(4))
    machine.stream, machine.capturing = Stream(0x600000000), True
    machine.launches()
    exe(tokens(4))
    recorded = machine.launches()
    assert machine.stream.waits == [] and len(recorded) == 3
    with pytest.raises(LaunchError, match="cannot capture the first call with M = 5"):
        exe(tokens(5))
    machine.capturing = False
    exe(tokens(64))
    kept = [plan._workspace.data_ptr() for plan in exe.device._captured.values()]
    assert kept == [recorded[0].words[3]]


def test_refused_launch(artifact: Callable, machine: Machine) -> None:
    exe = load(artifact())
    machine.number("refuse").value = 1
    with pytest.raises(LaunchError, match=r"^scale_rows cannot be launched on cpu: invalid argument$"):
        exe(tokens(4))


def test_code_the_driver_refuses(artifact: Callable) -> None:
    def spoil(target: dict) -> None:
        target["kernels"]["add_one"]["variants"][0]["symbol"] = "absent"

    with pytest.raises(ArtifactError, match="kernel 'absent' is not to be had on cpu: bad image"):
        load(artifact(spoil))


def test_no_driver(artifact: Callable, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(machine.driver()), "library", "libabsent.so.1")
    with pytest.raises(ArtifactError, match=r"the GPU driver libabsent\.so\.1 cannot be loaded: .*No such file"):
        load(artifact())


def test_changed_code(artifact: Callable, machine: Machine) -> None:
    path = artifact()
    manifest = read(path)
    file = path / "kernels/add_one-16.bin"
    file.write_bytes(b"code 16 other\0")
    with pytest.raises(ArtifactError, match=r"add_one-16\.bin does not match its hash"):
        devices.Gpu(machine.driver(), manifest.targets[machine.found.name])


def test_out_of_memory(artifact: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    exe = load(artifact())

    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation")

    monkeypatch.setattr(exe._workspace, "_grow", full)
    with pytest.raises(LaunchError, match=r"^4 tokens do not fit: CUDA out of memory\. Tried to allocate 2 GiB\.$"):
        exe(tokens(4))
    with pytest.raises(LaunchError, match=r"^a workspace for 9 tokens does not fit: CUDA out of memory"):
        exe.prepare(9)


BREAKS: dict[str, tuple[Callable[[dict], object], str]] = {
    "backend": (lambda t: t["architecture"].update(backend="metal"), "backend 'metal' is none of cuda, hip"),
    "no variant": (lambda t: t["kernels"]["add_one"].update(variants=[]), "multiples of nothing, not best first"),
    "order": (lambda t: t["kernels"]["add_one"]["variants"].reverse(), r"multiples of \[1, 16\], not best first"),
    "divisible": (lambda t: t["kernels"]["add_one"]["variants"][0].update(divisible=12), "no power of two"),
    "threads": (lambda t: t["kernels"]["add_one"]["variants"][0].update(threads=100), "'add_one' has 100 threads"),
    "scratch": (lambda t: t["kernels"]["add_one"]["variants"][0].update(scratch=-1), "scratch is -1"),
    "dependent": (lambda t: t["kernels"]["add_one"]["variants"][0].update(dependent=1), "has dependent 1 for"),
    "no dependent": (lambda t: t["kernels"]["add_one"]["variants"][0].pop("dependent"), "lacks 'dependent'"),
    "no shared": (lambda t: t["kernels"]["add_one"]["variants"][0].pop("shared"), "lacks 'shared'"),
    "hash": (lambda t: t["kernels"]["add_one"]["variants"][0].update(sha256="0"), "does not match its hash"),
    "file": (lambda t: t["kernels"]["add_one"]["variants"][0].update(file="kernels/absent"), "lacks kernels/absent"),
    "outside": (lambda t: t["kernels"]["add_one"]["variants"][0].update(file="../x"), "lies outside the artifact"),
    "arguments": (lambda t: t["kernels"]["add_one"]["arguments"].pop(), r"takes \*; a launch passes \* \*"),
    "stride": (
        lambda t: t["kernels"]["scale_rows"].update(arguments=["*fp32", "*fp32", "i64", "*fp32"]),
        r"takes \* \* i64 \*; a launch passes \* i64 \* \*",
    ),
    "generic": (lambda t: t["kernels"]["scale_rows"]["variants"].pop(), "has no variant for any alignment"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_refused_manifest(artifact: Callable, name: str) -> None:
    change, message = BREAKS[name]
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact(change)
    assert "\n" not in str(caught.value)


def test_importing_opens_no_driver() -> None:
    program = (
        "import ctypes, moeloom.runtime.executable, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'libcuda.so' not in open('/proc/self/maps').read()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
