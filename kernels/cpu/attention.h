/* Attention of one head, for attention.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64,
 * and includes gemm.h, vector_log.h and vector_math.h, and Head and Rows.
 *
 * Scores stand transposed: a row for each key, whose lanes are queries. So the maximum and the sum over a query's
 * keys are taken lane by lane, with nothing to combine within a vector, and k and v are read in place. The scale is
 * multiplied into q as it is packed: q is L E elements, the scores are L S.
 */

#include "lanes.h"

enum {
    /* Of a block, backward: whole tiles of queries, the depth of two products; 128 x 144 float32 gradients of scores
     * stay in L2. */
    NAME(GRAD_QUERIES) = 128 / NAME(NR) * NAME(NR),
    NAME(GRAD_KEYS) = 128,
    NAME(GRAD_ROW) = NAME(GRAD_QUERIES) + NAME(LINE), /* no power of two, so that a column lies in all sets of L1 */
};

ALWAYS_INLINE const REAL *NAME(row)(const Rows *m, ptrdiff_t i) { return (const REAL *)m->data + i * m->row; }

/* Of the next head, the rows from `begin` to `end` of all `count` on their way to L2. They lie far apart, where no
 * hardware foresees them, and a small head is computed in the time in which memory brings one. */
ALWAYS_INLINE void NAME(fetch_next)(const Rows *m, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t count,
                                    ptrdiff_t columns) {
    if (!m->next) return;
    for (ptrdiff_t i = begin; i < NAME(smaller)(end, count); i++)
        for (ptrdiff_t j = 0; j < columns; j += NAME(LINE))
            __builtin_prefetch((const REAL *)m->next + i * m->row + j, 0, 2);
}

ALWAYS_INLINE ptrdiff_t NAME(panels)(ptrdiff_t columns, ptrdiff_t depth) {
    return NAME(round_up)(columns, NAME(NR)) * depth;
}

ALWAYS_INLINE void NAME(scale_array)(ptrdiff_t n, REAL scale, REAL *x) {
    for (ptrdiff_t i = 0; i < n; i++) x[i] *= scale;
}

/* scale times the transpose of some rows of q, in panels. */
ALWAYS_INLINE void NAME(pack_queries)(const Head *h, ptrdiff_t first, ptrdiff_t queries, REAL *panels) {
    NAME(pack_b)(h->E, queries, NAME(row)(&h->q, first), 1, h->q.row, panels);
    NAME(scale_array)(NAME(panels)(queries, h->E), (REAL)h->scale, panels);
}

/* The keys that some of `count` queries from `first` on see. */
ALWAYS_INLINE ptrdiff_t NAME(keys_seen)(const Head *h, ptrdiff_t first, ptrdiff_t count) {
    return h->causal ? NAME(smaller)(h->S, first + count) : h->S;
}

/* `value`, but `otherwise` in the first `hidden` lanes, whose queries come before the key. */
ALWAYS_INLINE VECTOR NAME(seen)(ptrdiff_t hidden, VECTOR value, REAL otherwise) {
    VECTOR lanes;
    UNROLL for (int lane = 0; lane < LANES; lane++) lanes[lane] = (REAL)lane;
    return NAME(select)(lanes < (REAL)hidden, (VECTOR){0} + otherwise, value);
}

/* Minus infinity in the place of each score of a key that comes after the query. */
ALWAYS_INLINE void NAME(hide)(ptrdiff_t first_query, ptrdiff_t keys, REAL *scores) {
    for (ptrdiff_t key = first_query + 1; key < keys; key++)
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            VECTOR *at = (VECTOR *)(scores + key * NAME(NR)) + v;
            *at = NAME(seen)(key - first_query - v * LANES, *at, -(REAL)INFINITY);
        }
}

/* The scores of a tile of queries: a row of them for each key. With a single query, as when text is generated, all
 * lanes of a tile but one would be computed in vain: then dot products, which are spread from the last one on. */
ALWAYS_INLINE void NAME(score_tile)(const Head *h, ptrdiff_t first, ptrdiff_t queries, ptrdiff_t keys, REAL *q_panel,
                                    REAL *scores) {
    enum { NR = NAME(NR) };
    if (queries == 1) {
        NAME(gemv)(keys, h->E, NAME(row)(&h->q, first), 1, h->k.data, 1, h->k.row, scores, NAME(adding)(NULL, 0), 0);
        for (ptrdiff_t key = keys - 1; key >= 0; key--) scores[key * NR] = scores[key] * (REAL)h->scale;
    } else {
        NAME(pack_queries)(h, first, queries, q_panel);
        NAME(gemm_panels)(keys, queries <= LANES ? LANES : NR, h->E, h->k.data, h->k.row, 1, q_panel, h->E, scores,
                          NR, NAME(adding)(NULL, 0));
    }
}

/* scores = exp(scores - max) for a tile of queries, in the first `vectors` of it, one over their sums, and for the
 * first `count` the logarithms of the sums before max was taken off. A sum is at least 1. */
ALWAYS_INLINE void NAME(exponentials)(const int vectors, ptrdiff_t keys, REAL *scores, REAL *inverse,
                                      ptrdiff_t count, REAL *lse) {
    VECTOR max[TILE_VECTORS], sums[TILE_VECTORS] = {{0}};
    UNROLL for (int v = 0; v < vectors; v++) max[v] = (VECTOR){0} - (REAL)INFINITY;
    for (ptrdiff_t key = 0; key < keys; key++)
        UNROLL for (int v = 0; v < vectors; v++) /* a NaN is passed over */
            max[v] = NAME(max)(((VECTOR *)(scores + key * NAME(NR)))[v], max[v]);
    for (ptrdiff_t key = 0; key < keys; key++) {
        VECTOR e[TILE_VECTORS], *at = (VECTOR *)(scores + key * NAME(NR));
        UNROLL for (int v = 0; v < vectors; v++) e[v] = NAME(exp_nonpositive)(at[v] - max[v]);
        UNROLL for (int v = 0; v < vectors; v++) {
            at[v] = e[v];
            sums[v] += e[v];
        }
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        ((VECTOR *)inverse)[v] = 1 / sums[v];
        if (v * LANES < count) NAME(store)(lse + v * LANES, count - v * LANES, max[v] + NAME(log)(sums[v]));
    }
}

MAYBE_UNUSED ptrdiff_t NAME(attention_workspace)(const Head *h) {
    return NAME(NR) * (h->S + h->E + 1) + NAME(panels)(h->V, h->S);
}

/* The queries from h->first to h->last, a tile of them at a time. */
MAYBE_UNUSED void NAME(attention_forward)(const Head *h, void *workspace) {
    enum { MR = NAME(MR), NR = NAME(NR) };
    const ptrdiff_t S = h->S, E = h->E, V = h->V;
    REAL *scores = workspace, *q_panel = scores + NR * S, *inverse = q_panel + NR * E, *v_panels = inverse + NR;
    NAME(pack_b)(S, V, h->v.data, h->v.row, 1, v_panels);
    for (ptrdiff_t i = h->first; i < h->last; i += NR) {
        const ptrdiff_t queries = NAME(smaller)(h->last - i, NR), keys = NAME(keys_seen)(h, i, queries);
        NAME(score_tile)(h, i, queries, keys, q_panel, scores);
        if (h->causal) NAME(hide)(i, keys, scores);
        if (queries <= LANES)
            NAME(exponentials)(1, keys, scores, inverse, queries, (REAL *)h->lse + i);
        else
            NAME(exponentials)(TILE_VECTORS, keys, scores, inverse, queries, (REAL *)h->lse + i);
        for (ptrdiff_t r = 0; r < queries; r += MR) {
            const ptrdiff_t begin = i + r, rows = NAME(smaller)(queries - r, MR), end = begin + rows;
            REAL *out = (REAL *)h->out + begin * V;
            NAME(fetch_next)(&h->q, begin, end, h->L, E);
            NAME(fetch_next)(&h->k, begin, end, S, E);
            NAME(fetch_next)(&h->v, begin, end, S, V);
            NAME(gemm_panels)(rows, V, NAME(keys_seen)(h, begin, rows), scores + r, 1, NR, v_panels, S, out, V,
                              NAME(adding)(NULL, 0));
            for (ptrdiff_t s = 0; s < rows; s++) NAME(scale_array)(V, inverse[r + s], out + s * V);
        }
    }
}

/* ---- the gradients ----
 *
 * p = exp(s - lse), dv = p^T grad, ds = scale p (grad v^T - inner) with inner = sum(grad out), dq = ds k,
 * dk = ds^T q. */

/* Of a block of queries: their matrices in panels, and for each query lse and inner. */
typedef struct {
    ptrdiff_t first, queries;
    REAL *qt, *q, *gradt, *grad, *lse, *inner;
} NAME(Block);

/* The scores of one tile's keys, and the gradients of a block's; k in panels, and a Block. */
MAYBE_UNUSED ptrdiff_t NAME(attention_grad_workspace)(const Head *h) {
    const ptrdiff_t queries = NAME(GRAD_QUERIES);
    return (NAME(MR) + NAME(GRAD_KEYS)) * NAME(GRAD_ROW) + NAME(panels)(h->E, h->S)
         + NAME(panels)(queries, h->E + h->V + 2) + NAME(panels)(h->E, queries) + NAME(panels)(h->V, queries);
}

ALWAYS_INLINE void NAME(pack_block)(const Head *h, NAME(Block) *b) {
    const REAL *grad = NAME(row)(&h->grad, b->first), *out = (const REAL *)h->out + b->first * h->V;
    NAME(pack_queries)(h, b->first, b->queries, b->qt);
    NAME(pack_b)(b->queries, h->E, NAME(row)(&h->q, b->first), h->q.row, 1, b->q);
    NAME(pack_b)(h->V, b->queries, grad, 1, h->grad.row, b->gradt);
    NAME(pack_b)(b->queries, h->V, grad, h->grad.row, 1, b->grad);
    for (ptrdiff_t i = 0; i < b->queries; i++, grad += h->grad.row, out += h->V) {
        VECTOR sums = {0};
        for (ptrdiff_t j = 0; j < h->V; j += LANES)
            sums += NAME(load)(grad + j, h->V - j, 0) * NAME(load)(out + j, h->V - j, 0);
        b->inner[i] = NAME(lane_sum)(sums);
        b->lse[i] = ((const REAL *)h->lse)[b->first + i];
    }
}

/* For a tile of queries, the first `hidden` of which do not see the first of the keys: from scores s and
 * g = v grad^T to p and, in the place of g, ds. */
ALWAYS_INLINE void NAME(score_gradients)(ptrdiff_t keys, ptrdiff_t hidden, const REAL *lse, const REAL *inner,
                                         REAL scale, REAL *p, REAL *g) {
    for (ptrdiff_t key = 0; key < keys; key++, hidden++, p += NAME(GRAD_ROW), g += NAME(GRAD_ROW)) {
        VECTOR e[TILE_VECTORS], *ps = (VECTOR *)p, *gs = (VECTOR *)g;
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) e[v] = NAME(exp_nonpositive)(ps[v] - ((VECTOR *)lse)[v]);
        UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
            ps[v] = e[v];
            gs[v] = e[v] * (gs[v] - ((VECTOR *)inner)[v]) * scale;
        }
        if (hidden > 0)
            UNROLL for (int v = 0; v < TILE_VECTORS; v++) {
                ps[v] = NAME(seen)(hidden - v * LANES, ps[v], 0);
                gs[v] = NAME(seen)(hidden - v * LANES, gs[v], 0);
            }
    }
}

/* The keys from `first` to `end` with a block of queries: dk and dv, and ds. A tile of scores is computed only if
 * some query sees some of it; the sums begin at the first query that sees a key. */
ALWAYS_INLINE void NAME(key_gradients)(const Head *h, const NAME(Block) *b, ptrdiff_t first, ptrdiff_t end, REAL *p,
                                       REAL *ds) {
    enum { ROW = NAME(GRAD_ROW), MR = NAME(MR), NR = NAME(NR) };
    const ptrdiff_t E = h->E, V = h->V;
    for (ptrdiff_t key = first; key < end; key += MR, ds += MR * ROW) {
        const ptrdiff_t rows = NAME(smaller)(end - key, MR), behind = h->causal ? key - b->first : -MR;
        const ptrdiff_t hidden = behind > 0 ? behind : 0, depth = b->queries - hidden, tile = hidden / NR * NR;
        const ptrdiff_t columns = NAME(round_up)(b->queries, LANES) - tile;
        REAL *dk = (REAL *)h->dk + key * E, *dv = (REAL *)h->dv + key * V;
        NAME(gemm_panels)(rows, columns, E, NAME(row)(&h->k, key), h->k.row, 1, b->qt + tile * E, E, p + tile, ROW,
                          NAME(adding)(NULL, 0));
        NAME(gemm_panels)(rows, columns, V, NAME(row)(&h->v, key), h->v.row, 1, b->gradt + tile * V, V, ds + tile,
                          ROW, NAME(adding)(NULL, 0));
        for (ptrdiff_t i = tile; i < b->queries; i += NR)
            NAME(score_gradients)(rows, behind - i, b->lse + i, b->inner + i, (REAL)h->scale, p + i, ds + i);
        for (ptrdiff_t r = 0; r < rows; r++) /* for dq, whose tiles of queries begin elsewhere */
            for (ptrdiff_t i = tile > MR ? tile - MR : 0; i < tile; i++) ds[r * ROW + i] = 0;
        NAME(gemm_panels)(rows, V, depth, p + hidden, ROW, 1, b->grad + hidden * NR, b->queries, dv, V,
                          NAME(adding)(dv, V));
        NAME(gemm_panels)(rows, E, depth, ds + hidden, ROW, 1, b->q + hidden * NR, b->queries, dk, E,
                          NAME(adding)(dk, E));
        NAME(fetch_next)(&h->q, key, key + rows, h->L, E);
        NAME(fetch_next)(&h->k, key, key + rows, h->S, E);
        NAME(fetch_next)(&h->v, key, key + rows, h->S, V);
        NAME(fetch_next)(&h->grad, key, key + rows, h->L, V);
    }
}

MAYBE_UNUSED void NAME(attention_backward)(const Head *h, void *workspace) {
    enum { ROW = NAME(GRAD_ROW), MR = NAME(MR), NR = NAME(NR), QUERIES = NAME(GRAD_QUERIES), KEYS = NAME(GRAD_KEYS) };
    const ptrdiff_t L = h->L, S = h->S, E = h->E, V = h->V;
    REAL *p = workspace, *ds = p + MR * ROW, *k_panels = ds + KEYS * ROW;
    NAME(Block) b = {.lse = k_panels + NAME(panels)(E, S)};
    b.inner = b.lse + QUERIES, b.qt = b.inner + QUERIES, b.gradt = b.qt + QUERIES * E;
    b.q = b.gradt + QUERIES * V, b.grad = b.q + NAME(panels)(E, QUERIES);
    NAME(start)(S, E, h->dk, E, NAME(adding)(NULL, 0));
    NAME(start)(S, V, h->dv, V, NAME(adding)(NULL, 0));
    NAME(pack_b)(S, E, h->k.data, h->k.row, 1, k_panels);
    for (b.first = 0; b.first < L; b.first += QUERIES) {
        b.queries = NAME(smaller)(L - b.first, QUERIES);
        NAME(pack_block)(h, &b);
        const ptrdiff_t keys = NAME(keys_seen)(h, b.first, b.queries);
        for (ptrdiff_t key = 0; key < keys; key += KEYS) {
            const ptrdiff_t end = NAME(smaller)(keys, key + KEYS);
            NAME(key_gradients)(h, &b, key, end, p, ds);
            for (ptrdiff_t r = 0; r < b.queries; r += MR) {
                const ptrdiff_t i = b.first + r, rows = NAME(smaller)(b.queries - r, MR);
                const ptrdiff_t seen = NAME(smaller)(end, NAME(keys_seen)(h, i, rows)) - key;
                REAL *dq = (REAL *)h->dq + i * E;
                if (seen > 0)
                    NAME(gemm_panels)(rows, E, seen, ds + r, 1, ROW, k_panels + key * NR, S, dq, E,
                                      NAME(adding)(key ? dq : NULL, E));
            }
        }
    }
}

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
