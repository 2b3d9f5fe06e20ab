"""What is read from code objects, against NVIDIA's own tool and against kernels made to lack registers."""

import re
import subprocess
from pathlib import Path

import pytest
import triton

from moeloom.lowering.triton.architecture import ARCHITECTURES
from moeloom.lowering.triton.assembly import (
    MATRIX,
    WIDE_LOADS,
    amdgcn_resources,
    cubin_resources,
    instructions,
    matching,
    parameters,
)
from moeloom.lowering.triton.build import ASSEMBLY, CODE, compile_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
PARAMS = {"num_stages": 2}
KERNELS = {
    "scaled": {"template": "scaled", "params": {"columns": 2880, "num_warps": 4, **PARAMS}},
    # 128 values of a row in each of 1024 threads, which have 64 (CUDA) or 128 (AMD) registers.
    "crowded": {"template": "crowded", "params": {"columns": 1 << 18, "num_warps": 0, **PARAMS}},
    "product": {"template": "product", "params": {"columns": 256, "block": 64, "num_warps": 4, **PARAMS}},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compiled(own_templates, cache):
    """compiled(architecture) -> the folder of each kernel above."""

    def folders(name: str) -> dict[str, Path]:
        architecture = ARCHITECTURES[name]
        full = {"num_warps": 1024 // architecture.warp_size}
        kernels = {**KERNELS, "crowded": {**KERNELS["crowded"], "params": KERNELS["crowded"]["params"] | full}}
        return compile_kernels(kernels, architecture, cache, lambda done, total: None)

    return folders


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_reads_a_cubin_as_cuobjdump_does(compiled, architecture):
    for folder in compiled(architecture).values():
        command = [str(CUOBJDUMP), "-res-usage", str(folder / CODE)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        wanted = re.search(r"REG:(\d+) STACK:(\d+)", said)
        found = cubin_resources((folder / CODE).read_bytes())
        assert (found.registers, found.stack) == tuple(map(int, wanted.groups()))


@pytest.mark.parametrize("architecture", ["gfx950", "gfx942", "sm_90"])
def test_notices_spills(compiled, architecture):
    folders = compiled(architecture)
    for kernel, folder in folders.items():
        code, text = (folder / CODE).read_bytes(), (folder / ASSEMBLY).read_text()
        found = cubin_resources(code) if architecture == "sm_90" else amdgcn_resources(text)
        assert (found.spills > 0, found.stack > 0) == (kernel == "crowded",) * 2, kernel


@pytest.mark.parametrize(
    ("architecture", "multiply"),
    [("gfx950", "v_mfma_f32_"), ("gfx942", "v_mfma_f32_"), ("sm_80", "mma.sync"), ("sm_90", "wgmma.mma_async")],
)
def test_finds_matrix_instructions(compiled, architecture, multiply):
    folders = compiled(architecture)
    found = matching(instructions((folders["product"] / ASSEMBLY).read_text()), MATRIX)
    assert found
    assert all(name.startswith(multiply) for name in found)
    assert matching(instructions((folders["scaled"] / ASSEMBLY).read_text()), MATRIX) == {}


@pytest.mark.parametrize("architecture", ["gfx950", "sm_90"])
def test_lists_parameters_without_hidden_ones(compiled, architecture):
    text = (compiled(architecture)["scaled"] / ASSEMBLY).read_text()
    wanted = ["*", "i64", "*", "*", "i32", "*", "*"]
    assert parameters(text) == wanted
    hidden = "      - .offset:         56\n        .size:           4\n        .value_kind:     hidden_block_count_x\n"
    assert (
        parameters(text.replace("    .group_segment_fixed_size:", f"{hidden}    .group_segment_fixed_size:")) == wanted
    )


AMDGCN = """
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\tglobal_load_dwordx2 v[0:1], v[4:5], off
\tbuffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen lds
\tglobal_load_lds_dwordx4 v[4:5], off
\tglobal_load_lds_dword v[4:5], off
\tglobal_store_dwordx4 v[4:5], v[0:3], off
\ts_load_dwordx4 s[0:3], s[4:5], 0x0
\tds_read_b128 v[0:3], v4
"""
PTX = """
\t@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
\t@!%p1 ld.global.v2.b64 { %rd1, %rd2 }, [ %rd1 + 0 ];
\tld.global.L1::evict_last.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
\tld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
\tld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r1 + 0 ];
\t@%p1 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
\tcp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x8, %r2;
\tst.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };
\t.reg .pred %p<3>;
"""


@pytest.mark.parametrize(("text", "count"), [(AMDGCN, 3), (PTX, 4)], ids=["amdgcn", "ptx"])
def test_counts_loads_of_sixteen_bytes(text, count):
    assert sum(matching(instructions(text), WIDE_LOADS).values()) == count
    assert instructions(text).total() == 8
