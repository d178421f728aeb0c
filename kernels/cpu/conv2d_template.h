/* The functions of conv2d.h for one element type. Included by conv2d.h alone, which documents them. */

ALWAYS_INLINE void NAME(gather_tile)(const int vectors, ptrdiff_t depth, const real *x, const ptrdiff_t *row,
                                     const ptrdiff_t *step, const real *b, const real *base, ptrdiff_t base_row,
                                     real *c)
{
    vector sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < TILE_ROWS; i++)
        UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = (vector){0};
    for (ptrdiff_t p = 0; p < depth; p++, b += NAME(NR)) {
        const real *x_step = x + step[p];
        vector b_vector[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) b_vector[v] = *(const vector_u *)(b + v * LANES);
        UNROLL for (int i = 0; i < TILE_ROWS; i++) {
            const real x_element = x_step[row[i]];
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] += x_element * b_vector[v];
        }
    }
    UNROLL for (int i = 0; i < TILE_ROWS; i++)
        UNROLL for (int v = 0; v < vectors; v++)
            *(vector_u *)(c + i * NAME(NR) + v * LANES) =
                *(const vector_u *)(base + i * base_row + v * LANES) + sum[i][v];
}

NEVER_INLINE void NAME(gather_kernel)(ptrdiff_t width, ptrdiff_t depth, const real *x, const ptrdiff_t *row,
                                      const ptrdiff_t *step, const real *b, const real *base, ptrdiff_t base_row,
                                      real *c)
{
    if (width <= LANES)
        NAME(gather_tile)(1, depth, x, row, step, b, base, base_row, c);
    else
        NAME(gather_tile)(TILE_VECTORS, depth, x, row, step, b, base, base_row, c);
}

NEVER_INLINE void NAME(store_channels)(ptrdiff_t pixels, ptrdiff_t channels, const real *panel, real *out,
                                       ptrdiff_t out_row)
{
    enum { BLOCK = NAME(TRANSPOSE) };
    ptrdiff_t channel = 0;
    for (; channel + BLOCK <= channels; channel += BLOCK) {
        const real *from = panel + channel;
        real *to = out + channel * out_row;
        ptrdiff_t pixel = 0;
        for (; pixel + BLOCK <= pixels; pixel += BLOCK)
            NAME(transpose)(from + pixel * NAME(NR), NAME(NR), to + pixel, out_row);
        for (; pixel < pixels; pixel++)
            for (int i = 0; i < BLOCK; i++) to[i * out_row + pixel] = from[pixel * NAME(NR) + i];
    }
    for (; channel < channels; channel++)
        for (ptrdiff_t pixel = 0; pixel < pixels; pixel++)
            out[channel * out_row + pixel] = panel[pixel * NAME(NR) + channel];
}

MAYBE_UNUSED real NAME(dot)(ptrdiff_t n, const real *a, const real *b, ptrdiff_t b_stride)
{
    real total = 0;
    ptrdiff_t i = 0;
    if (b_stride == 1 && n >= LANES) {
        vector sum = {0};
        for (; i + LANES <= n; i += LANES) sum += *(const vector_u *)(a + i) * *(const vector_u *)(b + i);
        for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    }
    for (; i < n; i++) total += a[i] * b[i * b_stride];
    return total;
}
