/* The time steps of lstm.pyx for some rows of a batch, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64,
 * and includes stdint.h, gemm.h, vector_math.h and elementwise.h, of which `logistic` is used.
 *
 * The gates of an element stand H apart, in PyTorch's order: input, forget, cell, output.
 */

#ifndef MINIGRAD_LSTM_WEIGHT_GRAD
#define MINIGRAD_LSTM_WEIGHT_GRAD
/* The arrays of `lstm_weight_grad`, of REAL: the gradients dz (T, N, 4 H) of the pre-activations; what they
 * are multiplied with, x (T, N, E) and the hidden states before each step, of which h0 (N, H) is the first
 * and `hidden` (T, N, H) has the others; the results (4 H, E), (4 H, H) and (4 H,). */
typedef struct {
    ptrdiff_t T, N, E, H;
    int reverse;
    const void *dz, *x, *h0, *hidden;
    void *grad_ih, *grad_hh, *grad_bias;
} LstmWeightGrad;
#endif

enum {
    NAME(GATES) = 4,
    NAME(ROW) = NAME(GATES) * NAME(NR), /* the pre-activations of one row in a tile */
    NAME(TILE) = 48,                    /* rows of a tile: a multiple of 12, 8 and 6, in 12 KB (v4: 24 KB) */
};

/* Which gate stands in quarter k of a row of a tile: its order is i, f, o, g, the sigmoids side by side. */
ALWAYS_INLINE int NAME(lstm_gate)(int k) { return k < 2 ? k : 5 - k; }

/* The weights for `lstm_forward`: for each NR hidden units, what stays together while their pre-activations
 * are computed. It begins with the bias of the four gates, zeros if there is none; then for each gate come
 * its columns of weight_ih^T (E, H) and weight_hh^T (H, H) as panels. The gates are in the order of a tile,
 * and zeros fill up the last units. */
MAYBE_UNUSED ptrdiff_t NAME(lstm_packed_size)(ptrdiff_t E, ptrdiff_t H) {
    return NAME(round_up)(H, NAME(NR)) * NAME(GATES) * (1 + E + H);
}

MAYBE_UNUSED void NAME(lstm_pack_forward)(ptrdiff_t E, ptrdiff_t H, const REAL *weight_ih,
                                          const REAL *weight_hh, const REAL *bias, REAL *packed) {
    for (ptrdiff_t j = 0; j < H; j += NAME(NR)) {
        const ptrdiff_t columns = NAME(smaller)(H - j, NAME(NR));
        for (int k = 0; k < NAME(GATES); k++)
            for (ptrdiff_t unit = 0; unit < NAME(NR); unit++)
                *packed++ = bias && unit < columns ? bias[NAME(lstm_gate)(k) * H + j + unit] : 0;
        for (int k = 0; k < NAME(GATES); k++) {
            const ptrdiff_t first = NAME(lstm_gate)(k) * H + j;
            NAME(pack_b)(E, columns, weight_ih + first * E, 1, E, packed);
            NAME(pack_b)(H, columns, weight_hh + first * H, 1, H, packed + E * NAME(NR));
            packed += (E + H) * NAME(NR);
        }
    }
}

/* weight_hh (4 H, H) for `lstm_send_back`: itself in panels of NR columns. */
MAYBE_UNUSED void NAME(lstm_pack_backward)(ptrdiff_t H, const REAL *weight_hh, REAL *packed) {
    NAME(pack_b)(NAME(GATES) * H, H, weight_hh, H, 1, packed);
}

/* i, f, o = sigmoid(z), g = tanh(z);  c = f c_previous + i g;  h = o tanh(c), for the hidden units `columns`
 * of the rows of z, a tile. Each function has a loop of its own: its constants then stay in registers, and
 * since no vector waits for another, several are computed at once. */
MAYBE_UNUSED void NAME(lstm_cells)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t H, REAL *z,
                                   const REAL *c_previous, REAL *c, REAL *h, REAL *gates) {
    const ptrdiff_t F = NAME(NR), O = 2 * NAME(NR), G = 3 * NAME(NR); /* I is at 0 */
    REAL *const end = z + rows * NAME(ROW);
    for (REAL *row = z; row < end; row += NAME(ROW))
        for (ptrdiff_t j = 0; j < G; j += LANES)
            NAME(store)(row + j, LANES, NAME(logistic)(NAME(load)(row + j, LANES, 0)));
    for (REAL *row = z; row < end; row += NAME(ROW))
        for (ptrdiff_t j = G; j < NAME(ROW); j += LANES)
            NAME(store)(row + j, LANES, NAME(tanh)(NAME(load)(row + j, LANES, 0)));
    for (REAL *row = z; row < end; row += NAME(ROW), c_previous += H, c += H, gates += NAME(GATES) * H)
        for (ptrdiff_t j = 0, count = columns; count > 0; j += LANES, count -= LANES) {
            VECTOR i = NAME(load)(row + j, LANES, 0), f = NAME(load)(row + F + j, LANES, 0);
            VECTOR o = NAME(load)(row + O + j, LANES, 0), g = NAME(load)(row + G + j, LANES, 0);
            VECTOR cell = f * NAME(load)(c_previous + j, count, 0) + i * g;
            NAME(store)(gates + j, count, i);
            NAME(store)(gates + H + j, count, f);
            NAME(store)(gates + 2 * H + j, count, g);
            NAME(store)(gates + 3 * H + j, count, o);
            NAME(store)(c + j, count, cell);
            NAME(store)(row + G + j, LANES, cell);
        }
    for (REAL *row = z; row < end; row += NAME(ROW), h += H)
        for (ptrdiff_t j = 0, count = columns; count > 0; j += LANES, count -= LANES) {
            VECTOR o = NAME(load)(row + O + j, LANES, 0), cell = NAME(load)(row + G + j, LANES, 0);
            NAME(store)(h + j, count, o * NAME(tanh)(cell));
        }
}

/* Looks up what x contributes to a tile: row r of z gets row numbers[r] of `projected` (.., 4 H), of each gate the
 * hidden units j .. j + columns. */
MAYBE_UNUSED void NAME(lstm_look_up)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t H, const REAL *projected,
                                     const int64_t *numbers, ptrdiff_t j, REAL *z) {
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int k = 0; k < NAME(GATES); k++, z += NAME(NR)) {
            const REAL *from = projected + (numbers[r] * NAME(GATES) + NAME(lstm_gate)(k)) * H + j;
            for (ptrdiff_t unit = 0; unit < NAME(NR); unit += LANES) {
                const ptrdiff_t count = columns - unit;
                NAME(store)(z + unit, LANES, count > 0 ? NAME(load)(from + unit, count, 0) : (VECTOR){0});
            }
        }
}

/* One step: the pre-activations of NR hidden units and some rows, all four gates, and at once what becomes of
 * them. They stand in a tile of their own: in `gates`, whose rows may lie a power of two apart, they would
 * evict one another from L1. With `numbers`, the rows of x are those of `x` that these name, multiplied with
 * weight_ih before, and E is 0; numbers may be NULL. */
MAYBE_UNUSED void NAME(lstm_forward)(ptrdiff_t rows, ptrdiff_t E, ptrdiff_t H, const REAL *packed,
                                     const REAL *x, const int64_t *numbers, const REAL *h_previous,
                                     const REAL *c_previous, REAL *h, REAL *c, REAL *gates) {
    REAL z[NAME(TILE) * NAME(ROW)] __attribute__((aligned(64)));
    const ptrdiff_t panel = (E + H) * NAME(NR);
    for (ptrdiff_t j = 0; j < H; j += NAME(NR)) {
        const REAL *bias = packed;
        packed += NAME(ROW);
        for (ptrdiff_t r = 0; r < rows; r += NAME(TILE)) {
            const ptrdiff_t some = NAME(smaller)(rows - r, NAME(TILE)), at = r * H + j;
            if (numbers) NAME(lstm_look_up)(some, NAME(smaller)(H - j, NAME(NR)), H, x, numbers + r, j, z);
            for (int k = 0; k < NAME(GATES); k++) {
                const REAL *from_x = packed + k * panel, *from_h = from_x + E * NAME(NR);
                REAL *to = z + k * NAME(NR);
                if (!numbers)
                    NAME(gemm_panels)(some, NAME(NR), E, x + r * E, E, 1, from_x, E, to, NAME(ROW),
                                      bias + k * NAME(NR), 0);
                NAME(gemm_panels)(some, NAME(NR), H, h_previous + r * H, H, 1, from_h, H, to, NAME(ROW), to,
                                  NAME(ROW));
            }
            NAME(lstm_cells)(some, NAME(smaller)(H - j, NAME(NR)), H, z, c_previous + at, c + at, h + at,
                             gates + r * NAME(GATES) * H + j);
        }
        packed += NAME(GATES) * panel;
    }
}

/* One step back through `lstm_cell` for one row. dc holds the gradient of c that comes from later steps, and
 * in the end that of c_previous; grad_c, which may be NULL, adds to it. dz is the gradient of z. */
MAYBE_UNUSED void NAME(lstm_cell_backward)(ptrdiff_t H, const REAL *gates, const REAL *c_previous,
                                           const REAL *c, const REAL *dh, const REAL *grad_c, REAL *dc,
                                           REAL *dz) {
    for (ptrdiff_t j = 0, count = H; count > 0; j += LANES, count -= LANES) {
        VECTOR i = NAME(load)(gates + j, count, 0), f = NAME(load)(gates + H + j, count, 0);
        VECTOR g = NAME(load)(gates + 2 * H + j, count, 0), o = NAME(load)(gates + 3 * H + j, count, 0);
        VECTOR tanh_c = NAME(tanh)(NAME(load)(c + j, count, 0));
        VECTOR grad_h = NAME(load)(dh + j, count, 0), grad = NAME(load)(dc + j, count, 0);
        if (grad_c) grad += NAME(load)(grad_c + j, count, 0);
        grad += grad_h * o * (1 - tanh_c * tanh_c);
        NAME(store)(dz + j, count, grad * g * (i * (1 - i)));
        NAME(store)(dz + H + j, count, grad * NAME(load)(c_previous + j, count, 0) * (f * (1 - f)));
        NAME(store)(dz + 2 * H + j, count, grad * i * (1 - g * g));
        NAME(store)(dz + 3 * H + j, count, grad_h * tanh_c * (o * (1 - o)));
        NAME(store)(dc + j, count, grad * f);
    }
}

/* dh = dz weight + d, where d may be NULL: what a step's gradient sends to the step before it. */
MAYBE_UNUSED void NAME(lstm_send_back)(ptrdiff_t rows, ptrdiff_t H, const REAL *packed, const REAL *dz,
                                       const REAL *d, REAL *dh) {
    NAME(gemm_panels)(rows, H, NAME(GATES) * H, dz, NAME(GATES) * H, 1, packed, NAME(GATES) * H, dh,
                      H, d, H);
}

/* Rows first .. first + depth of (T N, H), the hidden states before each step, as panels. Where those from h0
 * begin and end, the panels are packed in two parts. */
MAYBE_UNUSED void NAME(lstm_pack_before)(const LstmWeightGrad *p, ptrdiff_t first, ptrdiff_t depth,
                                         REAL *out) {
    const ptrdiff_t N = p->N, H = p->H, later = (p->T - 1) * N;
    /* In order of rows: those of h0 and then those of `hidden`, or the other way. */
    const ptrdiff_t border = p->reverse ? later : N;
    const REAL *h0 = p->h0, *hidden = p->hidden;
    const REAL *low = p->reverse ? hidden + N * H : h0, *high = p->reverse ? h0 : hidden;
    const ptrdiff_t from_low = first < border ? NAME(smaller)(border - first, depth) : 0;
    for (ptrdiff_t j = 0; j < H; j += NAME(NR), out += NAME(NR) * depth) {
        const ptrdiff_t columns = NAME(smaller)(H - j, NAME(NR));
        if (from_low > 0) NAME(pack_b)(from_low, columns, low + first * H + j, H, 1, out);
        if (from_low < depth)
            NAME(pack_b)(depth - from_low, columns, high + (first + from_low - border) * H + j, H, 1,
                         out + from_low * NAME(NR));
    }
}

/* total[j] += the sum of some rows of dz, four at a time. */
MAYBE_UNUSED void NAME(lstm_add_rows)(ptrdiff_t rows, ptrdiff_t columns, const REAL *dz, ptrdiff_t row,
                                      REAL *restrict total) {
    ptrdiff_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const REAL *four = dz + r * row;
        for (ptrdiff_t j = 0; j < columns; j++)
            total[j] += (four[j] + four[row + j]) + (four[2 * row + j] + four[3 * row + j]);
    }
    for (; r < rows; r++)
        for (ptrdiff_t j = 0; j < columns; j++) total[j] += dz[r * row + j];
}

/* The elements of workspace that `lstm_weight_grad` needs. */
MAYBE_UNUSED ptrdiff_t NAME(lstm_weight_grad_workspace)(ptrdiff_t E, ptrdiff_t H) {
    const ptrdiff_t b_columns = NAME(round_up)(E, NAME(NR)) + NAME(round_up)(H, NAME(NR));
    return NAME(KC) * (b_columns + NAME(round_up)(NAME(MC), NAME(MR)));
}

/* Rows first .. first + rows of dz^T x, dz^T before and of the sum of dz: the loops of gemm.h, in which each
 * packed block of dz serves both products. */
MAYBE_UNUSED void NAME(lstm_weight_grad)(const LstmWeightGrad *p, ptrdiff_t first, ptrdiff_t rows,
                                         REAL *workspace) {
    const ptrdiff_t E = p->E, H = p->H, K = p->T * p->N, row = NAME(GATES) * H;
    const ptrdiff_t KC = NAME(balanced)(K, NAME(KC), 1), MC = NAME(balanced)(rows, NAME(MC), NAME(MR));
    REAL *x_packed = workspace, *h_packed = x_packed + KC * NAME(round_up)(E, NAME(NR));
    REAL *dz_packed = h_packed + KC * NAME(round_up)(H, NAME(NR));
    REAL *grad_ih = p->grad_ih, *grad_hh = p->grad_hh, *grad_bias = p->grad_bias;
    for (ptrdiff_t j = first; j < first + rows; j++) grad_bias[j] = 0;
    if (K == 0) {
        NAME(start)(rows, E, grad_ih + first * E, E, NULL, 0);
        NAME(start)(rows, H, grad_hh + first * H, H, NULL, 0);
    }
    for (ptrdiff_t pc = 0; pc < K; pc += KC) {
        const ptrdiff_t kc = NAME(smaller)(K - pc, KC);
        NAME(pack_b)(kc, E, (const REAL *)p->x + pc * E, E, 1, x_packed);
        NAME(lstm_pack_before)(p, pc, kc, h_packed);
        for (ptrdiff_t ic = first; ic < first + rows; ic += MC) {
            const ptrdiff_t mc = NAME(smaller)(first + rows - ic, MC);
            const REAL *dz = (const REAL *)p->dz + pc * row + ic;
            REAL *to_ih = grad_ih + ic * E, *to_hh = grad_hh + ic * H;
            NAME(lstm_add_rows)(kc, mc, dz, row, grad_bias + ic);
            NAME(pack_a)(mc, kc, dz, 1, row, dz_packed);
            NAME(macro_kernel)(mc, E, kc, dz_packed, x_packed, to_ih, E, pc ? to_ih : NULL, E);
            NAME(macro_kernel)(mc, H, kc, dz_packed, h_packed, to_hh, H, pc ? to_hh : NULL, H);
        }
    }
}

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
