"""runtime/gpu.py, cuda.py and hip.py on the stand-ins of gpu_stand_in.py."""

import subprocess
import sys
from collections.abc import Callable

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
    assert [launch.shared for launch in (first, second, third)] == [
        SHARED["scale_rows"],
        SHARED["add_one"],
        SHARED["keep_live"],
    ]
    assert list(first.words)[:3] == [x.data_ptr(), 16, exe.weights["b.factors"].data_ptr()]
    assert second.words[0] == first.words[3]
    assert third.words[2] == out.data_ptr()
    slots = {first.words[3], second.words[1], third.words[0]}
    assert all((slot - first.words[3]) % 256 == 0 for slot in slots)
    if machine.backend == "cuda":
        assert (machine.number("attribute").value, machine.number("attribute_value").value) == (8, SHARED["scale_rows"])
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
        target["kernels"]["add_one"]["code"]["dependent"] = False

    load(artifact(never_wait))(tokens(5))
    cuda = int(machine.backend == "cuda")
    assert early(machine) == [cuda, 0, 0, cuda]  # the first and the last one are of other code


@pytest.mark.parametrize("where", ["pointer", "stride", "out"])
def test_copies_what_the_code_cannot_read(artifact: Callable, machine: Machine, oracle: Callable, where: str) -> None:
    """A caller's tensor that begins or goes on where it may not; any other is read and written in its place."""
    exe, x = load(artifact()), tokens(4)

    def moved(given: torch.Tensor, out: torch.Tensor) -> tuple[bool, bool]:
        assert exe(given.copy_(x), out=out.fill_(torch.nan)) is out
        torch.testing.assert_close(out, oracle(x))
        first, _, last = machine.launches()
        assert not (first.words[0] % 16 or first.words[1] % 8 or last.words[2] % 16)
        return first.words[0] != given.data_ptr(), last.words[2] != out.data_ptr()

    aligned, out = torch.empty(4, 16)[:, :WIDTH], torch.empty(4, WIDTH)
    odd = {
        "pointer": (torch.empty(4 * 16 + 1)[1:].view(4, 16)[:, :WIDTH], out),
        "stride": (torch.empty(4, 9)[:, :WIDTH], out),
        "out": (aligned, torch.empty(4 * WIDTH + 1)[1:].view(4, WIDTH)),
    }
    assert moved(*odd[where]) == ((False, True) if where == "out" else (True, False))
    assert moved(aligned, out) == (False, False)


def test_one_row_may_have_any_stride(artifact: Callable, oracle: Callable) -> None:
    """Torch calls it contiguous whatever it is."""
    exe, x = load(artifact()), torch.as_strided(tokens(1), (1, WIDTH), (9, 1))
    assert x.is_contiguous() and x.stride() == (9, 1)
    torch.testing.assert_close(exe(x), oracle(tokens(1)))


@pytest.mark.parametrize("count", [1, 2])
def test_live_tokens_are_one_word_anywhere(artifact: Callable, machine: Machine, oracle: Callable, count: int) -> None:
    exe, live = load(artifact()), torch.tensor([9, count], dtype=torch.int32)[1:]
    torch.testing.assert_close(exe(tokens(5), live), oracle(tokens(5), count))
    assert live.data_ptr() in [launch.words[1] for launch in machine.launches()]


def test_code_for_other_rows_than_there_are(artifact: Callable, machine: Machine) -> None:
    """Of a caller's tensor, and of the workspace's: no copy helps."""
    wants = r"it takes addresses in multiples of 16 and rows in multiples of 16 elements"

    def wide(target: dict) -> None:
        target["kernels"]["scale_rows"]["divisible"][1] = 16

    with pytest.raises(LaunchError, match=f"value 0 has rows 8 elements apart; {wants}: compile again"):
        load(artifact(wide))(tokens(4))

    def twice(target: dict) -> None:
        wide(target)
        steps = target["programs"]["block"]["steps"]
        steps[1] = {**steps[0], "operands": [4, 2], "results": [5]}  # rows of 8 elements, in the workspace

    with pytest.raises(LaunchError, match=rf"scale_rows reads value 4 at 0x[0-9a-f]+, strides \(8, 1\); {wants}"):
        load(artifact(twice))(torch.empty(4, 16)[:, :WIDTH])
    assert machine.launches() == []


def test_weights_must_be_aligned(artifact: Callable, machine: Machine) -> None:
    exe = load(artifact())
    factors = torch.empty(WIDTH + 1)[1:]
    odd = Executable(exe.manifest, exe.target, exe.device, exe.weights | {"b.factors": factors})
    with pytest.raises(LaunchError, match=r"scale_rows reads value 2 at 0x[0-9a-f]+4, .* multiples of 16 and rows"):
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
        target["kernels"]["add_one"]["code"]["symbol"] = "absent"

    with pytest.raises(ArtifactError, match="kernel 'absent' is not to be had on cpu: bad image"):
        load(artifact(spoil))


def test_no_driver(artifact: Callable, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(machine.driver()), "library", "libabsent.so.1")
    with pytest.raises(ArtifactError, match=r"the GPU driver libabsent\.so\.1 cannot be loaded: .*No such file"):
        load(artifact())


def test_changed_code(artifact: Callable, machine: Machine) -> None:
    path = artifact()
    manifest = read(path)
    file = path / "kernels/add_one.bin"
    file.write_bytes(b"code other\0")
    with pytest.raises(ArtifactError, match=r"add_one\.bin does not match its hash"):
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
    "no code": (lambda t: t["kernels"]["add_one"].pop("code"), "lacks 'code'"),
    "divisible": (lambda t: t["kernels"]["add_one"].update(divisible=[12, 1]), "multiples of 12, no power of two"),
    "fraction": (lambda t: t["kernels"]["add_one"].update(divisible=[16.0, 1]), r"multiples of 16\.0, no power of two"),
    "too divisible": (lambda t: t["kernels"]["add_one"].update(divisible=[512, 1]), "512, no power of two up to 256"),
    "multiples": (
        lambda t: t["kernels"]["add_one"].update(divisible=[16]),
        "'add_one' has 1 multiples for 2 arguments",
    ),
    "threads": (lambda t: t["kernels"]["add_one"]["code"].update(threads=100), "'add_one' has 100 threads"),
    "scratch": (lambda t: t["kernels"]["add_one"]["code"].update(scratch=-1), "scratch is -1"),
    "dependent": (lambda t: t["kernels"]["add_one"]["code"].update(dependent=1), "has dependent 1 for"),
    "no dependent": (lambda t: t["kernels"]["add_one"]["code"].pop("dependent"), "lacks 'dependent'"),
    "no shared": (lambda t: t["kernels"]["add_one"]["code"].pop("shared"), "lacks 'shared'"),
    "hash": (lambda t: t["kernels"]["add_one"]["code"].update(sha256="0"), "does not match its hash"),
    "file": (lambda t: t["kernels"]["add_one"]["code"].update(file="kernels/absent"), "lacks kernels/absent"),
    "outside": (lambda t: t["kernels"]["add_one"]["code"].update(file="../x"), "lies outside the artifact"),
    "arguments": (
        lambda t: t["kernels"]["add_one"].update(arguments=["*fp32"], divisible=[16]),
        r"takes \*; a launch passes \* \*",
    ),
    "stride": (
        lambda t: t["kernels"]["scale_rows"].update(arguments=["*fp32", "*fp32", "i64", "*fp32"]),
        r"takes \* \* i64 \*; a launch passes \* i64 \* \*",
    ),
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
