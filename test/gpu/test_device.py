"""A GPU's results against the reference and against themselves: every M, streams, graphs, strides, padding."""

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moeloom.check import check, experts_of, inputs_of, relative_l2
from moeloom.replay import Replay
from moeloom.runtime.errors import LaunchError
from moeloom.runtime.executable import Executable, load

SWITCHES = (255, 256, 257, 511, 513)
CAPTURED = 16
DECODE_L2 = 2e-3
"""At M = 1 to 64; moeloom.check allows 5e-3 at any M."""


def test_reference(gpu: Executable) -> None:
    entries = [name for name in gpu.entries if name.rpartition(".experts")[0] in ("", gpu.entries[0])]
    failed = [figure for figure in check(gpu, entries, (1, 5, 64)) if not figure.passed]
    assert failed == []


def every_number_of_decode_tokens(executable: Executable, layer: str) -> None:
    """Closer than `moeloom check` asks; `pytest -rP` shows the largest relative L2 of each artifact."""
    figures = [figure for m in range(1, 65) for figure in check(executable, [layer], [m], seed=m)]
    worst = max((figure for figure in figures if figure.measure == "relative L2"), key=lambda figure: figure.value)
    print(f"relative L2 up to {worst.value:.2e}, at M = {worst.tokens}")
    assert worst.value <= DECODE_L2
    assert [figure for figure in figures if not figure.passed] == []


def the_same_bytes_twice(executable: Executable, layer: str) -> None:
    x = inputs_of(executable, layer, 300, 0)["x"]
    call = executable[layer]
    assert [m for m in (*range(1, 65), 300) if not torch.equal(call(x[:m]), call(x[:m]))] == []


def test_every_number_of_decode_tokens(gpu: Executable, layer: str) -> None:
    every_number_of_decode_tokens(gpu, layer)


def test_the_same_bytes_twice(gpu: Executable, layer: str) -> None:
    the_same_bytes_twice(gpu, layer)


def test_whole_layers(whole: Path) -> None:
    """Sizes that no rank of a real deployment holds alone: what decodes them, and nothing else."""
    with load(whole, "cuda", verify="fast", poison=True) as executable:
        every_number_of_decode_tokens(executable, executable.entries[0])
        the_same_bytes_twice(executable, executable.entries[0])


@pytest.mark.parametrize("m", SWITCHES)
def test_around_the_switches(gpu: Executable, layer: str, m: int) -> None:
    assert [figure for figure in check(gpu, [layer], [m]) if not figure.passed] == []


def test_trace_agrees_with_the_program(gpu: Executable) -> None:
    for name in gpu.entries:
        for m in (1, 32, 300):
            _, ran = gpu[name].trace(**inputs_of(gpu, name, m, 0))
            assert [(r.kernel, r.op, r.tiles) for r in ran] == [
                (s.kernel, s.op, s.tiles) for s in gpu[name].launches(m)
            ]
            assert all(0 < r.seconds < 1 for r in ran)


@pytest.mark.parametrize(("before", "after", "first"), [(0, 0, 1), (1, 0, 0), (3, 4, 0), (8, 8, 0), (3, 4, 3)])
def test_any_stride_and_alignment(gpu: Executable, layer: str, before: int, after: int, first: int) -> None:
    """x of `before + width + after` elements a row, from element `first` of its memory on.

    The router is left out: its product is a library's, whose sums depend on alignment.
    """
    for m in (1, 2, 17, 65):
        inputs = inputs_of(gpu, f"{layer}.experts", m, m)
        x = inputs.pop("x")
        width = x.shape[1]
        memory = torch.full((first + m * (before + width + after),), torch.nan, dtype=x.dtype, device=x.device)
        odd = memory[first:].view(m, -1)[:, before : before + width].copy_(x)
        out = torch.full((m * width + 1,), torch.nan, dtype=x.dtype, device=x.device)[1:].view(m, width)
        gpu[f"{layer}.experts"](odd, out=out, **inputs)
        wanted = gpu[f"{layer}.experts"](x, **inputs)
        assert torch.equal(out, wanted)


def test_a_product_that_quantises_gives_what_codes_give(artifacts: Path) -> None:
    """To the byte, by the fused quantiser as by the split pair."""
    paths = [artifacts / "small" / f"gpt-oss-small{how}.moel" for how in ("", "-fused", "-split")]
    with ExitStack() as stack:
        itself, fused, split = (stack.enter_context(load(path, "cuda", verify="fast", poison=True)) for path in paths)
        name = itself.entries[0]
        launched = [{launch.kernel for launch in each[name].launches(16)} for each in (itself, fused, split)]
        assert [sum("quant" in kernel for kernel in kernels) for kernels in launched] == [0, 2, 2]
        for m in (*range(1, 65), 200, 300):
            x = inputs_of(itself, name, m, m)["x"]
            wanted = itself[name](x)
            assert torch.equal(fused[name](x), wanted) and torch.equal(split[name](x), wanted)


def test_replays_of_a_graph(gpu: Executable, layer: str) -> None:
    """A captured call gives the bytes of a call, again and again, with other inputs and fewer live tokens."""
    x = inputs_of(gpu, layer, CAPTURED, 0)["x"]
    live = torch.tensor([CAPTURED], dtype=torch.int32, device=x.device)
    gpu[layer](x, live)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gpu[layer](x, live)
    for seed, tokens in ((1, CAPTURED), (2, 5), (3, 0), (4, 1), (1, CAPTURED)):
        x.copy_(inputs_of(gpu, layer, CAPTURED, seed)["x"])
        x[tokens:] = torch.nan
        live.fill_(tokens)
        results = []
        for _ in range(2):
            out.fill_(torch.nan)
            graph.replay()
            results.append(out.clone())
        called = gpu[layer](x, live)
        assert torch.equal(results[0][:tokens], results[1][:tokens])
        assert torch.equal(results[0][:tokens], called[:tokens])
        # Shared experts are no part of the routing: they see padding too.
        assert gpu.manifest.raw["model"].get("n_shared_experts") or not results[0][tokens:].any()
        if tokens:
            assert relative_l2(results[0][:tokens], gpu[layer](x[:tokens].contiguous())) < 1e-3


def test_a_graph_of_padded_ids(gpu: Executable, layer: str) -> None:
    """Ids of -1 take no row and give 0; the sort of a captured call follows the ids of the replay."""
    name = f"{layer}.experts"
    inputs = inputs_of(gpu, name, CAPTURED, 0)
    gpu[name](**inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gpu[name](**inputs)
    experts = experts_of(gpu, name)
    assert experts is not None
    for seed, live in ((1, 9), (2, CAPTURED), (3, 0)):
        fresh = inputs_of(gpu, name, CAPTURED, seed)
        fresh["ids"][live:] = -1
        fresh["ids"][:live] %= max(1, experts // 2)  # other experts, some of them twice
        for key, tensor in fresh.items():
            inputs[key].copy_(tensor)
        graph.replay()
        assert torch.equal(out, gpu[name](**fresh)) and not out[live:].any()


def test_a_graph_of_unaligned_tensors(gpu: Executable, layer: str) -> None:
    """It holds the copies too, which follow the inputs of the replay."""
    name = f"{layer}.experts"
    inputs = inputs_of(gpu, name, CAPTURED, 0)
    x = inputs.pop("x")
    odd = torch.empty(x.shape[0], x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, 1:]
    out = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    gpu[name](odd.copy_(x), out=out, **inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu[name](odd, out=out, **inputs)
    for seed in (1, 2):
        x = inputs_of(gpu, name, CAPTURED, seed)["x"]
        odd.copy_(x)
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, gpu[name](x, **inputs))


def test_the_first_call_cannot_be_captured(artifact: Path) -> None:
    executable = load(artifact, "cuda", verify="fast")
    x = inputs_of(executable, executable.entries[0], 3, 0)["x"]
    with (
        pytest.raises(LaunchError, match="cannot capture the first call with M = 3"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        executable[executable.entries[0]](x)
    assert executable[executable.entries[0]](x).isfinite().all()


def test_a_graph_outlives_a_larger_workspace(artifact: Path) -> None:
    executable = load(artifact, "cuda", verify="fast")
    entry = executable[executable.entries[0]]
    x = inputs_of(executable, entry.name, 4, 0)["x"]
    wanted = entry(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = entry(x)
    entry(inputs_of(executable, entry.name, 600, 0)["x"])
    others = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(64)]
    graph.replay()
    assert torch.equal(out, wanted) and len(others) == 64


def test_two_streams(gpu: Executable, layer: str) -> None:
    """Calls in turns on two streams share the workspace and do not disturb each other."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    inputs = [inputs_of(gpu, layer, m, m)["x"] for m in (33, 64)]
    wanted = [gpu[layer](x) for x in inputs]
    torch.cuda.synchronize()
    found: list[tuple[int, Tensor]] = []
    for _ in range(50):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found.append((number, gpu[layer](inputs[number])))
    torch.cuda.synchronize()
    assert all(torch.equal(out, wanted[number]) for number, out in found)


def test_a_call_waits_for_nothing(gpu: Executable, layer: str) -> None:
    x = inputs_of(gpu, layer, 8, 0)["x"]
    gpu[layer](x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu[layer](x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_thread_of_its_own(gpu: Executable, layer: str) -> None:
    """A thread that never touched CUDA has no context until the runtime gives it one."""
    x = inputs_of(gpu, layer, 4, 0)["x"]
    wanted, found = gpu[layer](x), []
    thread = threading.Thread(target=lambda: found.append(gpu[layer](x)))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert torch.equal(found[0], wanted)


def test_the_cpu_gives_nearly_the_same(small: Path) -> None:
    cpu, gpu = load(small, "cpu", verify="fast"), load(small, "cuda", verify="fast")
    layer = cpu.entries[0]
    for m in (1, 9):
        inputs = inputs_of(cpu, layer, m, m)
        found = gpu[layer](**{name: tensor.cuda() for name, tensor in inputs.items()})
        assert relative_l2(found.cpu(), cpu[layer](**inputs)) < 2e-2


def test_random_weights_are_the_same_bytes(small: Path) -> None:
    cpu, gpu = load(small, "cpu", verify="fast"), load(small, "cuda", verify="fast")
    name = cpu.entries[0]
    one, other = (
        [part for weight in Replay(exe, name).weights.values() for part in weight.parts()] for exe in (cpu, gpu)
    )
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for expert in range(len(a.packed)):
            assert torch.equal(a[expert], b[expert].cpu())
