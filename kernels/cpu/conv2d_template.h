/* The functions of conv2d.h for one element type. Included by conv2d.h alone, which documents them. */

/* A tile of `rows` x (`vectors` * LANES), both compile-time constants. So is `lie`: where the rows find their
 * elements of x. */
ALWAYS_INLINE void NAME(gather_tile)(const int lie, const int rows, const int vectors, const place *row,
                                     ptrdiff_t depth, const place *step, const real *x, const real *b,
                                     const real *start, real *c)
{
    vector sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = (vector){0};
    if (lie == SIDE_BY_SIDE) x += row[0].x;
    for (ptrdiff_t p = 0; p < depth; p++) {
        const real *x_step = x + step[p].x, *b_step = b + step[p].at;
        /* What is not known to have been the same before, is not kept for each row: rows' offsets are reloaded, and
         * rows side by side are reached from one pointer. The compiler would keep so much in vector registers, and to
         * move it from there takes the place of multiply-adds. */
        if (lie == SIDE_BY_SIDE) __asm__("" : "+r"(x_step));
        else if (TILE_ROWS > 8) __asm__("" : "+r"(row));
        vector b_vector[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) b_vector[v] = *(const vector_u *)(b_step + v * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            const real *x_row = x_step + (lie == SIDE_BY_SIDE ? i : row[i].x);
            UNROLL for (int v = 0; v < vectors; v++)
                if (lie == IN_LANES)
                    sum[i][v] += *(const vector_u *)(x_row + v * LANES) * b_vector[v];
                else
                    sum[i][v] += *x_row * b_vector[v];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        real *c_row = c + row[i].at;
        const real *from = start ? start : c_row;
        UNROLL for (int v = 0; v < vectors; v++)
            *(vector_u *)(c_row + v * LANES) = *(const vector_u *)(from + v * LANES) + sum[i][v];
    }
}

/* Rows in tiles, with one copy of `gather_tile` for each number of them. */
ALWAYS_INLINE void NAME(gather_tiles)(const int lie, const int vectors, ptrdiff_t rows, const place *row,
                                      ptrdiff_t depth, const place *step, const real *x, const real *b,
                                      const real *start, real *c)
{
#define ROWS(n) case n: NAME(gather_tile)(lie, n, vectors, row + i, depth, step, x, b, start, c); break;
    const ptrdiff_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (ptrdiff_t tile = 0; tile < tiles; tile++) { /* nearly equal ones: a thin tile waits for its sums */
        const ptrdiff_t i = tile * rows / tiles;
        switch ((tile + 1) * rows / tiles - i) {
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if TILE_ROWS >= 8
            ROWS(7) ROWS(8)
#endif
#if TILE_ROWS >= 12
            ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
        }
    }
#undef ROWS
}

ALWAYS_INLINE void NAME(gather)(const int lie, ptrdiff_t width, ptrdiff_t rows, const place *row,
                                ptrdiff_t depth, const place *step, const real *x, const real *b,
                                const real *start, real *c)
{
    const ptrdiff_t blocks = depth > GATHER_DEPTH ? (depth + GATHER_DEPTH - 1) / GATHER_DEPTH : 1;
    for (ptrdiff_t block = 0; block < blocks; block++, start = NULL) {
        const ptrdiff_t first = block * depth / blocks, count = (block + 1) * depth / blocks - first;
        if (width > LANES)
            NAME(gather_tiles)(lie, TILE_VECTORS, rows, row, count, step + first, x, b, start, c);
        else if (lie == ANYWHERE && TILE_ROWS > 8 && side_by_side(rows, row) >= SHORTEST_RUN)
            for (ptrdiff_t i = 0, run; i < rows; i += run) {
                run = side_by_side(rows - i, row + i);
                NAME(gather_tiles)(SIDE_BY_SIDE, 1, run, row + i, count, step + first, x, b, start, c);
            }
        else
            NAME(gather_tiles)(lie, 1, rows, row, count, step + first, x, b, start, c);
    }
}

NEVER_INLINE void NAME(gather_gemm)(ptrdiff_t width, ptrdiff_t rows, const place *row, ptrdiff_t depth,
                                    const place *step, const real *x, const real *b, const real *start,
                                    real *c)
{
    NAME(gather)(ANYWHERE, width, rows, row, depth, step, x, b, start, c);
}

NEVER_INLINE void NAME(gather_lanes)(ptrdiff_t width, ptrdiff_t rows, const place *row, ptrdiff_t depth,
                                     const place *step, const real *x, const real *b, const real *start,
                                     real *c)
{
    NAME(gather)(IN_LANES, width, rows, row, depth, step, x, b, start, c);
}

/* Both ways are walked in bands of pixels, whose panel stays in the first-level cache for all channels. */
enum { NAME(BAND) = (16 << 10) / (NAME(NR) * sizeof(real)) };

ALWAYS_INLINE void NAME(pack_band)(ptrdiff_t channels, ptrdiff_t pixels, const real *planes,
                                   ptrdiff_t plane_stride, real *panel)
{
    enum { BLOCK = NAME(TRANSPOSE) };
    ptrdiff_t channel = 0;
    if (channels < NAME(NR)) memset(panel, 0, pixels * NAME(NR) * sizeof(real));
    for (; channel + BLOCK <= channels; channel += BLOCK) {
        const real *from = planes + channel * plane_stride;
        real *to = panel + channel;
        ptrdiff_t pixel = 0;
        for (; pixel + BLOCK <= pixels; pixel += BLOCK)
            NAME(transpose)(from + pixel, plane_stride, to + pixel * NAME(NR), NAME(NR));
        for (; pixel < pixels; pixel++)
            for (int i = 0; i < BLOCK; i++) to[pixel * NAME(NR) + i] = from[i * plane_stride + pixel];
    }
    for (; channel < channels; channel++)
        for (ptrdiff_t pixel = 0; pixel < pixels; pixel++)
            panel[pixel * NAME(NR) + channel] = planes[channel * plane_stride + pixel];
}

NEVER_INLINE void NAME(pack_channels)(ptrdiff_t channels, ptrdiff_t pixels, const real *planes,
                                      ptrdiff_t plane_stride, real *panel)
{
    for (ptrdiff_t first = 0; first < pixels; first += NAME(BAND))
        NAME(pack_band)(channels, pixels - first < NAME(BAND) ? pixels - first : NAME(BAND), planes + first,
                        plane_stride, panel + first * NAME(NR));
}

ALWAYS_INLINE void NAME(store_band)(ptrdiff_t channels, ptrdiff_t pixels, const real *panel, real *planes,
                                    ptrdiff_t plane_stride)
{
    enum { BLOCK = NAME(TRANSPOSE) };
    ptrdiff_t channel = 0;
    for (; channel + BLOCK <= channels; channel += BLOCK) {
        const real *from = panel + channel;
        real *to = planes + channel * plane_stride;
        ptrdiff_t pixel = 0;
        for (; pixel + BLOCK <= pixels; pixel += BLOCK)
            NAME(transpose)(from + pixel * NAME(NR), NAME(NR), to + pixel, plane_stride);
        for (; pixel < pixels; pixel++)
            for (int i = 0; i < BLOCK; i++) to[i * plane_stride + pixel] = from[pixel * NAME(NR) + i];
    }
    for (; channel < channels; channel++)
        for (ptrdiff_t pixel = 0; pixel < pixels; pixel++)
            planes[channel * plane_stride + pixel] = panel[pixel * NAME(NR) + channel];
}

NEVER_INLINE void NAME(store_channels)(ptrdiff_t channels, ptrdiff_t pixels, const real *panel, real *planes,
                                       ptrdiff_t plane_stride)
{
    for (ptrdiff_t first = 0; first < pixels; first += NAME(BAND))
        NAME(store_band)(channels, pixels - first < NAME(BAND) ? pixels - first : NAME(BAND),
                         panel + first * NAME(NR), planes + first, plane_stride);
}

NEVER_INLINE real NAME(dot)(ptrdiff_t n, const real *a, const real *b, ptrdiff_t b_stride)
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
