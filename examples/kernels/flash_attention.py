"""FlashAttention: softmax(q k^T / sqrt(E)) v and its gradients, with no (L, S) matrix in memory.

Scores are made in tiles, used, and thrown away (Dao et al. 2022, https://arxiv.org/abs/2205.14135): on a card
key by key, as in online_softmax.py; on the processor in whole rows; backward anew, in tensor ops. A matrix is
held by the gradient's gradient and the reference, which a card runs beyond 64 features (32 in float64).
"""

import minigrad as mg
from minigrad.testing import bench_op, case, check_op


def scores(xp, q, k, causal, first=0):
    """q k^T / sqrt(E); if causal, the first query sees keys 0 to ``first``, and each other one more."""
    s = xp.matmul(q * max(q.shape[-1], 1) ** -0.5, xp.swapaxes(k, -1, -2))
    return xp.where(xp.tril(xp.ones_like(s, dtype=bool), first), s, -xp.inf) if causal else s


@mg.op
def flash_attention(xp, q, k, v, *, causal: bool = False):
    """Queries (..., L, E), keys and values (..., S, E) -> (..., L, E)."""
    s = scores(xp, q, k, causal)
    e = xp.exp(s - xp.amax(s, -1)[..., None])
    return xp.matmul(e, v) / e.sum(-1)[..., None]


@flash_attention.shape
def _(q, k, v, **_):
    if q.shape[:-2] != k.shape[:-2] or k.shape != v.shape or q.shape[-1] != k.shape[-1] or k.shape[-2] == 0:
        raise ValueError(f"flash_attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    return q.shape


@flash_attention.grad
def _(g, _y, q, k, v, *, causal):
    dq, dk, dv, pad = [], mg.zeros_like(k), mg.zeros_like(v), mg.nn.functional.pad
    for i in range(0, max(q.shape[-2], 1), 128):
        rows = ..., slice(i, i + 128), slice(None)
        seen = ..., slice(i + 128 if causal else None), slice(None)  # the keys that any of them sees
        p = mg.softmax(scores(mg, q[rows], k[seen], causal, i), -1)
        ds = mg.get_op("softmax_grad")(g[rows] @ v[seen].mT, p, dim=-1) * max(q.shape[-1], 1) ** -0.5
        dq.append(ds @ k[seen])
        dk = dk + pad(ds.mT @ q[rows], (0, 0, 0, k.shape[-2] - p.shape[-1]))
        dv = dv + pad(p.mT @ g[rows], (0, 0, 0, k.shape[-2] - p.shape[-1]))
    return mg.cat(dq, -2), dk, dv


CUDA = """
// A thread has a query, its sum and total in registers; keys and values pass by in shared memory.
template <typename T> __global__ __launch_bounds__(64) void flash_attention(
    T* out, const T* q, const T* k, const T* v, long long L, long long S, int E, T scale, bool causal) {
    constexpr int D = 256 / sizeof(T);  // the most features that fit
    __shared__ T keys[64][D], values[64][D];
    const long long row = blockIdx.y * 64ll + threadIdx.x, at = (blockIdx.x * L + row) * E;
    const long long end = causal ? min(S, blockIdx.y * 64ll + 64) : S;
    T query[D], sum[D] = {}, total = 0, top = sizeof(T) == 4 ? -3.402823466e+38 : -1.7976931348623157e+308;
    for (int d = 0; d < D; d++) query[d] = row < L && d < E ? q[at + d] * scale : T(0);
    for (long long first = 0; first < end; first += 64) {
        __syncthreads();  // the last keys are done with
        for (int i = threadIdx.x; i < 64 * D; i += 64) {
            const bool inside = first + i / D < S && i % D < E;
            keys[i / D][i % D] = inside ? k[(blockIdx.x * S + first + i / D) * E + i % D] : T(0);
            values[i / D][i % D] = inside ? v[(blockIdx.x * S + first + i / D) * E + i % D] : T(0);
        }
        __syncthreads();  // the next are there
        for (int j = 0; j < 64 && first + j < end && (!causal || first + j <= row); j++) {
            T score = 0;
            for (int d = 0; d < D; d++) score += query[d] * keys[j][d];
            const T higher = fmax(top, score), shrink = exp(top - higher), p = exp(score - higher);
            for (int d = 0; d < D; d++) sum[d] = sum[d] * shrink + p * values[j][d];
            total = total * shrink + p, top = higher;
        }
    }
    for (int d = 0; d < D; d++) if (row < L && d < E) out[at + d] = sum[d] / total;
}
"""
CYTHON = """
import numpy as np
from arrays cimport exp_array, gemm, gemm_workspace, max_array  # minigrad's own: in vectors, of any strides
from cython cimport floating
from cython.parallel cimport prange, threadid
# 128 queries of a head at a time: their scores stay in the cache until v is multiplied.
def flash_attention(floating[::1] out, const floating[::1] q, const floating[::1] k, const floating[::1] v,
                    Py_ssize_t L, Py_ssize_t S, Py_ssize_t E, double scale, bint causal, int threads):
    cdef Py_ssize_t heads = out.shape[0] // max(L * E, 1), tiles = (L + 127) // 128, size = sizeof(floating)
    cdef floating[:, :, ::1] scores = np.empty((threads, 128, S), np.asarray(out).dtype)
    cdef Py_ssize_t most = max(gemm_workspace(128, S, E, size), gemm_workspace(128, E, S, size))
    cdef char[:, ::1] work = np.empty((threads, most), np.int8)
    cdef Py_ssize_t tile, head, row, n, at, end, seen, i, j
    cdef floating top, total, *s
    for tile in prange(heads * tiles, nogil=True, num_threads=threads, use_threads_if=threads > 1):
        head, row, space = tile // tiles, tile % tiles * 128, &work[threadid(), 0]
        n, at, end = min(L - row, 128), (head * L + row) * E, min(S, row + 128) if causal else S
        gemm(n, end, E, &q[at], E, 1, &k[head * S * E], 1, E, &scores[threadid(), 0, 0], S, 0, space, size)
        for i in range(n):
            s, seen = &scores[threadid(), i, 0], min(S, row + i + 1) if causal else S
            top = max_array(s, seen, size)
            for j in range(seen):
                s[j] = (s[j] - top) * scale
            total = exp_array(s, seen, size)
            for j in range(end):
                s[j] = s[j] / total if j < seen else 0
        gemm(n, E, end, &scores[threadid(), 0, 0], S, 1, &v[head * S * E], E, 1, &out[at], E, 0, space, size)
"""
SIZES = "L=q.shape[-2], S=k.shape[-2], E=q.shape[-1], scale=max(q.shape[-1], 1) ** -0.5"
flash_attention.cython(CYTHON, args=SIZES)
flash_attention.cuda(
    CUDA,
    args=SIZES,
    launch=lambda out, *_, **__: ((out[..., :1, :1].size, -(-out.shape[-2] // 64)), 64),
    when=lambda q, *_, **__: q.shape[-1] <= 256 // q.itemsize,
)

# If causal, without special values: the reference multiplies what is hidden by 0, the kernels skip it.
SHAPES = ((2, 5, 7), (2, 9, 7)), ((70, 32), (70, 32)), ((0, 4), (3, 4)), ((2, 66, 0), (2, 3, 0))
CHECKS = {flash_attention: [case(q, k, k, causal=c, special=not c) for q, k in SHAPES for c in (True, False)]}
if __name__ == "__main__":
    print(check_op(flash_attention, CHECKS[flash_attention]))
    ops = {"as ops": lambda *qkv: flash_attention.reference(mg, *qkv, causal=True)}
    print(bench_op(flash_attention, [case(*[(4, 1024, 64)] * 3, causal=True)], against=ops))
