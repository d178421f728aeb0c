"""Races and barriers in CUDA kernels that are wrong: each is found, with the lines and with advice."""

import numpy as np
import pytest
from broken_kernels import Mistake, X, check_is_found, check_sound_is_let_pass, out

from minigrad.kernels import sim
from minigrad.kernels.errors import KernelLaunchError

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

SCAN = np.cumsum(X[:64])

MISTAKES = {
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
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found(name):
    check_is_found(MISTAKES[name])


@pytest.mark.parametrize("name", MISTAKES)
def test_sound_kernel_is_let_pass(name):
    # In another order the block that is waited for may come last.
    check_sound_is_let_pass(MISTAKES[name], ["forward"] if "not started" in name else sim.ORDERS)
