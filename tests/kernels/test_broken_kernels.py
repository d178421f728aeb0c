"""Mistakes that people make in CUDA kernels: each is found, with the lines and with advice.

Every kernel of the table has a place marked ``@``, where it stands once as it should be, and once with a
mistake. The sound one must compute what it says, with no complaint.
"""

import re
import textwrap
from dataclasses import dataclass, field

import numpy as np
import pytest

from minigrad.kernels import sim
from minigrad.kernels.errors import KernelAccessError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

rng = np.random.default_rng(0)
X = rng.integers(-9, 9, 1000).astype(np.float32)  # whole numbers: sums are exact in any order
LOW, SHARED = "before the first element", "the shared variable"


@dataclass
class Mistake:
    """A kernel, its sound and its broken piece, and what is to be said of the latter.

    Attributes:
        code: with ``@`` for the piece. Its first line is line 1.
        says: regular expressions that the message must match.
        arrays: the arguments, the first of them the output, which starts as :func:`sim.empty`.
        expected: what the sound kernel leaves in the output.
    """

    code: str
    sound: str
    broken: str
    says: tuple[str, ...]
    arrays: tuple
    expected: np.ndarray
    grid: int | tuple = 1
    block: int | tuple = 64
    error: type = KernelAccessError
    shared_bytes: int = 0
    scalars: tuple = field(default=())


def out(size, dtype=np.float32):
    """A place for an output of that size."""
    return (size, dtype)


SCAN = np.cumsum(X[:64])

MISTAKES = {
    # ---- bounds ----
    "no bound in the last block": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            @ y[i] = 2 * x[i];
        }
        """,
        "if (i < n)",
        "",
        (
            r"block \(15, 0, 0\), thread \(40, 0, 0\): reads 4 bytes at x\[1000\] \(kernel.cu:3\)",
            "compare the index",
        ),
        (out(1000), X),
        2 * X,
        grid=16,
        scalars=(1000,),
    ),
    "off by one": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i @ n) y[i] = x[n - 1 - i];
        }
        """,
        "<",
        "<=",
        (r"thread \(40, 0, 0\): reads 4 bytes at x\[-1\] \(kernel.cu:3\)", LOW),
        (out(1000), X),
        X[::-1],
        grid=16,
        scalars=(1000,),
    ),
    "a stencil without its edges": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            float left = @ x[i - 1], right = i < 63 ? x[i + 1] : 0;
            y[i] = left + right;
        }
        """,
        "i == 0 ? 0 :",
        "",
        (r"thread \(0, 0, 0\): reads 4 bytes at x\[-1\] \(kernel.cu:3\)", LOW),
        (out(64), X[:64].copy()),
        np.convolve(X[:64], [1, 0, 1])[1:-1],
    ),
    "rows and columns exchanged": Mistake(
        """
        __global__ void k(float* y, const float* x, int h, int w) {
            int r = threadIdx.y, c = threadIdx.x;
            if (r < h && c < w) y[@] = x[r * w + c];
        }
        """,
        "c * h + r",
        "c * w + r",
        (r"writes 4 bytes at y\[\d+\] \(kernel.cu:3\), beyond the end of `float\* y` \(70 float32\)",),
        (out(70), X[:70].copy()),
        X[:70].reshape(7, 10).T.ravel(),
        block=(16, 8),
        scalars=(7, 10),
    ),
    "a shared tile that is one too small": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float tile[@];
            int i = threadIdx.x;
            tile[i + 1] = x[i];
            if (i == 0) tile[0] = 0;
            __syncthreads();
            y[i] = tile[i] + tile[i + 1];
        }
        """,
        "65",
        "64",
        (r"thread \(63, 0, 0\): index 64 is outside of the type 'float \[64\]' at kernel.cu:4",),
        (out(64), X[:64].copy()),
        np.convolve(X[:64], [1, 1])[:64],
    ),
    "too little dynamic shared memory": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            extern __shared__ float s[];
            int i = threadIdx.x;
            s[@] = x[i];
            __syncthreads();
            y[i] = s[@];
        }
        """,
        "i",
        "2 * i",
        (
            r"thread \(32, 0, 0\): writes 4 bytes at s\[64\] \(kernel.cu:4\), beyond the end",
            SHARED,
        ),
        (out(64), X[:64].copy()),
        X[:64],
        shared_bytes=256,
    ),
    "a null pointer": Mistake(
        """
        __global__ void k(float* y, const float* x, const float* bias) {
            int i = threadIdx.x;
            y[i] = x[i] + (@ bias[i]);
        }
        """,
        "!bias ? 0 :",
        "",
        (r"reads 4 bytes through a null pointer at kernel.cu:3: None was passed for `const float\* bias`",),
        (out(64), X[:64].copy(), None),
        X[:64],
    ),
    # ---- alignment ----
    "a vector load from between two vectors": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            float4 v = reinterpret_cast<const float4*>(x + @)[i];
            y[i] = v.x + v.y + v.z + v.w;
        }
        """,
        "0",
        "1",
        (
            r"thread \(0, 0, 0\): takes x\[1\] for a 'const struct float4' at kernel.cu:3",
            "4 bytes past a multiple of 16",
        ),
        (out(64), X[:260].copy()),
        X[:256].reshape(64, 4).sum(1),
    ),
    "rows that are no multiple of a vector": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int row = threadIdx.x;
            const float* r = x + row * @;
            float2 v = *reinterpret_cast<const float2*>(r);
            y[row] = v.x - v.y;
        }
        """,
        "6",
        "7",
        (r"thread \(1, 0, 0\): takes x\[7\] for a 'const struct float2' at kernel.cu:4",),
        (out(64), X[:500].copy()),
        X[: 6 * 64 : 6] - X[1 : 6 * 64 : 6],
    ),
    # ---- races within a block ----
    "no barrier between writing and reading a tile": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float tile[64];
            int i = threadIdx.x;
            tile[i] = x[i];
            @
            y[i] = tile[63 - i];
        }
        """,
        "__syncthreads();",
        "",
        (
            r"race on tile\[\d+\] of the shared variable tile",
            "kernel.cu:4",
            "kernel.cu:6",
            r"a __syncthreads\(\) between",
        ),
        (out(64), X[:64].copy()),
        X[63::-1],
    ),
    "no barrier before a tile is used again": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float tile[64];
            int i = threadIdx.x;
            float sum = 0;
            for (int t = 0; t < 4; t++) {
                tile[i] = x[64 * t + i];
                __syncthreads();
                sum += tile[63 - i];
                @
            }
            y[i] = sum;
        }
        """,
        "__syncthreads();",
        "",
        (
            r"race on tile\[\d+\]",
            "kernel.cu:6",
            "kernel.cu:8",
            r"a __syncthreads\(\) between these two lines",
        ),
        (out(64), X[:256].copy()),
        X[:256].reshape(4, 64)[:, ::-1].sum(0),
    ),
    "a reduction without a barrier": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float s[64];
            int i = threadIdx.x;
            s[i] = x[i];
            for (int half = 32; half > 0; half /= 2) {
                @
                if (i < half) s[i] += s[i + half];
            }
            if (i == 0) y[0] = s[0];
        }
        """,
        "__syncthreads();",
        "",
        (r"race on s\[\d+\] of the shared variable s", "kernel.cu:7"),
        (out(1), X[:64].copy()),
        X[:64].sum(keepdims=True),
    ),
    "a reduction in which too many threads take part": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float s[64];
            int i = threadIdx.x;
            s[i] = x[i];
            for (int half = 32; half > 0; half /= 2) {
                __syncthreads();
                if (i @ half) s[i] += s[i + half];
            }
            if (i == 0) y[0] = s[0];
        }
        """,
        "<",
        "<=",
        (r"index 64 is outside of the type 'float \[64\]' at kernel.cu:7|race on s\[\d+\].*kernel.cu:7",),
        (out(1), X[:64].copy()),
        X[:64].sum(keepdims=True),
    ),
    "a scan in place": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float s[64];
            int i = threadIdx.x;
            s[i] = x[i];
            for (int d = 1; d < 64; d *= 2) {
                __syncthreads();
                float add = i >= d ? s[i - d] : 0;
                @
                s[i] += add;
            }
            y[i] = s[i];
        }
        """,
        "__syncthreads();",
        "",
        (
            r"race on s\[\d+\]",
            "kernel.cu:7",
            "kernel.cu:9",
            r"a __syncthreads\(\) between these two lines orders them",
        ),
        (out(64), X[:64].copy()),
        SCAN,
    ),
    "a histogram without atomics": Mistake(
        """
        __global__ void k(int* y, const float* x) {
            __shared__ int bins[4];
            int i = threadIdx.x;
            if (i < 4) bins[i] = 0;
            __syncthreads();
            @;
            __syncthreads();
            if (i < 4) y[i] = bins[i];
        }
        """,
        "atomicAdd(&bins[i % 4], 1)",
        "bins[i % 4]++",
        (
            r"race on bins\[\d+\]",
            "kernel.cu:6",
            "use an atomic operation, or give each thread an element of its own",
        ),
        (out(4, np.int32), X[:1].copy()),
        np.full(4, 16),
    ),
    "a result that every thread writes": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            @ y[0] = x[i];
        }
        """,
        "if (i == 5)",
        "",
        (r"race on y\[0\] of `float\* y`", "kernel.cu:3", "give each thread an element of its own"),
        (out(1), X[:64].copy()),
        X[5:6],
    ),
    # ---- races within a warp ----
    "no __syncwarp between lanes": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float s[32];
            int i = threadIdx.x;
            s[i] = x[i];
            @
            y[i] = s[i ^ 1];
        }
        """,
        "__syncwarp();",
        "",
        (r"race on s\[\d+\]", "kernel.cu:4", "kernel.cu:6", r"or, within a warp, a __syncwarp\(\)"),
        (out(32), X[:32].copy()),
        X[:32].reshape(16, 2)[:, ::-1].ravel(),
        block=32,
    ),
    "the last steps of a reduction as if a warp were in step": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float s[32];
            int i = threadIdx.x;
            s[i] = x[i];
            for (int half = 16; half > 0; half /= 2) {
                @
                if (i < half) s[i] += s[i + half];
            }
            if (i == 0) y[0] = s[0];
        }
        """,
        "__syncwarp();",
        "",
        (r"race on s\[\d+\]", "kernel.cu:7", r"__syncwarp\(\)"),
        (out(1), X[:32].copy()),
        X[:32].sum(keepdims=True),
        block=32,
    ),
    "a shuffle taken for a barrier": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float s[32];
            int i = threadIdx.x;
            s[i] = x[i];
            @
            y[i] = s[31 - i];
        }
        """,
        "__syncwarp();",
        "__shfl_sync(~0u, i, 0);",
        (r"race on s\[\d+\]", r"__syncwarp\(\)"),
        (out(32), X[:32].copy()),
        X[31::-1],
        block=32,
    ),
    "a mask that leaves out a lane": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            y[i] = __shfl_xor_sync(@, x[i], 1);
        }
        """,
        "0xFFFFFFFF",
        "0x0000FFFF",
        (r"__shfl_xor_sync\(\) at kernel.cu:3: the mask 0x0000ffff leaves out lane 16, which calls it",),
        (out(32), X[:32].copy()),
        X[:32].reshape(16, 2)[:, ::-1].ravel(),
        block=32,
        error=KernelLaunchError,
    ),
    "a shuffle that half of the warp does not come to": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            float v = x[i];
            @ v += __shfl_down_sync(0xFFFFFFFF, v, 16);
            __syncwarp();
            y[i] = i < 16 ? v : 0;
        }
        """,
        "",
        "if (i < 16)",
        (
            r"deadlock, no thread can go on",
            r"16 wait in __shfl_down_sync\(\) at kernel.cu:4",
            r"16 wait in __syncwarp\(\)",
        ),
        (out(32), X[:32].copy()),
        np.concatenate([X[:16] + X[16:32], np.zeros(16)]),
        block=32,
        error=KernelLaunchError,
    ),
    # ---- races between blocks ----
    "blocks that add to one place": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = blockIdx.x;
            if (i == 0) y[0] = 0;
            @;
        }
        """,
        "if (i == 0) for (int j = 0; j < 4; j++) y[0] += x[j]",
        "y[0] += x[i]",
        (
            r"race on y\[0\] of `float\* y`",
            r"block \(0, 0, 0\), thread \(0, 0, 0\)",
            "nothing orders two blocks",
        ),
        (out(1), X[:4].copy()),
        X[:4].sum(keepdims=True),
        grid=4,
        block=1,
    ),
    "blocks whose parts overlap": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = blockIdx.x * @ + threadIdx.x;
            y[i] = x[i] + blockIdx.x;
        }
        """,
        "64",
        "60",
        (
            r"race on y\[60\]",
            r"block \(1, 0, 0\), thread \(0, 0, 0\)",
            "kernel.cu:3",
            "let each write a part of its own",
        ),
        (out(256), X[:256].copy()),
        X[:256] + np.repeat(np.arange(4), 64),
        grid=4,
    ),
    "a block that reads what its neighbour writes": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = blockIdx.x * 64 + threadIdx.x;
            y[i] = x[i];
            __syncthreads();
            float next = @[(i + 64) % 256];
            __syncthreads();
            y[i] = next;
        }
        """,
        "x",
        "y",
        (r"race on y\[\d+\] of `float\* y`", "nothing orders two blocks"),
        (out(256), X[:256].copy()),
        np.roll(X[:256], -64),
        grid=4,
    ),
    # ---- memory without a value ----
    "a tile whose edge is not filled": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            __shared__ float tile[64];
            int i = threadIdx.x;
            @
            __syncthreads();
            float sum = 0;
            for (int j = 0; j < 64; j++) sum += tile[j];
            y[i] = sum;
        }
        """,
        "tile[i] = i < n ? x[i] : 0;",
        "if (i < n) tile[i] = x[i];",
        (
            r"thread \(\d+, 0, 0\): reads tile\[50\] of the shared variable tile at kernel.cu:7",
            "no thread of the block has",
        ),
        (out(64), X[:50].copy()),
        np.full(64, X[:50].sum()),
        scalars=(50,),
    ),
    "a sum that does not start from zero": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            @
            for (int j = 0; j < 4; j++) y[i] += x[4 * i + j];
        }
        """,
        "y[i] = 0;",
        "",
        (
            r"reads y\[0\] of `float\* y` \(64 float32\) at kernel.cu:4, which nothing has written",
            "start from zeros",
        ),
        (out(64), X[:256].copy()),
        X[:256].reshape(64, 4).sum(1),
    ),
    "counters that are not cleared": Mistake(
        """
        __global__ void k(int* y, const float* x) {
            int i = threadIdx.x;
            if (i < 4) @;
            __syncthreads();
            atomicAdd(&y[i % 4], 1);
        }
        """,
        "y[i] = 0",
        "(void)x",
        (r"reads y\[\d\] of `int\* y` \(4 int32\) at kernel.cu:5, which nothing has written",),
        (out(4, np.int32), X[:1].copy()),
        np.full(4, 16),
    ),
    "an unwritten tail": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < @) y[i] = x[i];
        }
        """,
        "n",
        "n / 64 * 64",
        (
            r"the output: 40 of its 1000 elements were never written, the first of them \[960\]",
            "cover every element",
        ),
        (out(1000), X),
        X,
        grid=16,
        scalars=(1000,),
    ),
    "a block too few": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            int i = (blockIdx.x @) * blockDim.x + threadIdx.x;
            if (i < n) y[i] = x[i];
        }
        """,
        "",
        "+ 1",
        (r"the output: 64 of its 1000 elements were never written, the first of them \[0\]",),
        (out(1000), X),
        X,
        grid=16,
        scalars=(1000,),
    ),
    "an input that is written": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            float* in = const_cast<float*>(x);
            @ 2 * in[i];
            y[i] = in[i];
        }
        """,
        "float twice = in[i]; (void)twice;",
        "in[i] =",
        (r"writes to x\[0\] \(kernel.cu:4\), but `const float\* x` \(64 float32\) is const: write to an",),
        (out(64), X[:64].copy()),
        X[:64],
    ),
    # ---- barriers that not all threads reach ----
    "an early return before a barrier": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            __shared__ float tile[64];
            int i = threadIdx.x;
            @
            tile[i] = i < n ? x[i] : 0;
            __syncthreads();
            if (i < n) y[i] = tile[n - 1 - i];
        }
        """,
        "",
        "if (i >= n) return;",
        (
            r"a barrier that not all threads of the block reach: 14 have returned",
            r"__syncthreads\(\) at kernel.cu:6",
        ),
        (out(50), X[:50].copy()),
        X[49::-1],
        error=KernelLaunchError,
        scalars=(50,),
    ),
    "a barrier inside a condition": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            __shared__ float tile[64];
            int i = threadIdx.x;
            if (i < 32) {
                tile[i] = x[i];
                @
            } else {
                tile[i] = -x[i];
                @
            }
            __syncthreads();
            y[i] = tile[63 - i];
        }
        """,
        "",
        "__syncthreads();",
        (
            "threads of one block wait at different barriers",
            r"32 wait in __syncthreads\(\) at kernel.cu:6",
            "not inside a",
        ),
        (out(64), X[:64].copy()),
        np.concatenate([-X[63:31:-1], X[31::-1]]),
        error=KernelLaunchError,
    ),
    "a loop around a barrier that some leave early": Mistake(
        """
        __global__ void k(float* y, const float* x) {
            int i = threadIdx.x;
            float sum = 0;
            for (int j = 0; j < @; j++) {
                sum += j < 2 ? x[i] : 0;
                __syncthreads();
            }
            y[i] = sum;
        }
        """,
        "3",
        "2 + i % 2",
        ("a barrier that not all threads of the block reach: 32 have returned", "kernel.cu:6"),
        (out(64), X[:64].copy()),
        2 * X[:64],
        error=KernelLaunchError,
    ),
    "waiting for a block that has not started": Mistake(
        """
        __global__ void k(float* y, int* ready) {
            if (blockIdx.x == @) {
                while (atomicAdd(ready, 0) == 0) {}
                y[0] = 7;
            } else {
                atomicExch(ready, 1);
            }
        }
        """,
        "1",
        "0",
        (
            r"block \(0, 0, 0\): livelock, threads wait in loops",
            "a block cannot wait for one that has not started",
        ),
        (out(1), np.zeros(1, np.int32)),
        np.full(1, 7),
        grid=2,
        block=1,
        error=KernelLaunchError,
    ),
    # ---- arithmetic ----
    "an offset that needs more than 31 bits": Mistake(
        """
        __global__ void k(float* y, const float* x, int rows, int columns) {
            int i = threadIdx.x;
            long long last = @ rows * columns - 1;
            y[i] = last > 0 ? x[i] : 0;
        }
        """,
        "(long long)",
        "",
        (r"70000 \* 70000 overflows the type 'int' at kernel.cu:3: compute it in long long",),
        (out(64), X[:64].copy()),
        X[:64],
        scalars=(70000, 70000),
    ),
    "a division by zero": Mistake(
        """
        __global__ void k(float* y, const float* x, int n) {
            int i = threadIdx.x;
            y[i] = x[@];
        }
        """,
        "n ? i % n : i",
        "i % n",
        (r"divides 0 by zero at kernel.cu:3",),
        (out(64), X[:64].copy()),
        X[:64],
        scalars=(0,),
    ),
}


def run(mistake, piece):
    """The output of the kernel with ``piece`` in its place, launched as a kernel of an op is."""
    (size, dtype), *inputs = mistake.arrays
    output = sim.empty(size, dtype)
    inputs = [array if array is None else array.copy() for array in inputs]
    kernel = CudaKernel(textwrap.dedent(mistake.code).strip().replace("@", piece), "k")
    with sim.operation("the kernel", (), (output,)):
        kernel.launch(mistake.grid, mistake.block, (output, *inputs, *mistake.scalars), mistake.shared_bytes)
    return output


def test_there_are_enough():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found(name):
    mistake = MISTAKES[name]
    with sim.checks(True), pytest.raises(KernelLaunchError) as caught:
        run(mistake, mistake.broken)
    assert type(caught.value) is mistake.error
    for pattern in mistake.says:
        assert re.search(pattern, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("name", MISTAKES)
def test_sound_kernel_is_let_pass(name):
    mistake = MISTAKES[name]
    for order in sim.ORDERS:
        if "not started" in name and order != "forward":
            continue  # there the block that is waited for may come last
        with sim.checks(True), sim.order(order), sim.seed(2):
            assert np.array_equal(run(mistake, mistake.sound), mistake.expected), order
