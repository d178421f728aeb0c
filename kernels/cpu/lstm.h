/* The time steps of lstm.pyx for some rows of a batch, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64,
 * and includes gemm.h, vector_math.h and elementwise.h, of which `logistic` is used.
 *
 * The gates of an element stand H apart, in PyTorch's order: input, forget, cell, output.
 */

enum { NAME(GATES) = 4 };

/* weight (4 H, H) for `lstm_forward`: weight^T in panels of NR columns, one gate after the other. */
MAYBE_UNUSED void NAME(lstm_pack_forward)(ptrdiff_t H, const REAL *weight, REAL *packed) {
    const ptrdiff_t gate = NAME(round_up)(H, NAME(NR)) * H;
    for (int k = 0; k < NAME(GATES); k++) NAME(pack_b)(H, H, weight + k * H * H, 1, H, packed + k * gate);
}

/* weight (4 H, H) for `lstm_backward`: itself in panels of NR columns. */
MAYBE_UNUSED void NAME(lstm_pack_backward)(ptrdiff_t H, const REAL *weight, REAL *packed) {
    NAME(pack_b)(NAME(GATES) * H, H, weight, H, 1, packed);
}

/* i, f, o = sigmoid(z), g = tanh(z);  c = f c_previous + i g;  h = o tanh(c).  z becomes the gates. */
ALWAYS_INLINE void NAME(lstm_cell)(ptrdiff_t columns, ptrdiff_t H, REAL *gates, const REAL *c_previous, REAL *c,
                                   REAL *h) {
    for (ptrdiff_t j = 0, count = columns; count > 0; j += LANES, count -= LANES) {
        VECTOR i = NAME(logistic)(NAME(load)(gates + j, count, 0));
        VECTOR f = NAME(logistic)(NAME(load)(gates + H + j, count, 0));
        VECTOR g = NAME(tanh)(NAME(load)(gates + 2 * H + j, count, 0));
        VECTOR o = NAME(logistic)(NAME(load)(gates + 3 * H + j, count, 0));
        VECTOR cell = f * NAME(load)(c_previous + j, count, 0) + i * g;
        NAME(store)(gates + j, count, i);
        NAME(store)(gates + H + j, count, f);
        NAME(store)(gates + 2 * H + j, count, g);
        NAME(store)(gates + 3 * H + j, count, o);
        NAME(store)(c + j, count, cell);
        NAME(store)(h + j, count, o * NAME(tanh)(cell));
    }
}

/* One step: the pre-activations of NR hidden units, all four gates, and at once what becomes of them. */
MAYBE_UNUSED void NAME(lstm_forward)(ptrdiff_t rows, ptrdiff_t H, const REAL *packed, const REAL *x,
                                     const REAL *h_previous, const REAL *c_previous, REAL *h, REAL *c,
                                     REAL *gates) {
    const ptrdiff_t row = NAME(GATES) * H, gate = NAME(round_up)(H, NAME(NR)) * H;
    for (ptrdiff_t j = 0; j < H; j += NAME(NR)) {
        const ptrdiff_t columns = NAME(smaller)(H - j, NAME(NR));
        for (int k = 0; k < NAME(GATES); k++)
            NAME(gemm_panels)(rows, columns, H, h_previous, H, 1, packed + k * gate + j * H, H,
                              gates + k * H + j, row, x + k * H + j, row);
        for (ptrdiff_t r = 0; r < rows; r++)
            NAME(lstm_cell)(columns, H, gates + r * row + j, c_previous + r * H + j, c + r * H + j,
                            h + r * H + j);
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

#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
