"""Bias and GELU in one pass over memory, and their gradient in another.

After a linear layer comes gelu(x + bias). As two ops this reads and writes the activations twice, for a sum
that takes no time. Fused, x + bias lives in a register from load to store; the gradient makes it anew. So
does Megatron-LM (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053). GELU in its form with tanh
(https://arxiv.org/abs/1606.08415) is z s with s = 1 / (1 + exp(-2u)) and u = C (z + A z^3).
"""

import minigrad as mg
from minigrad.kernels.launch import blocks
from minigrad.ops.composed import from_reference
from minigrad.testing import bench_op, case, check_op

A, C = 0.044715, 0.7978845608028654  # the latter is sqrt(2 / pi)


@mg.op
def bias_gelu(xp, x, bias):
    """gelu(x + bias) of x (..., columns) and bias (columns)."""
    z = x + bias
    return z / (1 + xp.exp(-2 * C * (z + A * z * z * z)))


@mg.op
def bias_gelu_grad(xp, g, x, bias):
    """g gelu'(x + bias), with gelu' = s + z s (1 - s) 2u'."""
    z = x + bias
    s = 1 / (1 + xp.exp(-2 * C * (z + A * z * z * z)))
    return g * (s + z * s * (1 - s) * (2 * C) * (1 + 3 * A * z * z))


# One gradient for both inputs: that of bias the engine sums over the rows, along which it was broadcast.
bias_gelu.grad(lambda g, _y, x, bias: (bias_gelu_grad(g, x, bias),) * 2)
bias_gelu_grad.grad(from_reference(bias_gelu_grad))  # the second order, where speed matters less

CUDA = """
#include "vector.cuh"  // Vector<T, N>: N neighbours, moved by one instruction; by default 16 bytes

template <bool GRADIENT, typename T> __device__ T function(T g, T z) {
    const T A = 0.044715, C2 = 1.5957691216057308, s = 1 / (1 + exp(-C2 * (z + A * z * z * z)));
    return GRADIENT ? g * (s + z * s * (1 - s) * C2 * (1 + 3 * A * z * z)) : z * s;
}
// A thread keeps the bias of N columns in registers, and walks down the rows.
template <bool GRADIENT, int N, typename T>
__device__ void walk(T* out, const T* g, const T* x, const T* bias, long long rows, long long columns) {
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i * N < columns; i += gridDim.x * blockDim.x) {
        const auto b = load_vector<N>(bias + i * N);
        for (long long y = blockIdx.y * blockDim.y + threadIdx.y; y < rows; y += gridDim.y * blockDim.y) {
            const auto grad = load_vector<N>(g + y * columns + i * N);
            auto z = load_vector<N>(x + y * columns + i * N);
            for (int k = 0; k < N; k++) z.lane[k] = function<GRADIENT>(grad.lane[k], z.lane[k] + b.lane[k]);
            store_vector(out + y * columns + i * N, z);
        }
    }
}

// The bias stays in registers; all else moves by 16 bytes, where rows are made of them.
template <typename T, bool GRADIENT>
__global__ void vectorized(T* out, const T* g, const T* x, const T* bias, long long rows, long long columns) {
    constexpr int N = Vector<T>::LENGTH;
    const bool whole = aligned<N>(out) && aligned<N>(g) && aligned<N>(x) && aligned<N>(bias);
    if (whole && columns % N == 0) walk<GRADIENT, N>(out, g, x, bias, rows, columns);
    else walk<GRADIENT, 1>(out, g, x, bias, rows, columns);
}
"""
CYTHON = """
from arrays cimport exp_array  # in vectors: the C library's exp would take longer than all else
from cython cimport floating
from cython.parallel cimport prange
cdef void row(floating *y, const floating *g, const floating *x, const floating *bias, Py_ssize_t n,
              bint grad) noexcept nogil:
    cdef floating A = 0.044715, C2 = 1.5957691216057308, one = 1, z, s  # a bare 1.0 would be a double
    cdef Py_ssize_t i
    for i in range(n):
        z = x[i] + bias[i]
        y[i] = -C2 * (z + A * z * z * z)
    exp_array(y, n, sizeof(floating))
    for i in range(0 if grad else n):
        y[i] = (x[i] + bias[i]) / (one + y[i])
    for i in range(n if grad else 0):
        z, s = x[i] + bias[i], one / (one + y[i])
        y[i] = g[i] * (s + z * s * (one - s) * C2 * (one + (A + A + A) * z * z))
def rows(floating[::1] y, const floating[::1] g, const floating[::1] x, const floating[::1] bias, bint grad,
         int threads):
    cdef Py_ssize_t n = max(bias.shape[0], 1), at
    for at in prange(0, y.shape[0], n, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        row(&y[at], &g[at], &x[at], &bias[0], n, grad)
"""


def grid(out, *_):
    rows, columns = blocks(out.size, max(out.shape[-1], 1)), out.shape[-1]
    return (blocks(columns, 512 // out.itemsize), min(blocks(rows, 8), 256)), (32, 8)


def fits(*inputs):
    return inputs[-1].ndim == 1 and inputs[-1].shape == inputs[-2].shape[-1:]


for op, g, grad in ((bias_gelu, "x", False), (bias_gelu_grad, "g", True)):
    args = f"out, {g}, x, bias"
    op.cython(CYTHON, "rows", args=f"{args}, {grad}, threads", when=fits)
    op.cuda(CUDA, f"vectorized<T, {str(grad).lower()}>", args=args, launch=grid, when=fits)

SHAPES = (5, 7), (2, 3, 16), (9,), (0, 3), (2, 0)
CHECKS = {  # the length: an element takes some 8 roundings
    bias_gelu: [case(x, x[-1:], length=8) for x in SHAPES],
    bias_gelu_grad: [case(x, x, x[-1:], length=8) for x in SHAPES],
}
if __name__ == "__main__":
    for op, cases in CHECKS.items():
        print(check_op(op, cases))
    unfused = {"two ops": lambda x, bias: mg.nn.functional.gelu(x + bias, "tanh")}
    print(bench_op(bias_gelu, [case((4096, 1024), (1024,), length=8)], against=unfused))
