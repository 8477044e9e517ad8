"""Functions in C++ and PTX that simulated kernels call: cuda.declare_device, and files to link."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.simulated import simulator

from gpuconv import lab
from gpuconv.lab import linked, ptx

cuda = pytest.importorskip("numba.cuda")
if not hasattr(cuda, "CUSource"):
    pytest.skip("C++ from memory came with numba-cuda 0.21", allow_module_level=True)
nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="C++ is compiled by NVRTC")
try:
    nvrtc.nvrtcVersion()
except RuntimeError:
    pytest.skip("the library NVRTC is missing", allow_module_level=True)

from numba.cuda import types  # noqa: E402 - there is none in the versions that are left out above

FLOATS = types.CPointer(types.float32)


class Pointers:
    """Stands for cffi.FFI, which is in no list of this project's packages: an array stands for its pointer."""

    from_buffer = staticmethod(lambda array: array)


ffi = Pointers()


def declared(name, signature, text, abi="c"):
    """A function of C++, whose first line is line 2."""
    source = cuda.CUSource(f'\nextern "C" __device__ {text}', name=f"{name}.cu")
    return cuda.declare_device(name, signature, link=source, abi=abi)


def test_both_conventions_types_and_device_functions_between():
    """Numba's convention has a pointer to the result in front. Integers are cut off as in compiled code."""
    product = declared(
        "product",
        "float32(float32, float32)",
        "int product(float* r, float x, float y) { *r = x * y; return 0; }",
        "numba",
    )
    added = declared(
        "added", "uint8(uint8, int64)", "unsigned char added(unsigned char x, long long y) { return x + y; }"
    )
    length = declared(
        "length", "float64(complex128)", "double length(double x, double y) { return sqrt(x * x + y * y); }"
    )
    odd = declared("odd", types.boolean(types.int32), "bool odd(int x) { return x & 1; }")

    @cuda.jit(device=True)
    def between(x, y):
        return product(x, y)

    @cuda.jit
    def kernel(x, y, z, bytes_, lengths, odds):
        i = cuda.grid(1)
        if i < x.size:
            z[i] = between(x[i], y[i])
            bytes_[i] = added(250, i)
            lengths[i] = length(complex(3 * i, 4 * i))
            odds[i] = odd(i)

    generator = np.random.default_rng(0)
    x, y = generator.random(10, np.float32), generator.random(10, np.float32)
    z, bytes_, lengths, odds = np.zeros(10, np.float32), np.zeros(10, np.uint8), np.zeros(10), np.zeros(10, bool)
    with simulator.trace() as report:
        kernel[2, 8](x, y, z, bytes_, lengths, odds)
    assert report.clean, str(report)
    np.testing.assert_array_equal(z, x * y)
    np.testing.assert_array_equal(bytes_, (250 + np.arange(10)).astype(np.uint8))
    np.testing.assert_array_equal(lengths, 5.0 * np.arange(10))
    np.testing.assert_array_equal(odds, np.arange(10) % 2 == 1)


def test_pointers_indices_shared_memory_and_barriers():
    """A function knows its thread, has shared memory of the block, and waits at the block's barriers."""
    reverse = declared(
        "reverse",
        types.void(FLOATS),
        """void reverse(float* x) {
            __shared__ float kept[32];
            float* mine = x + blockIdx.x * blockDim.x;
            kept[threadIdx.x] = mine[threadIdx.x];
            __syncthreads();
            mine[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
        }""",
    )

    @cuda.jit
    def kernel(x):
        reverse(ffi.from_buffer(x))

    x = np.arange(96, dtype=np.float32)
    with simulator.trace() as report:
        kernel[3, 32](x)
    assert report.clean, str(report)
    np.testing.assert_array_equal(x.reshape(3, 32), np.arange(96).reshape(3, 32)[:, ::-1])


def test_slices_and_local_arrays_as_pointers():
    """A pointer into an array reaches what lies before it, too; a thread's own array is its own."""
    fill = declared(
        "fill",
        types.void(FLOATS, FLOATS),
        "void fill(float* own, float* x) { own[1] = x[-1]; x[0] += own[0] + own[1]; }",
    )

    @cuda.jit
    def kernel(x):
        i = cuda.grid(1)
        own = cuda.local.array(2, types.float32)
        own[0] = 10 * i
        fill(ffi.from_buffer(own), ffi.from_buffer(x[2 * i + 1 :]))
        x[2 * i + 1] += own[1]

    x = np.arange(8, dtype=np.float32)
    with simulator.trace() as report:
        kernel[1, 4](x)
    assert report.clean, str(report)
    np.testing.assert_array_equal(x, [0, 1, 2, 3 + 10 + 4, 4, 5 + 20 + 8, 6, 7 + 30 + 12])


def test_a_race_in_linked_code_is_found_at_the_line_that_calls():
    """The accesses behind a pointer are recorded as those of the kernel's line."""
    store = declared("store", types.void(FLOATS, types.int32), "void store(float* x, int i) { x[i / 2] = i; }")

    @cuda.jit
    def kernel(x):
        store(ffi.from_buffer(x), cuda.grid(1))

    with simulator.trace() as report:
        kernel[1, 8](np.zeros(4, np.float32))
    line = kernel.fn.__code__.co_firstlineno + 2
    assert report.races
    assert f"{Path(__file__).name}:{line}" in str(report.races[0])


def test_variables_keep_their_values_between_launches():
    """As those of a module on a GPU do."""
    count = cuda.declare_device(
        "count", "int32()", abi="c",
        link=cuda.CUSource('__device__ int n; extern "C" __device__ int count() { return atomicAdd(&n, 1); }'),
    )  # fmt: skip

    @cuda.jit
    def kernel(seen):
        seen[count() % 8] += 1

    seen = np.zeros(8, np.int32)
    for _ in range(2):
        kernel[1, 4](seen)
    np.testing.assert_array_equal(seen, np.ones(8))


BROKEN = {
    "out of bounds": (
        "void f(float* x) {\n x[4] = 1; }",
        r"kernel: tid=\[0, 0, 0\].*f: st\..* in no array.*f\.cu:3",
    ),
    "does not compile": ("void f(float* x) { *x = yes; }", r'f\.cu does not compile:\nf\.cu\(2\): error: .*"yes"'),
    "has another name": ("void g(float* x) { }", r'f is in no linked file: declare it extern "C".*\[\'g\'\]'),
    "shuffles": ("void f(float* x) { *x = __shfl_sync(~0u, *x, 0); }", r"shfl.*threads work together in it"),
    "takes more": ("void f(float* x, int n) { }", r"f: its signature makes 1 parameters, the code has 2"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_linked_code_cannot_do_is_said_with_its_line(what):
    """An access outside of what it was given, an error of the compiler, a wrong name, an operation of a warp."""
    text, words = BROKEN[what]
    f = declared("f", types.void(FLOATS), text)

    @cuda.jit
    def kernel(x):
        f(ffi.from_buffer(x))

    with pytest.raises(lab.SimulationError, match=f"(?s){words}"):
        kernel[1, 1](np.zeros(4, np.float32))


def test_arguments_that_do_not_fit_are_refused():
    """A number for a pointer, an array of another type, too few."""
    f = declared("f", types.void(FLOATS), "void f(float* x) { }")

    @cuda.jit
    def kernel(x):
        f(x)

    for wrong, words in ((3, "a pointer, which ffi.from_buffer"), (np.zeros(4), "an array of float64 is given")):
        with pytest.raises(TypeError, match=words):
            kernel[1, 1](wrong)
    with pytest.raises(TypeError, match="Return type must be provided"):
        cuda.declare_device("f", (FLOATS,))
    with pytest.raises(lab.SimulationError, match="device functions can be called in a kernel only"):
        f(np.zeros(4, np.float32))


def test_where_no_nvrtc_is_installed_it_is_said_what_to_install(monkeypatch):
    """C++ needs it; nothing else does."""
    f = declared("f", "int32()", "int f() { return 20261128; }")

    @cuda.jit
    def kernel(x):
        x[0] = f()

    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(
        lab.SimulationError, match=r"f\.cu: C\+\+ is compiled by NVRTC.*pip install 'numba-cuda\[cu13\]'"
    ):
        kernel[1, 1](np.zeros(1, np.int32))


def test_files_that_the_kernel_names(tmp_path):
    """``link=`` of ``cuda.jit``: C++ and PTX. Machine code is refused, and so is no file at all."""
    code = """.version 8.0 .target sm_80 .address_size 64
    .visible .func (.param .b32 r) twice(.param .b32 x) {
        .reg .b32 %a;
        ld.param.b32 %a, [x];
        add.s32 %a, %a, %a;
        st.param.b32 [r], %a;
        ret;
    }"""
    (tmp_path / "twice.ptx").write_text(code)
    (tmp_path / "four.cu").write_text(
        'extern "C" __device__ int twice(int); extern "C" __device__ int four(int x) { return twice(twice(x)); }'
    )
    four = cuda.declare_device("four", "int32(int32)", abi="c")
    files = [str(tmp_path / name) for name in ("twice.ptx", "four.cu")]

    @cuda.jit(link=files)
    def kernel(x):
        x[cuda.grid(1)] = four(cuda.grid(1))

    x = np.zeros(5, np.int32)
    kernel[1, 5](x)
    np.testing.assert_array_equal(x, 4 * np.arange(5))
    (tmp_path / "four.cubin").write_bytes(b"")
    for link, words in (([], "no file is linked"), ([str(tmp_path / "four.cubin")], "is machine code")):
        with pytest.raises(lab.SimulationError, match=words):
            cuda.jit(link=link)(kernel.fn)[1, 5](x)


def test_a_loop_without_end_in_linked_code_is_ended():
    """The limit of a launch holds in it, and the kernel's line is named."""
    f = declared("f", types.void(FLOATS), "void f(float* x) { while (*(volatile float*)x == 0) {} }")

    @cuda.jit
    def kernel(x):
        f(ffi.from_buffer(x))

    with pytest.raises(
        lab.SimulationError, match=r"kernel: ended after 0\.3 s; its threads stand at .*test_linked\.py"
    ):
        lab.simulate(kernel, limit=0.3)[1, 1](np.zeros(4, np.float32))


REAL = """
import numpy as np
from gpuconv import lab
from gpuconv.lab import linked, ptx
from numba import cuda

twice = cuda.declare_device("twice", "int32(int32)", abi="c", link=cuda.CUSource(
    'extern "C" __device__ int twice(int x) { return 2 * x; }'))

@cuda.jit
def kernel(x):
    i = cuda.grid(1)
    if i < x.size:
        x[i] = twice(x[i])

for run in (lab.simulate(kernel), lab.interpret(kernel)):
    x = np.arange(5, dtype=np.int32)
    run[1, 8](x)
    assert (x == 2 * np.arange(5)).all(), x
"""


@pytest.mark.slow
def test_where_numba_cuda_is_for_a_real_gpu(tmp_path):
    """``simulate`` finds the files of a function that was declared for a GPU, and ``interpret`` links them."""
    (tmp_path / "real.py").write_text(REAL)
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, "real.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- kernels in C++, whose PTX is interpreted ------------------------------------------------------------

RIGHT, WITHIN_A_BLOCK, TWICE = range(3)  # how its blocks wait for each other
CLUSTER = """
enum { RIGHT, WITHIN_A_BLOCK, TWICE };
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

extern "C" __global__ void __cluster_dims__(4, 1, 1) rotate(const float* x, float* y, unsigned* where, int how) {
    __shared__ float mine[32];
    cg::cluster_group cluster = cg::this_cluster();
    unsigned rank = cluster.block_rank(), i = blockIdx.x * blockDim.x + threadIdx.x;
    mine[threadIdx.x] = x[i];
    if (how == WITHIN_A_BLOCK) __syncthreads(); else cluster.sync();
    if (how == TWICE) cluster.barrier_arrive();
    float* other = cluster.map_shared_rank(mine, (rank + 1) % cluster.num_blocks());
    y[i] = other[31 - threadIdx.x];
    where[i] = 100 * cluster.query_shared_rank(other) + 10 * cluster.block_index().x + cluster.dim_blocks().x;
    atomicAdd(other + threadIdx.x, 0.0f);
    cluster.sync();  // nobody leaves while others read from it
}
"""


@functools.cache
def cluster_kernel():
    """Its PTX."""
    return linked.compiled("rotate.cu", CLUSTER, (9, 0))


def rotated(how=RIGHT, blocks=8):
    """What the kernel makes of 32 elements a block."""
    x, y, where = (
        np.arange(32 * blocks, dtype=np.float32),
        np.zeros(32 * blocks, np.float32),
        np.zeros(32 * blocks, "u4"),
    )
    ptx.run_text(cluster_kernel(), blocks, 32, [x, y, where, how])
    return y.reshape(-1, 32), where.reshape(-1, 32)


@pytest.mark.slow
def test_clusters_of_blocks_and_their_shared_memory():
    """Blocks of a cluster read each other's shared memory, and wait for each other."""
    y, where = rotated()
    for block in range(8):
        next_ = block // 4 * 4 + (block + 1) % 4
        np.testing.assert_array_equal(y[block], 32 * next_ + np.arange(32)[::-1])
        np.testing.assert_array_equal(where[block], 100 * (next_ % 4) + 10 * (block % 4) + 4)


@pytest.mark.slow
def test_clusters_in_three_dimensions():
    """Each block reads what the one in the opposite corner of its cluster wrote, and where that is in the grid."""
    text = """
    #include <cooperative_groups.h>
    namespace cg = cooperative_groups;
    extern "C" __global__ void __cluster_dims__(1, 2, 3) opposite(unsigned* y) {
        __shared__ unsigned mine[4];
        cg::cluster_group cluster = cg::this_cluster();
        dim3 at = cluster.block_index(), all = cluster.dim_blocks();
        if (threadIdx.x == 0) {
            mine[0] = blockIdx.x; mine[1] = blockIdx.y; mine[2] = blockIdx.z;
            mine[3] = at.x + all.x * (at.y + all.y * at.z);
        }
        cluster.sync();
        unsigned* other = cluster.map_shared_rank(mine, cluster.num_blocks() - 1 - cluster.block_rank());
        y[4 * (blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)) + threadIdx.x] = other[threadIdx.x];
        cluster.sync();
    }
    """
    y = np.zeros((6, 4, 2, 4), np.uint32)
    ptx.run_text(linked.compiled("opposite.cu", text, (9, 0)), (2, 4, 6), 4, [y])
    for z, row, x in np.ndindex(6, 4, 2):
        other = x, row // 2 * 2 + 1 - row % 2, z // 3 * 3 + 2 - z % 3
        assert y[z, row, x].tolist() == [*other, other[1] % 2 + 2 * (other[2] % 3)]


@pytest.mark.slow
def test_mistakes_with_clusters():
    """A barrier of the block is none of the cluster; an arrival needs its wait; all clusters are full."""
    with pytest.raises(lab.PtxError, match=r"race in .* of another block wrote, with no cluster barrier.*rotate\.cu:"):
        rotated(WITHIN_A_BLOCK)
    with pytest.raises(lab.PtxError, match="a second arrival at the barrier of the cluster"):
        rotated(TWICE)
    with pytest.raises(lab.PtxError, match=r"clusters of \(4, 1, 1\) blocks in a grid of \(6, 1, 1\)"):
        rotated(blocks=6)
