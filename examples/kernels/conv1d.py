"""A 1-D convolution as a matrix product of which one factor is never made; its gradients are convolutions.

im2col turns a convolution into one product, weight (O, C K) times columns (C K, N), for K times the memory of
x. Here the product's tiles take their elements from x, by arithmetic on indices: implicit GEMM (Chetlur et
al. 2014, https://arxiv.org/abs/1410.0759). The gradient of x is a convolution of g with the taps reversed,
that of weight one of x with g in place of the weight, where stride and dilation change places.
"""

import minigrad as mg
from minigrad.kernels.launch import blocks
from minigrad.testing import bench_op, case, check_op


@mg.op
def conv1d(xp, x, weight, *, stride=1, padding=0, dilation=1):
    """out[n] = sum of weight[k] x[n stride + k dilation - padding]: (B, C, L), (O, C, K) -> (B, O, N)."""
    N, K = output_shape(x, weight, stride=stride, padding=padding, dilation=dilation)[2], weight.shape[2]
    x = xp.pad(x, ((0, 0), (0, 0), (padding, padding)))
    windows = (x[..., k * dilation :][..., : (N - 1) * stride + 1 : stride] for k in range(K))
    return sum(xp.matmul(weight[..., k], window) for k, window in enumerate(windows))


@conv1d.shape
def output_shape(x, weight, *, stride, padding, dilation):
    N = (x.shape[-1] + 2 * padding - (weight.shape[-1] - 1) * dilation - 1) // stride + 1
    if x.ndim != 3 or weight.ndim != 3 or x.shape[1] != weight.shape[1] or min(weight.shape[2], N) < 1:
        raise ValueError(f"conv1d: x (B, C, L) and weight (O, C, K) do not fit: {x.shape} and {weight.shape}")
    return x.shape[0], weight.shape[0], N


@conv1d.grad
def _(g, _y, x, weight, *, stride, padding, dilation):
    L, K, reach, pad = x.shape[2], weight.shape[2], (weight.shape[2] - 1) * dilation, mg.nn.functional.pad
    spread = pad(g.unsqueeze(3), (0, stride - 1)).flatten(2)  # zeros where x was skipped
    spread = pad(spread, (reach, L + padding))[..., padding : padding + L + reach]
    dx = conv1d(spread, mg.flip(weight, (2,)).transpose(0, 1), dilation=dilation)
    dweight = conv1d(x.transpose(0, 1), g.transpose(0, 1), stride=dilation, padding=padding, dilation=stride)
    return dx, dweight[..., :K].transpose(0, 1)


CUDA = """
constexpr int SIDE = 16, R = 4, TILE = SIDE * R, DEPTH = 16;  // 256 threads, each with R x R sums
// Rows are output channels, columns the positions of all outputs; depth runs over channels and taps.
template <typename T>
__global__ void implicit_gemm(T* out, const T* x, const T* weight, long long B, long long C, long long L,
                              long long outs, long long K, long long N, long long stride, long long padding,
                              long long dilation) {
    __shared__ T a[DEPTH][TILE + 1], b[DEPTH][TILE];  // a is stored by columns: one more, for the banks
    const long long row0 = blockIdx.y * TILE, column0 = (long long)blockIdx.x * TILE, depth = C * K;
    T sums[R][R] = {};
    for (long long k0 = 0; k0 < depth; k0 += DEPTH) {
        for (int i = threadIdx.y * SIDE + threadIdx.x; i < TILE * DEPTH; i += SIDE * SIDE) {
            const long long row = row0 + i / DEPTH, k = k0 + i % DEPTH;
            a[i % DEPTH][i / DEPTH] = row < outs && k < depth ? weight[row * depth + k] : T(0);
            const long long column = column0 + i % TILE, tap = k0 + i / TILE;
            const long long at = column % N * stride + tap % K * dilation - padding;
            const bool inside = column < B * N && tap < depth && 0 <= at && at < L;
            b[i / TILE][i % TILE] = inside ? x[(column / N * C + tap / K) * L + at] : T(0);
        }
        __syncthreads();  // both tiles are there
        for (int k = 0; k < DEPTH; k++)
            for (int i = 0; i < R * R; i++)
                sums[i / R][i % R] += a[k][threadIdx.y + i / R * SIDE] * b[k][threadIdx.x + i % R * SIDE];
        __syncthreads();  // nobody reads them any more
    }
    for (int i = 0; i < R * R; i++) {
        const long long row = row0 + threadIdx.y + i / R * SIDE, at = column0 + threadIdx.x + i % R * SIDE;
        if (row < outs && at < B * N) out[(at / N * outs + row) * N + at % N] = sums[i / R][i % R];
    }
}
"""
CYTHON = """
import numpy as np
from arrays cimport gemm, gemm_workspace  # C = A B or C += A B, of any strides, overlapping ones too
from cython cimport floating
from cython.parallel cimport prange, threadid

def conv1d(floating[:, :, ::1] out, const floating[:, :, ::1] x, const floating[:, :, ::1] weight,
           Py_ssize_t stride, Py_ssize_t dilation, int threads):
    cdef Py_ssize_t M = out.shape[1], N = out.shape[2], C = x.shape[1], L = x.shape[2], K = weight.shape[2]
    cdef Py_ssize_t b, i, terms, depth, a_step, a_col, b_step, b_row
    cdef char[:, ::1] work = np.empty((threads, gemm_workspace(M, N, max(C, K), sizeof(floating))), np.int8)
    # A product for each tap, of all channels; or for each channel, of all taps: row k begins at k dilation.
    terms, depth, a_step, a_col, b_step, b_row = K, C, 1, K, dilation, L
    if C < K: terms, depth, a_step, a_col, b_step, b_row = C, K, K, 1, L, dilation
    for b in prange(out.shape[0] if M else 0, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        for i in range(terms):
            gemm(M, N, depth, &weight[0, 0, 0] + i * a_step, C * K, a_col, &x[b, 0, 0] + i * b_step, b_row,
                 stride, &out[b, 0, 0], N, i > 0, &work[threadid(), 0], sizeof(floating))
"""


def tiles(out, *_, **__):
    return (blocks(out.shape[0] * out.shape[2], 64), blocks(out.shape[1], 64)), (16, 16)


SIZES = "B=x.shape[0], C=x.shape[1], L=x.shape[2], outs=weight.shape[0], K=weight.shape[2], N=out.shape[2]"
PADDED = "x=np.pad(x, ((0, 0), (0, 0), (padding, padding)))"
conv1d.cython(CYTHON, args=PADDED, when=lambda x, _, **__: x.shape[1] > 0)
conv1d.cuda(CUDA, "implicit_gemm<T>", args=SIZES, launch=tiles)

EMPTY = [case((0, 2, 8), (3, 2, 3)), case((2, 0, 8), (3, 0, 3)), case((2, 1, 9), (0, 1, 9), padding=9)]
STRIDED = case((2, 3, 19), (4, 3, 5), stride=2, padding=3, dilation=2)
CHECKS = {conv1d: [STRIDED, case((1, 9, 40), (66, 9, 3), padding=1), *EMPTY]}
if __name__ == "__main__":
    print(check_op(conv1d, CHECKS[conv1d]))
    ops = {"as ops": lambda x, w: sum(w[..., k] @ x[..., k : k + 4092] for k in range(5))}
    print(bench_op(conv1d, [case((8, 64, 4096), (64, 64, 5))], against=ops))
