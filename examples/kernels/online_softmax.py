"""Softmax in two walks along a row instead of three: the online normaliser.

A safe softmax walks for the largest element, for the sum and for the results. The online normaliser
(Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867) finds the first two in one walk. It keeps m,
the largest element so far, and s, the sum of exp(x - m); when a larger one comes, s is scaled by exp(old m
- new m), as if it had been m all along. Two such pairs, of parts of a row, make one: threads keep their
own, and shuffles combine them. This is what makes FlashAttention possible (flash_attention.py).
"""

import minigrad as mg
from minigrad.testing import bench_op, case, check_op


@mg.op
def online_softmax(xp, x):
    """exp(x) / sum(exp(x)) over the last dimension; NaN where a row holds NaN, +inf, or nothing but -inf."""
    e = xp.exp(x - x.max(-1, keepdims=True)) if x.shape[-1] else x
    return e / e.sum(-1, keepdims=True)


online_softmax.shape(lambda x: x.shape)


@online_softmax.grad  # (g - sum(g y)) y: an op that is there, with kernels and a gradient of its own
def _(g, y, _x):
    return mg.get_op("softmax_grad")(g, y, dim=-1)


CUDA = """
template <typename T>
struct Normalizer {
    // The lowest finite number, not -infinity: then exp(-infinity - m) is 0, and not NaN.
    T m = sizeof(T) == 4 ? -3.402823466e+38 : -1.7976931348623157e+308, s = 0;
    __device__ void add(T x) {
        if (x > m) {
            s = s * exp(m - x) + exp(x - x);  // 1, but NaN where x is infinite
            m = x;
        } else {
            s += exp(x - m);
        }
    }
    // The sum under the smaller maximum is scaled: a.add(b) and b.add(a) have the same bits.
    __device__ void add(Normalizer other) {
        const T top = other.m > m ? other.m : m, low = other.m > m ? m : other.m;
        s = other.m > m ? s * exp(low - top) + other.s : other.s * exp(low - top) + s;
        m = top;
    }
    __device__ void add_across_warp() {
        for (int lanes = 16; lanes > 0; lanes /= 2)
            add(Normalizer{__shfl_xor_sync(0xffffffff, m, lanes), __shfl_xor_sync(0xffffffff, s, lanes)});
    }
};

// A block for each row: shuffles combine the threads of a warp, and the warps meet in shared memory.
template <typename T>
__global__ void one_walk(T* out, const T* x, long long columns) {
    __shared__ T m[32], s[32];
    x += blockIdx.x * columns, out += blockIdx.x * columns;
    Normalizer<T> row;
    for (long long i = threadIdx.x; i < columns; i += blockDim.x) row.add(x[i]);
    row.add_across_warp();
    if (threadIdx.x % 32 == 0) m[threadIdx.x / 32] = row.m, s[threadIdx.x / 32] = row.s;
    __syncthreads();
    row = Normalizer<T>();
    if (threadIdx.x % 32 < blockDim.x / 32) row = {m[threadIdx.x % 32], s[threadIdx.x % 32]};
    row.add_across_warp();
    for (long long i = threadIdx.x; i < columns; i += blockDim.x) out[i] = exp(x[i] - row.m) / row.s;
}
"""
CYTHON = """
from arrays cimport exp_array, max_array  # in vectors; exp_array returns the sum
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport exp

# Strips of the row, each still in the L1 cache when it is read again. Its exponentials, under the largest so
# far, wait in out until the largest of the row is known.
cdef void softmax_row(floating *out, const floating *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t strips = min((n + 1023) // 1024, 64), strip, first, count, i
    cdef floating m = -1.7976931348623157e+308 if sizeof(floating) == 8 else -3.402823466e+38, s = 0
    cdef floating tops[64], top, scale
    for strip in range(strips):
        first, count = n * strip // strips, n * (strip + 1) // strips - n * strip // strips
        top = max(m, <floating>max_array(x + first, count, sizeof(floating)))
        for i in range(first, first + count):
            out[i] = x[i] - top
        s = s * exp(m - top) + exp_array(out + first, count, sizeof(floating))
        tops[strip], m = top, top
    for strip in range(strips):
        scale = exp(tops[strip] - m) / s
        for i in range(n * strip // strips, n * (strip + 1) // strips):
            out[i] *= scale

def online_softmax(floating[:, ::1] out, const floating[:, ::1] x, int threads):
    cdef Py_ssize_t row, n = x.shape[1]
    for row in prange(x.shape[0] if n else 0, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        softmax_row(&out[row, 0], &x[row, 0], n)
"""

online_softmax.cuda(CUDA, "one_walk<T>", launch="rows")
online_softmax.cython(CYTHON, args="out.reshape(rows, columns), x.reshape(rows, columns)")

CHECKS = {online_softmax: [case(x) for x in ((5, 7), (2, 2, 70), (9,), (2, 2100), (0, 3), (2, 0))]}
if __name__ == "__main__":
    print(check_op(online_softmax, CHECKS[online_softmax]))
    ops = {"as ops": lambda x: (e := mg.exp(x - mg.amax(x, -1, True))) / e.sum(-1, keepdim=True)}
    print(bench_op(online_softmax, [case((128, 32000))], against=ops))
