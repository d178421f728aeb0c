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
 * and `hidden` (T, N, H) has the others; the results (4 H, E), (4 H, H) and (4 H,), of which the last may be NULL. */
typedef struct {
    ptrdiff_t T, N, E, H;
    int reverse;
    const void *dz, *x, *h0, *hidden;
    void *grad_ih, *grad_hh, *grad_bias;
} LstmWeightGrad;
#endif

enum {
    NAME(GATES) = 4,
    NAME(BLOCK) = 48, /* rows: a multiple of 12, 8 and 6 */
    NAME(FETCHED) = NAME(MR) * NAME(NR) / 48, /* elements with each row of B: one for 48 multiply-adds */
};

/* What will be read or written soon, in up to three arrays; the others have no elements. */
typedef struct {
    const REAL *first[3];
    ptrdiff_t elements[3];
} NAME(Awaited);

/* The stride of rows of so many columns in a workspace, an odd number of cache lines: the rows of a register tile,
 * which are read side by side, then lie in all sets of L1, and not, a power of two apart, in the same few. */
ALWAYS_INLINE ptrdiff_t NAME(lstm_row)(ptrdiff_t columns) {
    return (NAME(round_up)(columns, NAME(LINE)) / NAME(LINE) | 1) * NAME(LINE);
}

/* Where the next `elements` of it begin, which are taken off; NULL behind the last. */
ALWAYS_INLINE const REAL *NAME(take)(NAME(Awaited) *awaited, ptrdiff_t elements) {
    for (int k = 0; k < 3; k++)
        if (awaited->elements[k] > 0) {
            const REAL *first = awaited->first[k];
            awaited->first[k] += elements;
            awaited->elements[k] -= elements;
            return first;
        }
    return NULL;
}

/* As `tile_in_place`, while memory sends what lies ahead. */
NEVER_INLINE void NAME(tile_fetching_ahead)(ptrdiff_t depth, const REAL *a, ptrdiff_t a_row, const REAL *panel,
                                            REAL *c, ptrdiff_t ldc, NAME(Epilogue) e, const REAL *ahead) {
    NAME(tile_fetching)(NAME(MR), TILE_VECTORS, depth, a, a_row, 1, panel, NAME(NR), c, ldc, e, ahead, NAME(FETCHED));
}

/* C = A B + D, B in panels. The weights of a step fill L2: each panel is read once, for all rows of a block, which
 * stay near meanwhile. What is awaited is fetched on the way. */
ALWAYS_INLINE void NAME(lstm_product)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const REAL *a,
                                      ptrdiff_t a_row, const REAL *panels, REAL *c, ptrdiff_t ldc, const REAL *d,
                                      ptrdiff_t d_row, NAME(Awaited) awaited) {
    for (ptrdiff_t j = 0; j < columns; j += NAME(NR), panels += depth * NAME(NR))
        for (ptrdiff_t r = 0; r < rows; r += NAME(MR)) {
            const int some = (int)NAME(smaller)(rows - r, NAME(MR));
            const int width = (int)NAME(smaller)(columns - j, NAME(NR));
            const int is_full = some == NAME(MR) && width == NAME(NR);
            const REAL *a_rows = a + r * a_row;
            const NAME(Epilogue) e = NAME(epilogue_at)(NAME(adding)(d, d_row), r, j);
            const REAL *ahead = is_full ? NAME(take)(&awaited, depth * NAME(FETCHED)) : NULL;
            REAL *tile = c + r * ldc + j;
            if (d) NAME(prefetch_rows)(some, 0, width, e.d, d_row);
            if (ahead)
                NAME(tile_fetching_ahead)(depth, a_rows, a_row, panels, tile, ldc, e, ahead);
            else if (is_full)
                NAME(tile_in_place)(depth, a_rows, a_row, panels, tile, ldc, e);
            else
                NAME(partial_tile)(some, width, depth, a_rows, a_row, 1, panels, NAME(NR), tile, ldc, e);
        }
}

/* The weights for `lstm_forward`: the bias, zeros if there is none, and filled up with zeros to a cache line;
 * then weight_ih^T above weight_hh^T, (E + H, 4 H), as panels. */
MAYBE_UNUSED ptrdiff_t NAME(lstm_packed_size)(ptrdiff_t E, ptrdiff_t H) {
    const ptrdiff_t columns = NAME(GATES) * H;
    return NAME(round_up)(columns, NAME(LINE)) + NAME(round_up)(columns, NAME(NR)) * (E + H);
}

/* Columns first .. end of it, `first` being a multiple of NR and `end` one, or 4 H. */
MAYBE_UNUSED void NAME(lstm_pack_forward)(ptrdiff_t E, ptrdiff_t H, const REAL *weight_ih, const REAL *weight_hh,
                                          const REAL *bias, ptrdiff_t first, ptrdiff_t end, REAL *packed) {
    const ptrdiff_t columns = NAME(GATES) * H, filled = NAME(round_up)(columns, NAME(LINE));
    for (ptrdiff_t j = first; j < (end < columns ? end : filled); j++) packed[j] = bias && j < columns ? bias[j] : 0;
    for (ptrdiff_t j = first; j < end; j += NAME(NR)) {
        const ptrdiff_t width = NAME(smaller)(end - j, NAME(NR));
        REAL *panel = packed + filled + j * (E + H);
        NAME(pack_b)(E, width, weight_ih + j * E, 1, E, panel);
        NAME(pack_b)(H, width, weight_hh + j * H, 1, H, panel + E * NAME(NR));
    }
}

/* weight_hh (4 H, H) for the way back: itself in panels of NR columns, of which these are first .. end. */
MAYBE_UNUSED void NAME(lstm_pack_backward)(ptrdiff_t H, const REAL *weight_hh, ptrdiff_t first, ptrdiff_t end,
                                           REAL *packed) {
    const ptrdiff_t rows = NAME(GATES) * H;
    NAME(pack_b)(rows, end - first, weight_hh + first, H, 1, packed + first * rows);
}

/* out = sigmoid(x + y), and the same for tanh. */
ALWAYS_INLINE void NAME(lstm_sigmoids)(ptrdiff_t n, const REAL *x, const REAL *y, REAL *out) {
    for (; n > 0; n -= LANES, x += LANES, y += LANES, out += LANES)
        NAME(store)(out, n, NAME(logistic)(NAME(load)(x, n, 0) + NAME(load)(y, n, 0)));
}

ALWAYS_INLINE void NAME(lstm_tanhs)(ptrdiff_t n, const REAL *x, const REAL *y, REAL *out) {
    for (; n > 0; n -= LANES, x += LANES, y += LANES, out += LANES)
        NAME(store)(out, n, NAME(tanh)(NAME(load)(x, n, 0) + NAME(load)(y, n, 0)));
}

/* One row of a step, z being its pre-activations but for an addend:
 *   i, f, o = sigmoid(z), g = tanh(z);  c = f c_previous + i g;  h = o tanh(c)
 * Each function has a loop of its own: its constants then stay in registers, and since no vector waits for
 * another, several are computed at once. All results are written from the first to the last element: parts of
 * many rows, a page apart, would reach memory at a third of the speed. */
MAYBE_UNUSED void NAME(lstm_cells)(ptrdiff_t H, const REAL *z, const REAL *addend, const REAL *c_previous, REAL *c,
                                   REAL *h, REAL *gates) {
    const REAL *f = gates + H, *g = gates + 2 * H, *o = gates + 3 * H;
    NAME(lstm_sigmoids)(2 * H, z, addend, gates);
    NAME(lstm_tanhs)(H, z + 2 * H, addend + 2 * H, gates + 2 * H);
    NAME(lstm_sigmoids)(H, z + 3 * H, addend + 3 * H, gates + 3 * H);
    for (ptrdiff_t j = 0, count = H; count > 0; j += LANES, count -= LANES) {
        VECTOR from_before = NAME(load)(f + j, count, 0) * NAME(load)(c_previous + j, count, 0);
        NAME(store)(c + j, count, from_before + NAME(load)(gates + j, count, 0) * NAME(load)(g + j, count, 0));
    }
    for (ptrdiff_t j = 0, count = H; count > 0; j += LANES, count -= LANES)
        NAME(store)(h + j, count, NAME(load)(o + j, count, 0) * NAME(tanh)(NAME(load)(c + j, count, 0)));
}

/* One step. In the rows of the workspace `joined` stands h_previous, from column E on, and in the end h; x comes
 * before it, so that one product makes z, in a workspace of as many rows. With `numbers`, the rows of x are those of
 * `x` that these name, multiplied with weight_ih before, and E is 0; numbers may be NULL. */
MAYBE_UNUSED void NAME(lstm_forward)(ptrdiff_t rows, ptrdiff_t E, ptrdiff_t H, const REAL *packed,
                                     const REAL *x, const int64_t *numbers, const REAL *c_previous, REAL *h, REAL *c,
                                     REAL *gates, REAL *joined, REAL *z) {
    const ptrdiff_t columns = NAME(GATES) * H, row = NAME(lstm_row)(columns), joined_row = NAME(lstm_row)(E + H);
    const REAL *panels = packed + NAME(round_up)(columns, NAME(LINE));
    const NAME(Awaited) nothing = {{NULL}, {0}};
    for (ptrdiff_t first = 0; first < rows; first += NAME(BLOCK)) {
        const ptrdiff_t end = NAME(smaller)(rows, first + NAME(BLOCK));
        for (ptrdiff_t r = first; r < end; r++) memcpy(joined + r * joined_row, x + r * E, E * sizeof(REAL));
        NAME(lstm_product)(end - first, columns, E + H, joined + first * joined_row, joined_row, panels,
                           z + first * row, row, NULL, 0, nothing);
        for (ptrdiff_t r = first; r < end; r++) {
            NAME(lstm_cells)(H, z + r * row, numbers ? x + numbers[r] * columns : packed, c_previous + r * H,
                             c + r * H, h + r * H, gates + r * columns);
            memcpy(joined + r * joined_row + E, h + r * H, H * sizeof(REAL));
        }
    }
}

/* Back through `lstm_cells`. dc holds the gradient of c that comes from later steps, and in the end that of
 * c_previous; grad_c, which may be NULL, adds to it. dz is the gradient of z, and so is dz_near. */
MAYBE_UNUSED void NAME(lstm_cells_backward)(ptrdiff_t H, const REAL *gates, const REAL *c_previous, const REAL *c,
                                            const REAL *dh, const REAL *grad_c, REAL *dc, REAL *dz, REAL *dz_near) {
    for (ptrdiff_t j = 0, count = H; count > 0; j += LANES, count -= LANES) {
        VECTOR i = NAME(load)(gates + j, count, 0), f = NAME(load)(gates + H + j, count, 0);
        VECTOR g = NAME(load)(gates + 2 * H + j, count, 0), o = NAME(load)(gates + 3 * H + j, count, 0);
        VECTOR tanh_c = NAME(tanh)(NAME(load)(c + j, count, 0));
        VECTOR grad_h = NAME(load)(dh + j, count, 0), grad = NAME(load)(dc + j, count, 0);
        if (grad_c) grad += NAME(load)(grad_c + j, count, 0);
        grad += grad_h * o * (1 - tanh_c * tanh_c);
        const VECTOR slopes[NAME(GATES)] = {
            grad * g * (i * (1 - i)),
            grad * NAME(load)(c_previous + j, count, 0) * (f * (1 - f)),
            grad * i * (1 - g * g),
            grad_h * tanh_c * (o * (1 - o)),
        };
        UNROLL for (int k = 0; k < NAME(GATES); k++) {
            NAME(store)(dz + k * H + j, count, slopes[k]);
            NAME(store)(dz_near + k * H + j, count, slopes[k]);
        }
        NAME(store)(dc + j, count, grad * f);
    }
}

/* One step back. In the workspace stands dz of the step after, of which dh = dz weight + grad_y comes, and in the
 * end that of this step; grad_y has the row stride y_row. `dh` is a second workspace, for BLOCK rows. Of the last
 * step, whose is_last, there is no step after. */
MAYBE_UNUSED void NAME(lstm_backward)(ptrdiff_t rows, ptrdiff_t H, const REAL *packed, int is_last, const REAL *gates,
                                      const REAL *c_previous, const REAL *c, const REAL *grad_y, ptrdiff_t y_row,
                                      const REAL *grad_c, REAL *dc, REAL *dz, REAL *dz_near, REAL *dh) {
    const ptrdiff_t columns = NAME(GATES) * H, row = NAME(lstm_row)(columns);
    for (ptrdiff_t first = 0; first < rows; first += NAME(BLOCK)) {
        const ptrdiff_t end = NAME(smaller)(rows, first + NAME(BLOCK)), elements = (end - first) * H;
        /* By themselves, with no arithmetic between, the cells would wait for these. */
        const NAME(Awaited) awaited = {
            {gates + first * columns, dz + first * columns, c_previous + first * H},
            {NAME(GATES) * elements, NAME(GATES) * elements, elements},
        };
        if (!is_last)
            NAME(lstm_product)(end - first, H, columns, dz_near + first * row, row, packed, dh, H,
                               grad_y + first * y_row, y_row, awaited);
        for (ptrdiff_t r = first; r < end; r++)
            NAME(lstm_cells_backward)(H, gates + r * columns, c_previous + r * H, c + r * H,
                                      is_last ? grad_y + r * y_row : dh + (r - first) * H,
                                      grad_c ? grad_c + r * H : NULL, dc + r * H, dz + r * columns,
                                      dz_near + r * row);
    }
}

/* What the first step sends to the state before it, dh = dz weight. */
MAYBE_UNUSED void NAME(lstm_send_back)(ptrdiff_t rows, ptrdiff_t H, const REAL *packed, const REAL *dz_near, REAL *dh) {
    const NAME(Awaited) nothing = {{NULL}, {0}};
    const ptrdiff_t columns = NAME(GATES) * H;
    NAME(lstm_product)(rows, H, columns, dz_near, NAME(lstm_row)(columns), packed, dh, H, NULL, 0, nothing);
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
    for (ptrdiff_t j = first; grad_bias && j < first + rows; j++) grad_bias[j] = 0;
    if (K == 0) {
        NAME(start)(rows, E, grad_ih + first * E, E, NAME(adding)(NULL, 0));
        NAME(start)(rows, H, grad_hh + first * H, H, NAME(adding)(NULL, 0));
    }
    for (ptrdiff_t pc = 0; pc < K; pc += KC) {
        const ptrdiff_t kc = NAME(smaller)(K - pc, KC);
        NAME(pack_b)(kc, E, (const REAL *)p->x + pc * E, E, 1, x_packed);
        NAME(lstm_pack_before)(p, pc, kc, h_packed);
        for (ptrdiff_t ic = first; ic < first + rows; ic += MC) {
            const ptrdiff_t mc = NAME(smaller)(first + rows - ic, MC);
            const REAL *dz = (const REAL *)p->dz + pc * row + ic;
            REAL *to_ih = grad_ih + ic * E, *to_hh = grad_hh + ic * H;
            if (grad_bias) NAME(lstm_add_rows)(kc, mc, dz, row, grad_bias + ic);
            NAME(pack_a)(mc, kc, dz, 1, row, dz_packed);
            const int is_last = ic + MC >= first + rows;
            const ptrdiff_t next_ic = is_last ? first : ic + MC;
            const ptrdiff_t next_pc = NAME(smaller)(K, is_last ? pc + KC : pc);
            const NAME(Ahead) ahead = NAME(block_ahead)(
                NAME(smaller)(first + rows - next_ic, MC), NAME(smaller)(K - next_pc, KC),
                (const REAL *)p->dz + next_pc * row + next_ic, 1, row
            );
            NAME(macro_kernel)(mc, E, kc, dz_packed, x_packed, to_ih, E, NAME(adding)(pc ? to_ih : NULL, E));
            NAME(macro_kernel_ahead)(mc, H, kc, dz_packed, h_packed, to_hh, H, NAME(adding)(pc ? to_hh : NULL, H),
                                     ahead);
        }
    }
}

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
