"""The simulator: built-in variables, barriers, warps, shared memory, atomics, and what can go wrong."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.errors import KernelCompileError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel, blocks
from minigrad.kernels.sim import build

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)


def run(code, out, *args, grid=1, block=32, shared_bytes=0):
    """Launch the one kernel, named ``k``, of ``code``."""
    CudaKernel(code, "k").launch(grid, block, (out, *args), shared_bytes)
    return out


def warp(expression, dtype=np.int32, block=32):
    """The value of a C++ expression in each thread of a block, where ``i`` is the thread."""
    code = (
        f"template <typename T> __global__ void k(T* out) {{ int i = threadIdx.x; out[i] = {expression}; }}"
    )
    return run(code, np.zeros(block, dtype), block=block).tolist()


# ---- built-in variables ------------------------------------------------------------------------------------


def test_every_thread_of_every_block_runs_once_with_its_indices():
    code = """
    __global__ void k(int* count, int* at) {
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        int number = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
        atomicAdd(&count[number], 1);
        at[number] = 100000 * blockIdx.z + 10000 * blockIdx.y + 1000 * blockIdx.x
                   + 100 * threadIdx.z + 10 * threadIdx.y + threadIdx.x;
    }"""
    grid, block = (2, 3, 4), (5, 2, 3)
    count, at = np.zeros(24 * 30, np.int32), np.zeros(24 * 30, np.int32)
    for seed in (0, 7):
        with sim.seed(seed):
            run(code, count, at, grid=grid, block=block)
    expected = [
        100000 * z + 10000 * y + 1000 * x + 100 * tz + 10 * ty + tx
        for z, y, x in np.ndindex(4, 3, 2)
        for tz, ty, tx in np.ndindex(3, 2, 5)
    ]
    assert (count == 2).all()
    assert at.tolist() == expected


# ---- warps -------------------------------------------------------------------------------------------------


def test_shuffles():
    lanes = range(32)
    assert warp("__shfl_sync(~0u, i * i, 5)") == [25] * 32
    assert warp("__shfl_sync(~0u, i, i + 33)") == [(i + 1) % 32 for i in lanes]
    assert warp("__shfl_sync(~0u, i, 1, 8)") == [i // 8 * 8 + 1 for i in lanes]
    assert warp("__shfl_up_sync(~0u, i, 3)") == [i - 3 if i >= 3 else i for i in lanes]
    assert warp("__shfl_up_sync(~0u, i, 3, 8)") == [i - 3 if i % 8 >= 3 else i for i in lanes]
    assert warp("__shfl_down_sync(~0u, i, 30)") == [i + 30 if i < 2 else i for i in lanes]
    assert warp("__shfl_down_sync(~0u, i, 1, 4)") == [i + 1 if i % 4 < 3 else i for i in lanes]
    assert warp("__shfl_xor_sync(~0u, i, 17)") == [i ^ 17 for i in lanes]
    assert warp("__shfl_xor_sync(~0u, i / 2.0, 1)", np.float64) == [(i ^ 1) / 2 for i in lanes]


def test_votes():
    assert warp("__ballot_sync(~0u, i % 3 == 0)", np.uint32) == [sum(1 << i for i in range(0, 32, 3))] * 32
    assert warp("__any_sync(~0u, i == 31) * 2 + __all_sync(~0u, i < 31)") == [2] * 32
    assert warp("__any_sync(~0u, i > 31) * 2 + __all_sync(~0u, i < 32)") == [1] * 32


def test_a_warp_that_the_block_does_not_fill():
    assert warp("__shfl_down_sync(~0u, i, 1)", block=40)[32:39] == [33, 34, 35, 36, 37, 38, 39]
    assert warp("__ballot_sync(~0u, 1)", np.uint32, block=40)[32:] == [0xFF] * 8


def test_halves_of_a_warp_go_separate_ways():
    code = """
    __global__ void k(int* out) {
        int i = threadIdx.x, sum = i;
        unsigned mask = i < 16 ? 0x0000FFFF : 0xFFFF0000;
        for (int turn = 0; turn < (i < 16 ? 4 : 2); turn++)  // not equally often
            for (int step = 1; step < 16; step *= 2) sum += __shfl_xor_sync(mask, sum, step);
        out[i] = sum;
    }"""
    for seed in (0, 1, 2):
        with sim.seed(seed):
            out = run(code, np.zeros(32, np.int32))
        assert out.tolist() == [sum(range(16)) * 16**3] * 16 + [sum(range(16, 32)) * 16] * 16


def test_lanes_that_have_ended_are_not_waited_for():
    code = """
    __global__ void k(int* out) {
        if (threadIdx.x % 2) return;
        out[threadIdx.x] = __popc(__ballot_sync(~0u, 1));
    }"""
    assert run(code, np.zeros(64, np.int32), block=64).tolist() == [16, 0] * 32


# ---- shared memory and barriers ----------------------------------------------------------------------------

REVERSE = """
template <typename T>
__global__ void k(T* out, const T* in) {
    %s
    tile[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    %s
    out[blockIdx.x * blockDim.x + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}"""


@pytest.mark.parametrize(
    "declaration",
    [
        "__shared__ T tile[64];",
        "__shared__ __align__(16) T tile[60 + 4];",
        "alignas(16) __shared__ T tile[64];",
        "__shared__ T data[64]; __shared__ T *tile; tile = data;",
        "__shared__ T unused[3],\n        tile[64];",
        "extern __shared__ T tile[];",
        "__shared__ T all[2][64]; T* tile = all[1];",
        "/* not a __shared__ T tile[9]; */ static __shared__ T tile[64]; // __shared__ T tile[8];",
    ],
)
def test_shared_memory(declaration):
    x = np.arange(256, dtype=np.float32)
    for seed in (0, 1, 2):
        with sim.seed(seed):
            code = REVERSE % (declaration, "__syncthreads();")
            out = run(code, np.zeros_like(x), x, grid=4, block=64, shared_bytes=256)
        assert np.array_equal(out, x.reshape(4, 64)[:, ::-1].ravel())


def test_shared_scalars_and_variables_of_two_types():
    code = """
    __global__ void k(double* out) {
        __shared__ int first;
        __shared__ double second, third[2];
        if (threadIdx.x == 0) { first = 1; second = 2; third[1] = 3; }
        __syncthreads();
        out[threadIdx.x] = first + second + third[1];
    }"""
    assert run(code, np.zeros(32)).tolist() == [6] * 32


def test_a_forgotten_barrier_shows_under_some_thread_order():
    x = np.arange(1, 65, dtype=np.float32)
    code = REVERSE % ("__shared__ T tile[64];", "")
    right = 0
    for seed in range(5):
        with sim.seed(seed), sim.checks(False):  # without them, it shows in the result
            right += np.array_equal(run(code, np.zeros_like(x), x, block=64), x[::-1])
    assert right == 0


def test_shared_memory_is_poisoned_when_a_block_starts():
    code = """
    __global__ void k(float* out) {
        __shared__ float fixed[4];
        extern __shared__ float dynamic[];
        out[blockIdx.x] = fixed[0] + dynamic[0];
        fixed[0] = dynamic[0] = 1;
    }"""
    with sim.num_threads(1), sim.checks(False):
        assert np.isnan(run(code, np.zeros(3, np.float32), grid=3, block=1, shared_bytes=16)).all()


def test_too_much_static_shared_memory():
    code = "__global__ void k(float* out) { __shared__ float big[12289]; out[0] = big[0]; }"
    with pytest.raises(
        KernelLaunchError, match="__shared__ variables take 49156 bytes; static ones may take 49152"
    ):
        run(code, np.zeros(1, np.float32), block=1)


# ---- atomics, functions, vector types ----------------------------------------------------------------------


def test_atomics():
    code = """
    __global__ void k(int* out, float* sum) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(&out[0], i);
        atomicMax(&out[1], i);
        atomicMin(&out[2], -i);
        atomicOr(&out[3], 1 << (i % 8));
        for (int old = out[4], seen; (seen = atomicCAS(&out[4], old, old + 2)) != old;) old = seen;
        atomicAdd(sum, 0.5f);
        atomicExch(&out[5], 9);
    }"""
    sum_, n = np.zeros(1, np.float32), 64 * 128
    with sim.num_threads(4):
        out = run(code, np.zeros(6, np.int32), sum_, grid=64, block=128)
    assert out.tolist() == [n * (n - 1) // 2, n - 1, 1 - n, 255, 2 * n, 9]
    assert sum_.item() == n / 2


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rsqrtf(4.0f)", 0.5),
        ("max(2, 3.5) + min(1, 2)", 4.5),
        ("fmaxf(NAN, 2.0f)", 2),
        ("isnan(sqrt(-1.0)) + isinf(INFINITY)", 2),
        ("exp2(3.0) + __popc(255u) + __clz(1)", 47),
        ("make_float4(1, 2, 3, 4).z", 3),
        ("make_double2(1, 2).y", 2),
        ("__int_as_float(0x40490fdb) > 3.14", 1),
        ("sizeof(float4) + sizeof(int2) + sizeof(float3)", 36),
        ("warpSize", 32),
    ],
)
def test_device_functions(expression, expected):
    assert warp(expression, np.float64, block=1) == [expected]


def test_device_functions_and_constants_of_the_source():
    code = """
    __constant__ int table[3] = {5, 6, 7};
    template <int N> __device__ __forceinline__ int times(int x) { return N * x; }
    extern "C" __global__ void __launch_bounds__(32) k(int* __restrict__ out) {
        #pragma unroll
        for (int i = 0; i < 3; i++) out[i] = times<2>(table[i]);
    }"""
    assert run(code, np.zeros(3, np.int32), block=1).tolist() == [10, 12, 14]


# ---- failures ----------------------------------------------------------------------------------------------

DEADLOCK = """__global__ void k(float* out) {
    if (threadIdx.x < 16)
        __syncthreads();
    else if (threadIdx.x < 48)
        __syncwarp();
}"""


def test_a_deadlock_is_reported_with_its_places():
    with pytest.raises(KernelLaunchError) as error:
        run(DEADLOCK, np.zeros(1, np.float32), grid=(1, 2), block=64)
    assert "k, block (0, 0, 0): deadlock" in str(error.value)
    assert "16 wait in __syncthreads() at kernel.cu:3, the first of them thread (0, 0, 0)" in str(error.value)
    assert "16 wait in __syncwarp() at kernel.cu:5, the first of them thread (16, 0, 0)" in str(error.value)
    assert "32 have ended" in str(error.value)


def test_after_a_failure_the_next_launch_is_sound():
    for _ in range(3):
        with pytest.raises(KernelLaunchError, match="deadlock"):
            run(DEADLOCK, np.zeros(1, np.float32), block=64)
        test_shared_scalars_and_variables_of_two_types()
        test_halves_of_a_warp_go_separate_ways()


def test_a_lane_outside_of_its_own_mask():
    message = r"k<int>, block \(0, 0, 0\), thread \(0, 0, 0\): __ballot_sync\(\) .*leaves out lane 0"
    with pytest.raises(KernelLaunchError, match=message):
        warp("__ballot_sync(2, 1)")


def test_trap_and_exceptions_become_errors():
    for code in ("if (threadIdx.x == 3) __trap();", "if (threadIdx.x == 3) throw 1;"):
        with (
            sim.checks(False),  # to which the exception's own memory is foreign
            pytest.raises(
                KernelLaunchError, match=r"thread \(3, 0, 0\): (__trap\(\) at kernel.cu:1|C\+\+ exc)"
            ),
        ):
            run(f"__global__ void k(float* out) {{ {code} }}", np.zeros(1, np.float32))


# ---- compiling ---------------------------------------------------------------------------------------------


@pytest.fixture
def new_cache(tmp_path, monkeypatch):
    """A cache that holds the simulator's runtime, which takes ten times as long to compile as a kernel."""
    runtime = build._runtime()
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path))
    cache = tmp_path / "sim"
    cache.mkdir()
    shutil.copy(runtime, cache)
    return cache


def test_compile_errors_name_the_lines_of_the_source(tmp_path):
    (tmp_path / "helper.cuh").write_text("#pragma once\n__device__ int broken() { return missing; }\n")
    path = tmp_path / "bad.cu"
    path.write_text(
        '// one\n#include "helper.cuh"\n#include "helper.cuh"\n'
        "__global__ void k(int* out) {\n  out[0] = 1\n}\n"
    )
    with pytest.raises(KernelCompileError) as error:
        CudaKernel(path, "k").launch(1, 1, (np.zeros(1, np.int32),))
    assert "k does not compile" in str(error.value)
    assert f"{tmp_path}/helper.cuh:2:" in str(error.value)
    assert f"{path}:5:" in str(error.value)


def test_compile_errors_after_shared_declarations_keep_their_lines():
    code = "__global__ void k(int* out) {\n  __shared__ int a[2],\n      b[3];\n  out[0] = nothing;\n}"
    with pytest.raises(KernelCompileError, match=r"kernel.cu:4:\d+: error: .nothing. was not declared"):
        run(code, np.zeros(1, np.int32))


SET = "__global__ void k(int* out) { out[0] = %d; }"


def test_libraries_are_cached_by_content(new_cache):
    def kernel_libraries():
        return {path.name: path.stat().st_mtime_ns for path in new_cache.glob("k-*.so")}

    assert run(SET % 1, np.zeros(1, np.int32)).item() == 1
    first = kernel_libraries()
    assert run(SET % 1, np.zeros(1, np.int32)).item() == 1
    assert kernel_libraries() == first and len(first) == 1
    assert run(SET % 2, np.zeros(1, np.int32)).item() == 2
    assert len(kernel_libraries()) == 2
    assert not list(new_cache.glob("*.tmp"))


def test_a_damaged_library_is_built_anew(new_cache):
    code, out = "__global__ void damaged(int* out) { out[0] += 2; }", np.zeros(1, np.int32)
    CudaKernel(code, "damaged").launch(1, 1, (out,))
    (library,) = new_cache.glob("damaged-*.so")
    library.unlink()  # the file that is loaded stays as it is
    library.write_bytes(b"not a library")
    CudaKernel(code, "damaged").launch(1, 1, (out,))
    assert out.item() == 4 and ctypes.CDLL(str(library)).sim_entry


def test_an_unwritable_cache_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(KernelCompileError, match=r"cannot write to its cache .*file.*set MINIGRAD_CACHE"):
        run(SET % 3, np.zeros(1, np.int32))


def test_cache_directory(monkeypatch):
    monkeypatch.setenv("MINIGRAD_CACHE", "/a")
    assert str(sim.cache_directory()) == "/a/sim"
    monkeypatch.delenv("MINIGRAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert str(sim.cache_directory()) == "/b/minigrad/sim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert str(sim.cache_directory()) == "/c/.cache/minigrad/sim"


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert sim.compiler() is None and not sim.is_available()
    with pytest.raises(KernelCompileError, match=r"needs a C\+\+ compiler.*install g\+\+"):
        run(SET % 5, np.zeros(1, np.int32))


def test_cxx_chooses_the_compiler(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -m compiler")
    assert sim.compiler() == f"{sys.executable} -m compiler"
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert sim.compiler() in ("g++", "clang++", None)


def test_two_processes_build_the_same_library_at_once(new_cache):
    program = (
        "import numpy as np\n"
        "from minigrad.kernels.launch import CudaKernel\n"
        "out = np.zeros(1, np.int32)\n"
        f"CudaKernel({SET % 6!r}, 'k').launch(1, 1, (out,))\n"
        "print(out.item())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0] for process in processes] == ["6\n", "6\n"]
    assert len(list(new_cache.glob("*.so"))) == 2  # the runtime and the kernel
    assert not list(new_cache.glob("*.tmp"))


# ---- settings and threads ----------------------------------------------------------------------------------


def test_seed_and_num_threads():
    before = sim.get_seed(), sim.get_num_threads()
    with sim.seed(2**64 - 1), sim.num_threads(3):
        assert (sim.get_seed(), sim.get_num_threads()) == (2**64 - 1, 3)
    assert (sim.get_seed(), sim.get_num_threads()) == before
    for wrong in (-1, 2**64, 1.5):
        with pytest.raises(ValueError, match="seed is an integer"):
            sim.set_seed(wrong)
    with pytest.raises(ValueError, match="number of threads is an integer from 1, got 0"):
        sim.set_num_threads(0)


@pytest.mark.parametrize(
    ("value", "expected"), [("12", "12"), ("", "0"), ("no", "ValueError: MINIGRAD_SIM_SEED='no'")]
)
def test_seed_from_the_environment(value, expected):
    program = "from minigrad.kernels import sim; print(sim.get_seed())"
    environment = {**os.environ, "MINIGRAD_SIM_SEED": value}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert expected in (result.stdout or result.stderr)


def test_launches_from_several_python_threads():
    kernel = CudaKernel(REVERSE % ("__shared__ T tile[64];", "__syncthreads();"), "k")
    x = np.arange(6400, dtype=np.float32)
    results = [np.zeros_like(x) for _ in range(4)]

    def launch(out):
        for _ in range(5):
            kernel.launch(blocks(x.size, 64), 64, (out, x))

    threads = [threading.Thread(target=launch, args=(out,)) for out in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in results:
        assert np.array_equal(out, x.reshape(-1, 64)[:, ::-1].ravel())
