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
    NAME(QUERIES) = 24,       /* rows of a block, forward: a multiple of the tile's 6, 8 or 12 */
    NAME(GRAD_QUERIES) = 48,  /* backward, where they are the depth of two products */
    NAME(GRAD_KEYS) = 128,    /* keys of a block, backward: 24 KB of float32 scores */
};

ALWAYS_INLINE ptrdiff_t NAME(panels)(ptrdiff_t columns, ptrdiff_t depth) {
    return NAME(round_up)(columns, NAME(NR)) * depth;
}

ALWAYS_INLINE void NAME(scale_array)(ptrdiff_t n, REAL scale, REAL *x) {
    for (ptrdiff_t i = 0; i < n; i++) x[i] *= scale;
}

/* scores = exp(scores - shift), and their sum; zeros from `seen` to `count`. */
ALWAYS_INLINE REAL NAME(exponentials)(ptrdiff_t seen, ptrdiff_t count, REAL shift, REAL *scores) {
    VECTOR sums = {0};
    for (ptrdiff_t j = 0; j < seen; j += LANES) {
        VECTOR e = NAME(exp_nonpositive)(NAME(load)(scores + j, seen - j, -(REAL)INFINITY) - shift);
        NAME(store)(scores + j, seen - j, e);
        sums += e;
    }
    for (ptrdiff_t j = seen; j < count; j++) scores[j] = 0;
    return NAME(lane_sum)(sums);
}

MAYBE_UNUSED ptrdiff_t NAME(attention_workspace)(ptrdiff_t S, ptrdiff_t E, ptrdiff_t V) {
    return NAME(panels)(S, E) + NAME(panels)(V, S) + NAME(QUERIES) * NAME(round_up)(S, NAME(NR));
}

/* The queries from `first` to `last`. */
MAYBE_UNUSED void NAME(attention_forward)(ptrdiff_t S, ptrdiff_t E, ptrdiff_t V, ptrdiff_t first,
                                          ptrdiff_t last, int causal, double scale, const REAL *q,
                                          ptrdiff_t q_row, const REAL *k, ptrdiff_t k_row, const REAL *v,
                                          ptrdiff_t v_row, REAL *out, REAL *lse, REAL *workspace) {
    const ptrdiff_t row = NAME(round_up)(S, NAME(NR));
    REAL *k_panels = workspace, *v_panels = k_panels + NAME(panels)(S, E);
    REAL *scores = v_panels + NAME(panels)(V, S);
    NAME(pack_b)(E, S, k, 1, k_row, k_panels);
    NAME(scale_array)(NAME(panels)(S, E), (REAL)scale, k_panels);
    NAME(pack_b)(S, V, v, v_row, 1, v_panels);
    for (ptrdiff_t i = first; i < last; i += NAME(QUERIES)) {
        const ptrdiff_t rows = NAME(smaller)(last - i, NAME(QUERIES));
        const ptrdiff_t keys = causal ? NAME(smaller)(S, i + rows) : S;
        REAL inverse[NAME(QUERIES)];
        NAME(gemm_panels)(rows, keys, E, q + i * q_row, q_row, 1, k_panels, E, scores, row, NULL, 0);
        for (ptrdiff_t r = 0; r < rows; r++) {
            const ptrdiff_t seen = causal ? NAME(smaller)(S, i + r + 1) : S;
            const REAL max = NAME(row_max)(scores + r * row, seen);
            const REAL sum = NAME(exponentials)(seen, keys, max, scores + r * row);
            inverse[r] = 1 / sum; /* the sum is at least 1 */
            lse[i + r] = max + NAME(log)(sum);
        }
        NAME(gemm_panels)(rows, V, keys, scores, row, 1, v_panels, S, out + i * V, V, NULL, 0);
        for (ptrdiff_t r = 0; r < rows; r++) NAME(scale_array)(V, inverse[r], out + (i + r) * V);
    }
}

/* The blocks of scores and of their gradients; k^T, k and v^T of one block of keys; one number a query. */
MAYBE_UNUSED ptrdiff_t NAME(attention_grad_workspace)(ptrdiff_t L, ptrdiff_t E, ptrdiff_t V) {
    const ptrdiff_t keys = NAME(GRAD_KEYS), queries = NAME(GRAD_QUERIES);
    return 2 * queries * keys + NAME(panels)(keys, E) + NAME(panels)(E, keys) + NAME(panels)(keys, V)
         + NAME(gemm_workspace)(keys, E > V ? E : V, queries) + L;
}

/* From scores s and g = grad v^T to p = exp(s - lse) and to the scores' gradient p (g - inner). */
ALWAYS_INLINE void NAME(score_gradients)(ptrdiff_t seen, ptrdiff_t count, REAL lse, REAL inner, REAL *p, REAL *g) {
    NAME(exponentials)(seen, count, lse, p);
    for (ptrdiff_t j = 0; j < count; j++) g[j] = p[j] * (g[j] - inner);
}

/* One block of keys, from `key` on, against all queries that see any of it. */
MAYBE_UNUSED void NAME(attention_backward_keys)(ptrdiff_t L, ptrdiff_t E, ptrdiff_t V, ptrdiff_t key,
                                                ptrdiff_t keys, int causal, double scale, const REAL *q,
                                                ptrdiff_t q_row, const REAL *k, ptrdiff_t k_row,
                                                const REAL *v, ptrdiff_t v_row, const REAL *grad,
                                                ptrdiff_t grad_row, const REAL *lse, const REAL *inner,
                                                REAL *dq, REAL *dk, REAL *dv, REAL *workspace) {
    enum { ROW = NAME(GRAD_KEYS) };
    REAL *p = workspace, *ds = p + NAME(GRAD_QUERIES) * ROW, *kt_panels = ds + NAME(GRAD_QUERIES) * ROW;
    REAL *k_panels = kt_panels + NAME(panels)(ROW, E), *vt_panels = k_panels + NAME(panels)(E, ROW);
    REAL *gemm_workspace = vt_panels + NAME(panels)(ROW, V);
    NAME(pack_b)(E, keys, k, 1, k_row, kt_panels);
    NAME(scale_array)(NAME(panels)(keys, E), (REAL)scale, kt_panels);
    NAME(pack_b)(keys, E, k, k_row, 1, k_panels);
    NAME(scale_array)(NAME(panels)(E, keys), (REAL)scale, k_panels);
    NAME(pack_b)(V, keys, v, 1, v_row, vt_panels);
    for (ptrdiff_t i = causal ? key : 0; i < L; i += NAME(GRAD_QUERIES)) {
        const ptrdiff_t rows = NAME(smaller)(L - i, NAME(GRAD_QUERIES));
        const ptrdiff_t near = causal ? NAME(smaller)(keys, i + rows - key) : keys;
        NAME(gemm_panels)(rows, near, E, q + i * q_row, q_row, 1, kt_panels, E, p, ROW, NULL, 0);
        NAME(gemm_panels)(rows, near, V, grad + i * grad_row, grad_row, 1, vt_panels, V, ds, ROW, NULL, 0);
        for (ptrdiff_t r = 0; r < rows; r++)
            NAME(score_gradients)(causal ? NAME(smaller)(keys, i + r + 1 - key) : keys, near, lse[i + r],
                                  inner[i + r], p + r * ROW, ds + r * ROW);
        NAME(gemm_unpacked_add)(near, V, rows, p, 1, ROW, grad + i * grad_row, grad_row, 1, dv, V, dv, V,
                                gemm_workspace);
        NAME(gemm_unpacked_add)(near, E, rows, ds, 1, ROW, q + i * q_row, q_row, 1, dk, E, dk, E,
                                gemm_workspace);
        NAME(gemm_panels)(rows, E, near, ds, ROW, 1, k_panels, keys, dq + i * E, E, key ? dq + i * E : NULL, E);
    }
    NAME(scale_array)(keys * E, (REAL)scale, dk);
}

/* p = exp(s - lse), dv = p^T grad, ds = p (grad v^T - inner) with inner = sum(grad out), dq = ds k scale,
 * dk = ds^T q scale. */
MAYBE_UNUSED void NAME(attention_backward)(ptrdiff_t L, ptrdiff_t S, ptrdiff_t E, ptrdiff_t V, int causal,
                                           double scale, const REAL *q, ptrdiff_t q_row, const REAL *k,
                                           ptrdiff_t k_row, const REAL *v, ptrdiff_t v_row, const REAL *grad,
                                           ptrdiff_t grad_row, const REAL *out, const REAL *lse, REAL *dq,
                                           REAL *dk, REAL *dv, REAL *workspace) {
    REAL *inner = workspace, *rest = workspace + L;
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
