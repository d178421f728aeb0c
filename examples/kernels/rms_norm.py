"""RMSNorm, each row divided by its root mean square, in one kernel; its gradients in another.

y = z w with z = x r, r = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019,
https://arxiv.org/abs/1910.07467). As ops this is a square, a mean, a root and two products, each with a
walk through memory. A warp that owns a row makes one: it sums the squares by shuffles, which read another
lane's register, with no barrier, and finds the row in the cache when it scales it. The gradient makes r
anew, one sum beside another.
"""

import minigrad as mg
from minigrad.ops.composed import from_reference
from minigrad.testing import bench_op, case, check_op


@mg.op
def rms_norm(xp, x, weight, *, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) weight, with the mean over the last dimension: (..., n), (n) -> (..., n)."""
    r = ((x * x).sum(-1) / max(x.shape[-1], 1) + eps) ** -0.5
    return x * r[..., None] * weight


@mg.op(outputs=("dx", "dweight"))
def rms_norm_grad(xp, g, x, weight, *, eps=1e-6):
    """dx = r (g w - z mean(g w z)), and each row's part of dweight, g z."""
    r = (((x * x).sum(-1) / max(x.shape[-1], 1) + eps) ** -0.5)[..., None]
    z, mean = x * r, (g * weight * x * r).sum(-1)[..., None] / max(x.shape[-1], 1)
    return (g * weight - z * mean) * r, g * z


rms_norm.shape(lambda x, weight, *, eps: x.shape)
rms_norm_grad.shape(lambda g, x, weight, *, eps: [x.shape, x.shape])
# The engine sums dweight over the rows, along which weight was broadcast.
rms_norm.grad(lambda g, _y, x, weight, *, eps: rms_norm_grad(g, x, weight, eps=eps))
rms_norm_grad.grad(from_reference(rms_norm_grad))  # the second order, where speed matters less

CUDA = """
template <typename T> __device__ T warp_sum(T value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffff, value, lanes);
    return value;
}
// A block of one warp for each row.
template <typename T>
__global__ void rms_norm(T* out, const T* x, const T* weight, T eps, long long columns) {
    x += blockIdx.x * columns, out += blockIdx.x * columns;
    T squares = 0;
    for (long long i = threadIdx.x; i < columns; i += 32) squares += x[i] * x[i];
    const T r = 1 / sqrt(warp_sum(squares) / columns + eps);
    for (long long i = threadIdx.x; i < columns; i += 32) out[i] = x[i] * r * weight[i];
}

// A block of one warp for each row; both sums come from one walk along it.
template <typename T>
__global__ void gradient(T* dx, T* dweight, const T* g, const T* x, const T* weight, T eps,
                         long long columns) {
    const long long at = blockIdx.x * columns;
    g += at, x += at, dx += at, dweight += at;
    T squares = 0, inner = 0;
    for (long long i = threadIdx.x; i < columns; i += 32)
        squares += x[i] * x[i], inner += g[i] * x[i] * weight[i];
    const T r = 1 / sqrt(warp_sum(squares) / columns + eps), mean = warp_sum(inner) * r / columns;
    for (long long i = threadIdx.x; i < columns; i += 32) {
        dx[i] = (g[i] * weight[i] - x[i] * r * mean) * r;
        dweight[i] = g[i] * x[i] * r;
    }
}
"""
CYTHON = """
from arrays cimport dot_array  # in vectors, with several sums side by side: one would wait for itself
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport sqrt
def rms_norm(floating[:, ::1] out, const floating[:, ::1] x, const floating[::1] weight, double eps,
             int threads):
    cdef Py_ssize_t n = x.shape[1], row, i
    cdef floating r
    for row in prange(x.shape[0] if n else 0, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        r = 1 / sqrt(dot_array(&x[row, 0], &x[row, 0], n, sizeof(floating)) / n + eps)
        for i in range(n):
            out[row, i] = x[row, i] * r * weight[i]
def gradient(floating[:, ::1] dx, floating[:, ::1] dweight, const floating[:, ::1] g,
             const floating[:, ::1] x, const floating[::1] weight, double eps, int threads):
    cdef Py_ssize_t n = x.shape[1], row, i
    cdef floating r, mean
    for row in prange(x.shape[0] if n else 0, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        r = 1 / sqrt(dot_array(&x[row, 0], &x[row, 0], n, sizeof(floating)) / n + eps)
        for i in range(n):
            dweight[row, i] = g[row, i] * x[row, i] * r
        mean = dot_array(&dweight[row, 0], &weight[0], n, sizeof(floating)) / n
        for i in range(n):
            dx[row, i] = (g[row, i] * weight[i] - x[row, i] * r * mean) * r
"""


def fits(*inputs, **_):
    return inputs[-2].ndim > 0 and inputs[-1].shape == inputs[-2].shape[-1:]


for op, name, matrices in ((rms_norm, "rms_norm", "out x"), (rms_norm_grad, "gradient", "dx dweight g x")):
    args = [f"{matrix}.reshape(rows, columns)" for matrix in matrices.split()]
    op.cython(CYTHON, name, args=args, when=fits)
    op.cuda(CUDA, f"{name}<T>", launch="rows", block=32, when=fits)

SHAPES = (5, 7), (2, 2, 70), (9,), (0, 3), (2, 0)
CHECKS = {
    rms_norm: [case(x, x[-1:]) for x in SHAPES],
    rms_norm_grad: [case(x, x, x[-1:]) for x in SHAPES],
}
if __name__ == "__main__":
    for op, cases in CHECKS.items():
        print(check_op(op, cases))
    ops = {"as ops": lambda x, weight: x * ((x * x).mean(-1, keepdim=True) + 1e-6) ** -0.5 * weight}
    print(bench_op(rms_norm, [case((4096, 1024), (1024,))], against=ops))
