/* Attention of one head, for attention.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64 (log_f32 is logf),
 * and includes gemm.h and vector_math.h.
 *
 * q (L, E), k (S, E), v (S, V), grad (L, V): rows at strides q_row and so on, each contiguous. out (L, V),
 * lse (L), and the gradients dq, dk, dv are contiguous. With `causal`, query i sees the keys 0 to i.
 *
 * The scale is multiplied into k as it is packed: k is S E elements, the scores are L S.
 */

#include "lanes.h"

enum {
    NAME(GRAD_QUERIES) = 64, /* of a block, backward, where they are the depth of two products */
    NAME(GRAD_KEYS) = 128,   /* of a block, backward: 64 x 144 float32 scores, and their gradients, stay in L2 */
    NAME(GRAD_ROW) = NAME(GRAD_KEYS) + NAME(NR), /* no power of two, so that a column lies in all sets of L1 */
};

ALWAYS_INLINE ptrdiff_t NAME(panels)(ptrdiff_t columns, ptrdiff_t depth) {
    return NAME(round_up)(columns, NAME(NR)) * depth;
}

ALWAYS_INLINE void NAME(scale_array)(ptrdiff_t n, REAL scale, REAL *x) {
    for (ptrdiff_t i = 0; i < n; i++) x[i] *= scale;
}

/* Minus infinity from `seen` up to the end of the tile. */
ALWAYS_INLINE void NAME(hide)(ptrdiff_t seen, REAL *scores) {
    for (ptrdiff_t j = seen; j % NAME(NR); j++) scores[j] = -(REAL)INFINITY;
}

/* scores = exp(scores - max) for the first `seen`, zeros from there to `count`, and their sum. A row has space for
 * whole tiles, whose vectors are computed together: each alone would wait for its own last result. */
ALWAYS_INLINE REAL NAME(exponentials)(ptrdiff_t seen, ptrdiff_t count, REAL max, REAL *scores) {
    VECTOR sums[TILE_VECTORS] = {{0}};
    ptrdiff_t j = 0;
    for (; j < seen; j += NAME(NR)) {
        VECTOR e[TILE_VECTORS];
        UNROLL for (int v = 0; v < TILE_VECTORS; v++)
            e[v] = NAME(exp_nonpositive)(*(VECTOR *)(scores + j + v * LANES) - max);
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            *(VECTOR *)(scores + j + v * LANES) = e[v];
            sums[v] += e[v];
        }
    }
    for (; j < count; j++) scores[j] = 0;
    UNROLL for (int v = 1; v < TILE_VECTORS; v++) sums[0] += sums[v];
    return NAME(lane_sum)(sums[0]);
}

MAYBE_UNUSED ptrdiff_t NAME(attention_workspace)(ptrdiff_t S, ptrdiff_t E, ptrdiff_t V) {
    return NAME(panels)(S, E) + NAME(panels)(V, S) + NAME(MR) * NAME(round_up)(S, NAME(NR));
}

/* The queries from `first` to `last`, as many at a time as a tile has rows. */
MAYBE_UNUSED void NAME(attention_forward)(ptrdiff_t S, ptrdiff_t E, ptrdiff_t V, ptrdiff_t first,
                                          ptrdiff_t last, int causal, double scale, const REAL *q,
                                          ptrdiff_t q_row, const REAL *k, ptrdiff_t k_row, const REAL *v,
                                          ptrdiff_t v_row, REAL *out, REAL *lse, REAL *workspace) {
    const ptrdiff_t row = NAME(round_up)(S, NAME(NR));
    REAL *scores = workspace, *k_panels = scores + NAME(MR) * row, *v_panels = k_panels + NAME(panels)(S, E);
    NAME(pack_b)(E, S, k, 1, k_row, k_panels);
    NAME(scale_array)(NAME(panels)(S, E), (REAL)scale, k_panels);
    NAME(pack_b)(S, V, v, v_row, 1, v_panels);
    for (ptrdiff_t i = first; i < last; i += NAME(MR)) {
        const ptrdiff_t rows = NAME(smaller)(last - i, NAME(MR));
        const ptrdiff_t keys = causal ? NAME(smaller)(S, i + rows) : S;
        REAL inverse[NAME(MR)];
        NAME(gemm_panels)(rows, NAME(round_up)(keys, NAME(NR)), E, q + i * q_row, q_row, 1, k_panels, E, scores,
                          row, NULL, 0);
        for (ptrdiff_t r = 0; r < rows; r++) NAME(hide)(causal ? NAME(smaller)(S, i + r + 1) : S, scores + r * row);
        for (ptrdiff_t r = 0; r < rows; r++) {
            const ptrdiff_t seen = causal ? NAME(smaller)(S, i + r + 1) : S;
            const REAL max = NAME(row_max)(scores + r * row, NAME(round_up)(seen, LANES));
            const REAL sum = NAME(exponentials)(seen, keys, max, scores + r * row);
            inverse[r] = 1 / sum; /* the sum is at least 1 */
            lse[i + r] = max + NAME(log)(sum);
        }
        NAME(gemm_panels)(rows, V, keys, scores, row, 1, v_panels, S, out + i * V, V, NULL, 0);
        for (ptrdiff_t r = 0; r < rows; r++) NAME(scale_array)(V, inverse[r], out + (i + r) * V);
    }
}

/* The blocks of scores and of their gradients; k^T, k and v^T of a block of keys, q and grad of a block of
 * queries; one number a query. */
MAYBE_UNUSED ptrdiff_t NAME(attention_grad_workspace)(ptrdiff_t L, ptrdiff_t E, ptrdiff_t V) {
    const ptrdiff_t keys = NAME(GRAD_KEYS), queries = NAME(GRAD_QUERIES);
    return 2 * queries * NAME(GRAD_ROW) + NAME(panels)(keys, E) + NAME(panels)(E, keys) + NAME(panels)(keys, V)
         + NAME(panels)(E, queries) + NAME(panels)(V, queries) + NAME(round_up)(L, NAME(NR));
}

/* From scores s and g = grad v^T to p = exp(s - lse) and to the gradient of q k^T, scale p (g - inner): zeros from
 * `seen` to `count`. The rows have space for whole vectors. */
ALWAYS_INLINE void NAME(score_gradients)(ptrdiff_t seen, ptrdiff_t count, REAL lse, REAL inner, REAL scale, REAL *p,
                                         REAL *g) {
    for (ptrdiff_t j = 0; j < seen; j += NAME(NR)) {
        VECTOR e[TILE_VECTORS];
        UNROLL for (int v = 0; v < TILE_VECTORS; v++)
            e[v] = NAME(exp_nonpositive)(*(VECTOR *)(p + j + v * LANES) - lse);
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            VECTOR *at = (VECTOR *)(g + j + v * LANES);
            *(VECTOR *)(p + j + v * LANES) = e[v];
            *at = e[v] * (*at - inner) * scale;
        }
    }
    for (ptrdiff_t j = seen; j < count; j++) p[j] = g[j] = 0;
}

/* One block of keys, from `key` on, against all queries that see any of it. A tile of scores is computed only if
 * some query sees some of it; the sums of dk and dv begin at the first query that sees a key, and those of dq end
 * with the last key that is seen. */
MAYBE_UNUSED void NAME(attention_backward_keys)(ptrdiff_t L, ptrdiff_t E, ptrdiff_t V, ptrdiff_t key,
                                                ptrdiff_t keys, int causal, double scale, const REAL *q,
                                                ptrdiff_t q_row, const REAL *k, ptrdiff_t k_row,
                                                const REAL *v, ptrdiff_t v_row, const REAL *grad,
                                                ptrdiff_t grad_row, const REAL *lse, const REAL *inner,
                                                REAL *dq, REAL *dk, REAL *dv, REAL *workspace) {
    enum { ROW = NAME(GRAD_ROW), MR = NAME(MR), NR = NAME(NR) };
    REAL *p = workspace, *ds = p + NAME(GRAD_QUERIES) * ROW, *kt_panels = ds + NAME(GRAD_QUERIES) * ROW;
    REAL *k_panels = kt_panels + NAME(panels)(NAME(GRAD_KEYS), E);
    REAL *vt_panels = k_panels + NAME(panels)(E, NAME(GRAD_KEYS));
    REAL *q_panels = vt_panels + NAME(panels)(NAME(GRAD_KEYS), V);
    REAL *grad_panels = q_panels + NAME(panels)(E, NAME(GRAD_QUERIES));
    NAME(pack_b)(E, keys, k, 1, k_row, kt_panels);
    NAME(scale_array)(NAME(panels)(keys, E), (REAL)scale, kt_panels);
    NAME(pack_b)(keys, E, k, k_row, 1, k_panels);
    NAME(pack_b)(V, keys, v, 1, v_row, vt_panels);
    for (ptrdiff_t i = causal ? key : 0; i < L; i += NAME(GRAD_QUERIES)) {
        const ptrdiff_t queries = NAME(smaller)(L - i, NAME(GRAD_QUERIES));
        const ptrdiff_t hidden = causal ? i - key : keys; /* query i + r sees the keys up to hidden + r */
        NAME(pack_b)(queries, E, q + i * q_row, q_row, 1, q_panels);
        NAME(pack_b)(queries, V, grad + i * grad_row, grad_row, 1, grad_panels);
        for (ptrdiff_t r = 0; r < queries; r += MR) {
            const ptrdiff_t rows = NAME(smaller)(queries - r, MR), near = NAME(smaller)(keys, hidden + r + MR);
            const ptrdiff_t columns = NAME(round_up)(near, NR);
            REAL *p_row = p + r * ROW, *ds_row = ds + r * ROW;
            NAME(gemm_panels)(rows, columns, E, q + (i + r) * q_row, q_row, 1, kt_panels, E, p_row, ROW, NULL, 0);
            NAME(gemm_panels)(rows, columns, V, grad + (i + r) * grad_row, grad_row, 1, vt_panels, V, ds_row, ROW,
                              NULL, 0);
            for (ptrdiff_t s = 0; s < rows; s++)
                NAME(score_gradients)(NAME(smaller)(keys, hidden + r + s + 1), NAME(smaller)(keys, near + MR),
                                      lse[i + r + s], inner[i + r + s], (REAL)scale, p_row + s * ROW,
                                      ds_row + s * ROW);
            REAL *dq_row = dq + (i + r) * E;
            NAME(gemm_panels)(rows, E, near, ds_row, ROW, 1, k_panels, keys, dq_row, E, key ? dq_row : NULL, E);
        }
        for (ptrdiff_t c = 0; c < NAME(smaller)(keys, hidden + queries); c += MR) {
            const ptrdiff_t r = c > hidden ? c - hidden : 0, depth = queries - r;
            const ptrdiff_t rows = NAME(smaller)(keys - c, MR), at = r * ROW + c;
            NAME(gemm_panels)(rows, V, depth, p + at, 1, ROW, grad_panels + r * NR, queries, dv + c * V, V,
                              dv + c * V, V);
            NAME(gemm_panels)(rows, E, depth, ds + at, 1, ROW, q_panels + r * NR, queries, dk + c * E, E,
                              dk + c * E, E);
        }
    }
}

/* p = exp(s - lse), dv = p^T grad, ds = scale p (grad v^T - inner) with inner = sum(grad out), dq = ds k,
 * dk = ds^T q. */
MAYBE_UNUSED void NAME(attention_backward)(ptrdiff_t L, ptrdiff_t S, ptrdiff_t E, ptrdiff_t V, int causal,
                                           double scale, const REAL *q, ptrdiff_t q_row, const REAL *k,
                                           ptrdiff_t k_row, const REAL *v, ptrdiff_t v_row, const REAL *grad,
                                           ptrdiff_t grad_row, const REAL *out, const REAL *lse, REAL *dq,
                                           REAL *dk, REAL *dv, REAL *workspace) {
    REAL *inner = workspace, *rest = workspace + NAME(round_up)(L, NAME(NR));
    for (ptrdiff_t i = 0; i < L; i++) {
        VECTOR sums = {0};
        for (ptrdiff_t j = 0; j < V; j += LANES)
            sums += NAME(load)(grad + i * grad_row + j, V - j, 0) * NAME(load)(out + i * V + j, V - j, 0);
        inner[i] = NAME(lane_sum)(sums);
    }
    NAME(start)(S, E, dk, E, NULL, 0);
    NAME(start)(S, V, dv, V, NULL, 0);
    for (ptrdiff_t key = 0; key < S; key += NAME(GRAD_KEYS))
        NAME(attention_backward_keys)(L, E, V, key, NAME(smaller)(S - key, NAME(GRAD_KEYS)), causal, scale, q,
                                      q_row, k + key * k_row, k_row, v + key * v_row, v_row, grad, grad_row,
                                      lse, inner, dq, dk + key * E, dv + key * V, rest);
}

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
