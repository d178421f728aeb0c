"""FlashAttention: softmax(q k^T / sqrt(E)) v and its gradients, with no (L, S) matrix in memory.

Scores are made tile by tile where they are used, and thrown away: forward by the online normaliser (see
online_softmax.py), which leaves lse, the logarithm of each row's sum of exponentials; backward anew, as
p = exp(s - lse). Dao et al. 2022, https://arxiv.org/abs/2205.14135. The second order makes the matrix.
"""

import timeit

import numpy as np

import minigrad as mg
from minigrad.ops.composed import from_reference
from minigrad.testing import case, check_op


def scores(xp, q, k, causal, first):
    s = xp.matmul(q, xp.swapaxes(k, -1, -2)) * max(q.shape[-1], 1) ** -0.5
    mask = np.triu(np.full(s.shape[-2:], -np.inf if causal else 0, s.dtype), 1 + first)
    return s + getattr(xp, "asarray", lambda mask: mg.tensor(mask, device=q.device))(mask)


@mg.op(outputs=("y", "lse"), returns=1)  # lse is for the gradient alone
def flash_attention(xp, q, k, v, *, causal=False, first=0):
    """(..., L, E), two of (..., S, E) -> (..., L, E), (..., L). If causal, query i sees keys to i + first."""
    s = scores(xp, q, k, causal, first)
    top = s.max(-1)[..., None]
    e = xp.exp(s - top)
    return xp.matmul(e, v) / e.sum(-1)[..., None], top[..., 0] + xp.log(e.sum(-1))


@mg.op(outputs=("dq", "dk", "dv"))
def flash_attention_grad(xp, g, q, k, v, lse, delta, *, causal=False, first=0):
    p = xp.exp(scores(xp, q, k, causal, first) - lse[..., None])
    ds = p * (xp.matmul(g, xp.swapaxes(v, -1, -2)) - delta[..., None]) * max(q.shape[-1], 1) ** -0.5
    return xp.matmul(ds, k), xp.matmul(xp.swapaxes(ds, -1, -2), q), xp.matmul(xp.swapaxes(p, -1, -2), g)


@flash_attention.shape
def _(q, k, v, **_):
    if q.shape[:-2] != k.shape[:-2] or k.shape != v.shape or q.shape[-1] != k.shape[-1] or k.shape[-2] == 0:
        raise ValueError(f"flash_attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    return [q.shape, q.shape[:-1]]


@flash_attention.grad
def _(g, y, q, k, v, **attributes):
    delta = (g[0] * y[0]).sum(-1) - g[1]  # what the normaliser takes from ds = p (dp - delta)
    return flash_attention_grad(g[0], q, k, v, y[1], delta, **attributes)


flash_attention_grad.shape(lambda g, q, k, v, *_, **__: [q.shape, k.shape, v.shape])
flash_attention_grad.grad(from_reference(flash_attention_grad))

CUDA = """
enum Sum { Y, DQ, DK, DV };  // each is a sum over columns of weight(row, column) x[column]:
// Y: of queries, p v   DQ: of queries, ds k   DK: of keys, ds q   DV: of keys, p g
// A thread has a row in its registers and adds up alone, without atomics; columns pass through shared memory.
template <Sum SUM, typename T, int D>
__global__ void __launch_bounds__(64)
weighted_sum(T* out, T* new_lse, const T* g, const T* q, const T* k, const T* v, const T* lse, const T* delta,
             long long L, long long S, int E, T scale, bool causal, long long first) {
    constexpr bool QUERY = SUM == Y || SUM == DQ, DS = SUM == DQ || SUM == DK;
    __shared__ T a[64][D], b[64][D];
    const long long rows = QUERY ? L : S, columns = QUERY ? S : L, row = blockIdx.y * 64ll + threadIdx.x;
    const long long at = (blockIdx.x * rows + row) * E, lse_at = blockIdx.x * L;
    T own[D], other[D], sum[D] = {}, total = 0;
    T top = sizeof(T) == 4 ? -3.402823466e+38 : -1.7976931348623157e+308;  // the lowest finite number
#pragma unroll
    for (int d = 0; d < D; d++) {
        own[d] = row < rows && d < E ? (QUERY ? q : k)[at + d] * scale : T(0);
        if (DS) other[d] = row < rows && d < E ? (QUERY ? g : v)[at + d] : T(0);
    }
    // If causal, a block of queries sees keys up to `end`, and one of keys is seen from `begin` on.
    const long long end = causal && QUERY ? min(columns, (blockIdx.y + 1) * 64ll + first) : columns;
    long long begin = causal && !QUERY ? max(blockIdx.y * 64ll - first, 0ll) : 0;
    for (; begin < end; begin += 64) {
        __syncthreads();  // the last tiles are done with
        for (int i = threadIdx.x; i < 64 * D; i += 64) {
            const long long column = begin + i / D, from = (blockIdx.x * columns + column) * E + i % D;
            a[i / D][i % D] = column < columns && i % D < E ? (QUERY ? k : q)[from] : T(0);
            b[i / D][i % D] = column < columns && i % D < E ? (QUERY ? v : g)[from] : T(0);
        }
        __syncthreads();  // the tiles are there
        for (int j = 0; j < 64 && begin + j < end; j++) {
            const long long query = QUERY ? row : begin + j, key = QUERY ? begin + j : row;
            const bool sees = row < rows && (!causal || key <= query + first);
            T score = 0, dp = 0;
#pragma unroll
            for (int d = 0; d < D; d++) score += own[d] * a[j][d];
            __syncwarp();  // one product after the other: registers hold the operands of one
#pragma unroll
            for (int d = 0; d < D; d++) dp += DS ? other[d] * b[j][d] : T(0);
            if (SUM == Y && sees && score > top) {
                const T scaled = exp(top - score);
                top = score, total *= scaled;
#pragma unroll
                for (int d = 0; d < D; d++) sum[d] *= scaled;
            }
            const T p = sees ? exp(score - (SUM == Y ? top : lse[lse_at + query])) : T(0);
            const T weight = DS && sees ? p * (dp - delta[lse_at + query]) * scale : p;
            total += p;
#pragma unroll
            for (int d = 0; d < D; d++) sum[d] += weight * (DS ? a : b)[j][d];
        }
    }
#pragma unroll
    for (int d = 0; d < D; d++) if (row < rows && d < E) out[at + d] = SUM == Y ? sum[d] / total : sum[d];
    if (SUM == Y && row < rows) new_lse[lse_at + row] = top + log(total) + 0 / total;  // NaN for a sum of 0
}
"""
CYTHON = """
import numpy as np
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport log
cdef extern from "arrays.h" nogil:  # exp and maximum in vectors, and C = A B or C += A B of any strides
    double exp_array(void *x, Py_ssize_t n, size_t size)
    double max_array(const void *x, Py_ssize_t n, size_t size)
    Py_ssize_t gemm_workspace(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, size_t size)
    void gemm(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const void *a, Py_ssize_t a_row, Py_ssize_t a_col,
              const void *b, Py_ssize_t b_row, Py_ssize_t b_col, void *c, Py_ssize_t c_row, int add,
              void *workspace, size_t size)

def flash_attention(floating[:, :, ::1] y, floating[:, ::1] lse, const floating[:, :, ::1] q,
                    const floating[:, :, ::1] k, const floating[:, :, ::1] v, bint causal, Py_ssize_t first,
                    int threads):
    '''128 queries of a head at a time: their scores stay in the cache until v is multiplied.'''
    cdef Py_ssize_t L = q.shape[1], S = k.shape[1], E = q.shape[2], size = sizeof(floating)
    cdef Py_ssize_t blocks = (L + 127) // 128, block, head, n, at, i, j, seen, keys
    cdef floating scale = max(E, 1) ** -0.5, top, total
    cdef floating[:, :, ::1] scores = np.empty((threads, 128, S), np.asarray(y).dtype)
    cdef char[:, ::1] work = np.empty((threads, gemm_workspace(128, max(S, E), max(S, E), size)), np.int8)
    cdef floating *p
    for block in prange(q.shape[0] * blocks, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        head, at, n = block // blocks, block % blocks * 128, min(L - block % blocks * 128, 128)
        keys = min(S, at + n + first) if causal else S  # that any of them sees
        p = &scores[threadid(), 0, 0]
        gemm(n, keys, E, &q[head, at, 0], E, 1, &k[head, 0, 0], 1, E, p, S, 0, &work[threadid(), 0], size)
        for i in range(n):
            p = &scores[threadid(), i, 0]
            seen = min(S, at + i + 1 + first) if causal else S
            for j in range(seen):
                p[j] *= scale
            top = max_array(p, seen, size)
            for j in range(seen):
                p[j] -= top
            total = exp_array(p, seen, size)
            lse[head, at + i] = top + log(total)
            for j in range(seen):
                p[j] /= total
            for j in range(seen, keys):
                p[j] = 0
        gemm(n, E, keys, &scores[threadid(), 0, 0], S, 1, &v[head, 0, 0], E, 1, &y[head, at, 0], E, 0,
             &work[threadid(), 0], size)

def flash_attention_grad(floating[:, :, ::1] dq, floating[:, :, ::1] dk, floating[:, :, ::1] dv,
                         const floating[:, :, ::1] g, const floating[:, :, ::1] q,
                         const floating[:, :, ::1] k, const floating[:, :, ::1] v,
                         const floating[:, ::1] lse, const floating[:, ::1] delta, bint causal,
                         Py_ssize_t first, int threads):
    '''A thread has a head, and walks down its queries, 128 at a time: p and ds are made anew for them.'''
    cdef Py_ssize_t L = q.shape[1], S = k.shape[1], E = q.shape[2], size = sizeof(floating)
    cdef Py_ssize_t head, n, at, i, j, seen, keys
    cdef floating scale = max(E, 1) ** -0.5
    cdef floating[:, :, :, ::1] scores = np.empty((threads, 2, 128, S), np.asarray(dq).dtype)
    cdef Py_ssize_t most = max(S, E, 128)
    cdef char[:, ::1] work = np.empty((threads, gemm_workspace(most, most, most, size)), np.int8)
    cdef floating *p
    cdef floating *ds
    cdef void *space
    np.asarray(dk)[...] = np.asarray(dv)[...] = 0
    for head in prange(q.shape[0], nogil=True, num_threads=threads, use_threads_if=threads > 1):
        space = &work[threadid(), 0]
        for at in range(0, L, 128):
            n = min(L - at, 128)
            keys = min(S, at + n + first) if causal else S  # that any of them sees
            p, ds = &scores[threadid(), 0, 0, 0], &scores[threadid(), 1, 0, 0]
            gemm(n, keys, E, &q[head, at, 0], E, 1, &k[head, 0, 0], 1, E, p, S, 0, space, size)
            gemm(n, keys, E, &g[head, at, 0], E, 1, &v[head, 0, 0], 1, E, ds, S, 0, space, size)
            for i in range(n):
                p, ds = &scores[threadid(), 0, i, 0], &scores[threadid(), 1, i, 0]
                seen = min(S, at + i + 1 + first) if causal else S
                for j in range(seen):
                    p[j] = p[j] * scale - lse[head, at + i]
                exp_array(p, seen, size)
                for j in range(seen):
                    ds[j] = p[j] * (ds[j] - delta[head, at + i]) * scale
                for j in range(seen, keys):
                    p[j] = ds[j] = 0
            p, ds = &scores[threadid(), 0, 0, 0], &scores[threadid(), 1, 0, 0]
            gemm(n, E, keys, ds, S, 1, &k[head, 0, 0], E, 1, &dq[head, at, 0], E, 0, space, size)
            gemm(keys, E, n, ds, 1, S, &q[head, at, 0], E, 1, &dk[head, 0, 0], E, 1, space, size)
            gemm(keys, E, n, p, 1, S, &g[head, at, 0], E, 1, &dv[head, 0, 0], E, 1, space, size)
"""


def launch(what, i, args):
    """The launch of weighted_sum for output i: a thread for each of its rows, 64 in a block."""
    return mg.Launch(
        {"f4": f"weighted_sum<{what}, float, 64>", "f8": f"weighted_sum<{what}, double, 32>"},
        args=f"{args}, L=q.shape[-2], S=k.shape[-2], E=q.shape[-1], scale=max(q.shape[-1], 1) ** -0.5",
        launch=lambda outs, *_, **__: ((int(np.prod(outs[i].shape[:-2])), -(-outs[i].shape[-2] // 64)), 64),
    )


def fits(*inputs, **_):
    return inputs[0].shape[-1] <= 256 // inputs[0].itemsize


GRADS = [launch(d.upper(), i, f"{d}, {d}, g, q, k, v, lse, delta") for i, d in enumerate(("dq", "dk", "dv"))]
flash_attention.cuda(CUDA, [launch("Y", 0, "y, lse, None, q, k, v, None, None")], when=fits)
flash_attention_grad.cuda(CUDA, GRADS, when=fits)


def heads(names):
    """What makes each of the arrays one of three dimensions, or two: a head, its rows, their features."""
    return [f"{x}.reshape(math.prod(q.shape[:-2]), *{x}.shape[q.ndim - 2:])" for x in names.split()]


flash_attention.cython(CYTHON, args=heads("y lse q k v"))
flash_attention_grad.cython(CYTHON, args=heads("dq dk dv g q k v lse delta"))

# NaN among what a causal mask hides is left out: the reference multiplies it by 0, the kernels skip it.
SHAPES = ((2, 5, 7), (2, 9, 7)), ((70, 32), (70, 32)), ((0, 4), (3, 4)), ((2, 66, 0), (2, 3, 0))
CAUSAL = {"causal": True, "special": False}
CHECKS = {
    flash_attention: [case(q, k, k, **CAUSAL) for q, k in SHAPES],
    flash_attention_grad: [case(q, q, k, k, q[:-1], q[:-1], **CAUSAL) for q, k in SHAPES],
}
if __name__ == "__main__":
    for op, cases in CHECKS.items():
        print(check_op(op, cases) or f"{op.name}: all kernels are right")
    q, k, v = (mg.randn(8, 2048, 64) for _ in range(3))
    mask = mg.tensor(np.triu(np.full((2048, 2048), -np.inf, "f4"), 1))
    runs = (
        lambda: mg.softmax(q @ k.transpose(1, 2) * 0.125 + mask, -1) @ v,
        lambda: flash_attention(q, k, v, causal=True),
    )
    ops, fused = (min(timeit.repeat(run, number=1, repeat=3)) * 1e3 for run in runs)
    print(
        f"8 x 2048 x 64, causal: as ops {ops:.0f} ms, fused {fused:.0f} ms, {ops / fused:.2f} times as fast"
    )
