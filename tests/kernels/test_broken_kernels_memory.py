"""Mistakes with memory in CUDA kernels, and with numbers: each is found, with the lines and with advice."""

import numpy as np
import pytest
from broken_kernels import Mistake, X, check_is_found, check_sound_is_let_pass, out

from minigrad.kernels import sim

pytestmark = pytest.mark.skipif(
    not sim.is_available(), reason="the simulator needs a C++ compiler: install g++"
)

LOW, SHARED = "before the first element", "the shared variable"

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


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found(name):
    check_is_found(MISTAKES[name])


@pytest.mark.parametrize("name", MISTAKES)
def test_sound_kernel_is_let_pass(name):
    check_sound_is_let_pass(MISTAKES[name])
