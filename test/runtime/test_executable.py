"""runtime/executable.py on the tiny artifact of conftest.py, on the CPU and on the null device."""

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moeloom.runtime.errors import ArtifactError, LaunchError
from moeloom.runtime.executable import load

WIDTH = 8


def tokens(m: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, WIDTH, generator=torch.Generator().manual_seed(seed + m))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("poison", [False, True])
def test_result(made: Path, oracle: Callable, threads: int, poison: bool) -> None:
    with load(made, threads=threads, poison=poison) as exe:
        for m in (1, 4, 5, 64, 3, 5):
            torch.testing.assert_close(exe(tokens(m)), oracle(tokens(m)))


def test_live_token_count(made: Path, oracle: Callable) -> None:
    exe = load(made)
    for live in (0, 2, 6):
        count = torch.tensor([live], dtype=torch.int32)
        torch.testing.assert_close(exe(tokens(6), num_tokens=count), oracle(tokens(6), live))
        torch.testing.assert_close(exe(tokens(6), count), oracle(tokens(6), live))


def test_strided_rows(made: Path, oracle: Callable) -> None:
    wide = torch.randn(6, 21)
    torch.testing.assert_close(load(made)(wide[:, 3:11]), oracle(wide[:, 3:11].contiguous()))


def test_no_tokens(made: Path) -> None:
    for device in ("cpu", "null"):
        assert load(made, device)(torch.zeros(0, WIDTH)).shape == (0, WIDTH)


def test_out(made: Path, oracle: Callable) -> None:
    exe, out = load(made, max_tokens=8), torch.empty(6, WIDTH)
    assert exe(tokens(6), out=out) is out
    torch.testing.assert_close(out, oracle(tokens(6)))
    with pytest.raises(LaunchError, match=r"out is cpu float32 \(5, 8\).*contiguous cpu float32 \(6, 8\)"):
        exe(tokens(6), out=out[:5])


def test_nothing_is_allocated_after_prepare(made: Path) -> None:
    exe, out, x = load(made, max_tokens=8), torch.empty(6, WIDTH), tokens(6)
    exe(x, out=out)
    with torch.profiler.profile(profile_memory=True) as profile:
        exe(x, out=out)
    assert [event.name for event in profile.events() if event.self_cpu_memory_usage > 0] == []


def test_prepare_bounds_the_tokens(made: Path, oracle: Callable) -> None:
    exe = load(made)
    torch.testing.assert_close(exe(tokens(100)), oracle(tokens(100)))
    exe.prepare(16)
    with pytest.raises(LaunchError, match=r"M is 17; the workspace is planned for 16: call prepare\(17\) first"):
        exe(tokens(17))
    exe.prepare(17)
    torch.testing.assert_close(exe(tokens(17)), oracle(tokens(17)))
    assert exe.workspace_bytes == 3 * 576  # 17 rows of 32 bytes, up to a multiple of 64


def test_prepare_frees_the_old_workspace(made: Path) -> None:
    exe = load(made)
    exe(tokens(4))
    old = weakref.ref(exe._workspace._memory)
    exe.prepare(8)
    assert old() is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(2, WIDTH).half(),), r"argument 'x' is float16 \(2, 8\); the artifact takes float32 \(\?, 8\)"),
        ((torch.zeros(2, 9),), r"argument 'x' is float32 \(2, 9\); the artifact takes float32 \(2, 8\) at M = 2"),
        ((torch.zeros(WIDTH),), r"argument 'x' is float32 \(8,\); the artifact takes float32 \(\?, 8\)"),
        ((torch.zeros(WIDTH, 2).T,), r"argument 'x' has strides \(1, 2\); its last axis must have stride 1"),
        ((torch.zeros(2, WIDTH, device="meta"),), r"argument 'x' is on meta"),
        (([[0.0] * WIDTH],), r"argument 'x' is a list; the artifact takes a tensor"),
        ((), r"argument 'x' is missing"),
        ((torch.zeros(2, WIDTH), torch.zeros(1)), r"argument 'num_tokens' is float32 \(1,\); .* int32 \(1\)"),
        ((torch.zeros(2, WIDTH), None, None), r"3 arguments given; b takes x, num_tokens"),
    ],
)
def test_refused_arguments(made: Path, args: tuple, message: str) -> None:
    for device in ("cpu", "null"):
        with pytest.raises(LaunchError, match=message):
            load(made, device)(*args)


def test_refused_rows_far_apart(made: Path) -> None:
    far = torch.empty((1 << 30) + WIDTH).as_strided((2, WIDTH), (1 << 30, 1))  # of memory that nobody touches
    for device in ("cpu", "null"):
        with pytest.raises(LaunchError, match="argument 'x' has rows 4294967296 bytes apart; below 4294967296 is want"):
            load(made, device)(far)


def test_refused_names(made: Path) -> None:
    exe = load(made, "null")
    with pytest.raises(LaunchError, match="no argument 'y'; b takes x, num_tokens"):
        exe(y=tokens(2))
    with pytest.raises(LaunchError, match="argument 'x' is given twice"):
        exe(tokens(2), x=tokens(2))
    with pytest.raises(LaunchError, match="no entry 'c'; it has b"):
        exe["c"]


def test_trace_agrees_with_the_plan(made: Path, oracle: Callable) -> None:
    exe = load(made, threads=2)
    for m, names in (
        (4, ["scale_rows", "add_one", "keep_live"]),
        (5, ["scale_rows", "add_one", "add_one", "keep_live"]),
    ):
        result, ran = exe["b"].trace(tokens(m))
        torch.testing.assert_close(result, oracle(tokens(m)))
        assert [r.kernel for r in ran] == names
        assert [(r.kernel, r.op, r.tiles) for r in ran] == [(p.kernel, p.op, p.tiles) for p in exe["b"].launches(m)]


def test_null_device_walks_the_program(made: Path) -> None:
    exe = load(made, "null", poison=True)
    assert not exe(tokens(5)).any()
    assert exe.device.launched == ["scale_rows", "add_one", "add_one", "keep_live"]
    assert len(exe["b"].trace(tokens(2))[1]) == 3


def test_variants_do_not_count_as_blocks(make_artifact: Callable, tmp_path: Path) -> None:
    def change(manifest: dict) -> None:
        entry = manifest["entries"]["b"]
        manifest["entries"] |= {"b.experts": entry, "b.experts_prequantised": entry, **more}

    more: dict = {}
    exe = load(make_artifact(tmp_path / "one.moel", change), "null")
    assert exe.entries == ("b", "b.experts", "b.experts_prequantised") and exe.block.name == "b"
    more["c"] = {"program": "block", "prefix": "b."}
    with pytest.raises(LaunchError, match="the artifact has 2 blocks; call one by name: b, c"):
        load(make_artifact(tmp_path / "two.moel", change), "null")(tokens(1))


def test_weights_from_elsewhere(make_artifact: Callable, tmp_path: Path, weights: dict, oracle: Callable) -> None:
    path = make_artifact(tmp_path / "none.moel", lambda manifest: manifest["targets"]["cpu"].update(weights={}))
    with pytest.raises(LaunchError, match=r"holds no weight 'b\.factors'; load it with weights=DIRECTORY"):
        load(path)(tokens(2))
    exe = load(path, weights={f"b.{name}": weight for name, weight in weights.items()})
    torch.testing.assert_close(exe(tokens(2)), oracle(tokens(2)))
    with pytest.raises(ArtifactError, match=r"the checkpoint has no tensor 'b\.factors'"):
        load(path, weights={})


def test_calls_from_several_threads(made: Path, oracle: Callable) -> None:
    exe, wrong = load(made, threads=2), []

    def call(seed: int) -> None:
        for turn in range(50):
            x = tokens(1 + turn % 7, seed)
            if not torch.allclose(exe(x), oracle(x), atol=1e-5):
                wrong.append(turn)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in (100, 200, 300)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_closed(made: Path) -> None:
    exe = load(made, threads=2)
    exe.close()
    with pytest.raises(RuntimeError, match="closed"):
        exe(tokens(1))


def test_threads_end_with_the_executable(made: Path) -> None:
    before = threading.active_count()
    exe = load(made, threads=4)
    exe(tokens(2))
    workers = exe.device._workers
    assert threading.active_count() == before + 3
    del exe
    for worker in workers:
        worker.join(5)
    assert threading.active_count() == before


def test_no_device(made: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no device 'gfx950'; it must be auto, cpu, cuda, cuda:N or null"):
        load(made, "gfx950")
