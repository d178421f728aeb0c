/* The functions of conv2d_planes.h for one element type. Included by conv2d_planes.h alone, which documents
 * them. */

/* A tile of channels x rows x (vectors * LANES) outputs, the three of them compile-time constants. */
ALWAYS_INLINE void NAME(plane_tile)(const int channels, const int rows, const int vectors,
                                    const plane_taps *t, const real *x, const real *weight, const real *start,
                                    real *y)
{
    vector sum[PLANE_CHANNELS][PLANE_VECTORS];
    UNROLL for (int c = 0; c < channels; c++)
        UNROLL for (int i = 0; i < rows * vectors; i++) sum[c][i] = (vector){0} + start[c];
    for (ptrdiff_t p = 0; p < t->taps; p++, weight += channels) {
        vector x_vector[PLANE_VECTORS];
        UNROLL for (int i = 0; i < rows * vectors; i++)
            x_vector[i] = *(const vector_u *)(x + t->tap[p] + i / vectors * t->x_row + i % vectors * LANES);
        UNROLL for (int c = 0; c < channels; c++)
            UNROLL for (int i = 0; i < rows * vectors; i++) sum[c][i] += weight[c] * x_vector[i];
    }
    UNROLL for (int c = 0; c < channels; c++)
        UNROLL for (int i = 0; i < rows * vectors; i++)
            *(vector_u *)(y + c * t->y_plane + i / vectors * t->y_row + i % vectors * LANES) = sum[c][i];
}

/* One channel, `rows` x LANES outputs, columns of `column` taps, both constants: row i of x is under tap u of
 * output row i - u. */
ALWAYS_INLINE void NAME(plane_column_tile)(const int column, const int rows, const plane_taps *t,
                                           const real *x, const real *weight, const real *start, real *y)
{
    vector sum[PLANE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) sum[i] = (vector){0} + start[0];
    for (ptrdiff_t p = 0; p < t->taps; p += column * t->row)
        for (ptrdiff_t v = p; v < p + t->row; v++) {
            vector w[PLANE_COLUMN];
            UNROLL for (int u = 0; u < column; u++) w[u] = (vector){0} + weight[v + u * t->row];
            UNROLL for (int i = 0; i < rows + column - 1; i++) {
                const vector x_vector = *(const vector_u *)(x + t->tap[v] + i * t->x_row);
                UNROLL for (int u = 0; u < column; u++)
                    if (0 <= i - u && i - u < rows) sum[i - u] += w[u] * x_vector;
            }
        }
    UNROLL for (int i = 0; i < rows; i++) *(vector_u *)(y + i * t->y_row) = sum[i];
}

/* Fetches a tile's share of what will be read next. */
ALWAYS_INLINE void NAME(fetch_ahead)(const plane_taps *t, const char **ahead, ptrdiff_t bytes)
{
    const char *end = t->ahead + t->ahead_bytes, *until = end - *ahead < bytes ? end : *ahead + bytes;
    for (; *ahead < until; *ahead += 64) __builtin_prefetch(*ahead, 0, 2);
}

/* `rows` (a constant) whole rows: tiles side by side, of which the last overlaps its neighbour. */
ALWAYS_INLINE void NAME(plane_rows)(const int channels, const int column, const int rows, const int vectors,
                                    const plane_taps *t, const real *x, const real *weight, const real *start,
                                    real *y, const char **ahead, ptrdiff_t bytes)
{
    ptrdiff_t j = 0;
    for (; j + vectors * LANES <= t->width; j += vectors * LANES) {
        NAME(fetch_ahead)(t, ahead, bytes);
        if (column > 1)
            NAME(plane_column_tile)(column, rows, t, x + j, weight, start, y + j);
        else
            NAME(plane_tile)(channels, rows, vectors, t, x + j, weight, start, y + j);
    }
    const ptrdiff_t left = t->width - j;
    if (left > LANES) {
        j = t->width - vectors * LANES;
        NAME(plane_tile)(channels, rows, vectors, t, x + j, weight, start, y + j);
    } else if (left > 0) {
        j = t->width - LANES;
        if (column > 1)
            NAME(plane_column_tile)(column, rows, t, x + j, weight, start, y + j);
        else
            NAME(plane_tile)(channels, rows, 1, t, x + j, weight, start, y + j);
    }
}

/* Bands of `rows` (a constant) rows, of which the last overlaps its neighbour. */
ALWAYS_INLINE void NAME(plane_bands)(const int channels, const int column, const int rows, const int vectors,
                                     const plane_taps *t, const real *x, const real *weight,
                                     const real *start, real *y)
{
    const char *ahead = t->ahead;
    const ptrdiff_t tiles = (t->height + rows - 1) / rows * (t->width / (vectors * LANES));
    const ptrdiff_t bytes = t->ahead_bytes ? t->ahead_bytes / tiles + 64 : 0;
    for (ptrdiff_t band = 0; band < t->height; band += rows) {
        const ptrdiff_t i = band + rows <= t->height ? band : t->height - rows;
        NAME(plane_rows)(channels, column, rows, vectors, t, x + i * t->x_row, weight, start,
                         y + i * t->y_row, &ahead, bytes);
    }
}

/* Rows narrower than a vector, of taps in columns if column > 1. Their tile is a scratch, from which each row is
 * stored as a vector: what it holds too much goes where the next rows will stand. In the last rows, or where
 * other rows lie in between, the valid columns alone are stored. */
ALWAYS_INLINE void NAME(narrow_planes)(const int channels, const int column, const int rows,
                                       const plane_taps *t, const real *x, const real *weight,
                                       const real *start, real *y)
{
    real scratch[PLANE_CHANNELS * PLANE_VECTORS * LANES];
    plane_taps tile = *t;
    tile.y_row = LANES, tile.y_plane = rows * LANES;
    const ptrdiff_t last = t->y_row == t->width ? t->height * t->width - LANES : -1; /* where a vector fits */
    for (ptrdiff_t band = 0; band < t->height; band += rows) {
        const ptrdiff_t i = band + rows <= t->height ? band : t->height - rows;
        if (column > 1)
            NAME(plane_column_tile)(column, rows, &tile, x + i * t->x_row, weight, start, scratch);
        else
            NAME(plane_tile)(channels, rows, 1, &tile, x + i * t->x_row, weight, start, scratch);
        UNROLL for (int c = 0; c < channels; c++)
            UNROLL for (int r = 0; r < rows; r++) {
                const vector row = *(const vector_u *)(scratch + (c * rows + r) * LANES);
                const ptrdiff_t at = (i + r) * t->y_row;
                NAME(store)(y + c * t->y_plane + at, at <= last ? LANES : t->width, row);
            }
    }
}

/* A constant number of channels. `tile` vectors of a channel fill the registers: side by side if the rows are
 * long enough, else from several rows. */
ALWAYS_INLINE void NAME(plane_channels)(const int channels, const int tile, const plane_taps *t,
                                        const real *x, const real *weight, const real *start, real *y)
{
    if (t->width < LANES && t->height < tile)
        NAME(narrow_planes)(channels, 1, 1, t, x, weight, start, y);
    else if (t->width < LANES)
        NAME(narrow_planes)(channels, 1, tile, t, x, weight, start, y);
    else if (t->width >= tile * LANES && tile <= 4)
        NAME(plane_bands)(channels, 1, 1, tile, t, x, weight, start, y);
    else if (t->height >= tile)
        NAME(plane_bands)(channels, 1, tile, 1, t, x, weight, start, y);
    else
        NAME(plane_bands)(channels, 1, 1, 1, t, x, weight, start, y);
}

/* One channel, of taps in columns where that is known. */
ALWAYS_INLINE void NAME(one_plane)(const plane_taps *t, const real *x, const real *weight, const real *start,
                                   real *y)
{
    if (t->width < LANES && t->height >= 4 && t->column == 3)
        NAME(narrow_planes)(1, 3, 4, t, x, weight, start, y);
    else if (t->width < LANES || t->height < 4)
        NAME(plane_channels)(1, 4, t, x, weight, start, y);
    else if (t->column == 3 && t->height >= 8)
        NAME(plane_bands)(1, 3, 8, 1, t, x, weight, start, y);
    else if (t->column == 5 && t->height >= 8)
        NAME(plane_bands)(1, 5, 8, 1, t, x, weight, start, y);
    else if (t->column == 3)
        NAME(plane_bands)(1, 3, 4, 1, t, x, weight, start, y);
    else if (t->column == 5)
        NAME(plane_bands)(1, 5, 4, 1, t, x, weight, start, y);
    else if (t->height >= 8)
        NAME(plane_bands)(1, 1, 8, 1, t, x, weight, start, y);
    else
        NAME(plane_bands)(1, 1, 4, 1, t, x, weight, start, y);
}

NEVER_INLINE void NAME(correlate_planes)(int channels, const plane_taps *taps, const real *x,
                                         const real *weight, const real *start, real *y)
{
    const plane_taps t = *taps;
    switch (channels) {
        case 1: NAME(one_plane)(&t, x, weight, start, y); break;
        case 2: NAME(plane_channels)(2, 4, &t, x, weight, start, y); break;
        case 3: NAME(plane_channels)(3, 3, &t, x, weight, start, y); break;
        case 4: NAME(plane_channels)(4, 3, &t, x, weight, start, y); break;
        case 5: NAME(plane_channels)(5, 2, &t, x, weight, start, y); break;
        case 6: NAME(plane_channels)(6, 2, &t, x, weight, start, y); break;
    }
}

/* ---- rows of planes ---------------------------------------------------------------------------------------
 *
 * They are short: 7 to 56 elements in most networks. So there is no loop for what is left of whole vectors: the
 * last vector ends where the row ends, and overlaps its neighbour. */

enum { NAME(SHORT_LANES) = 16 / sizeof(real) }; /* elements of a 128-bit vector, which every level has */

MAYBE_UNUSED void NAME(copy_elements)(ptrdiff_t n, const real *x, real *to)
{
    if (n >= LANES) {
        for (ptrdiff_t j = 0; j < n - LANES; j += LANES) *(vector_u *)(to + j) = *(const vector_u *)(x + j);
        *(vector_u *)(to + n - LANES) = *(const vector_u *)(x + n - LANES);
    } else if (n >= NAME(SHORT_LANES)) {
        const ptrdiff_t last = n - NAME(SHORT_LANES);
        for (ptrdiff_t j = 0; j < last; j += NAME(SHORT_LANES))
            *(short_vector_u *)(to + j) = *(const short_vector_u *)(x + j);
        *(short_vector_u *)(to + last) = *(const short_vector_u *)(x + last);
    } else {
        for (ptrdiff_t j = 0; j < n; j++) to[j] = x[j];
    }
}

ALWAYS_INLINE short_vector NAME(even_places)(short_vector low, short_vector high)
{
    short_vector found;
    UNROLL for (int k = 0; k < NAME(SHORT_LANES); k++)
        found[k] = 2 * k < NAME(SHORT_LANES) ? low[2 * k] : high[2 * k - NAME(SHORT_LANES)];
    return found;
}

ALWAYS_INLINE short_vector NAME(odd_places)(short_vector low, short_vector high)
{
    short_vector found;
    UNROLL for (int k = 0; k < NAME(SHORT_LANES); k++)
        found[k] = 2 * k + 1 < NAME(SHORT_LANES) ? low[2 * k + 1] : high[2 * k + 1 - NAME(SHORT_LANES)];
    return found;
}

/* even[k], odd[k] = x[2 k], x[2 k + 1] for k < n / 2; and the last of an odd number. */
MAYBE_UNUSED void NAME(split_row)(ptrdiff_t n, const real *x, real *even, real *odd)
{
    const ptrdiff_t half = n / 2;
    for (ptrdiff_t k = 0; half >= NAME(SHORT_LANES) && k < half; k += NAME(SHORT_LANES)) {
        const ptrdiff_t at = k < half - NAME(SHORT_LANES) ? k : half - NAME(SHORT_LANES);
        const short_vector low = *(const short_vector_u *)(x + 2 * at);
        const short_vector high = *(const short_vector_u *)(x + 2 * at + NAME(SHORT_LANES));
        *(short_vector_u *)(even + at) = NAME(even_places)(low, high);
        *(short_vector_u *)(odd + at) = NAME(odd_places)(low, high);
    }
    for (ptrdiff_t k = 0; half < NAME(SHORT_LANES) && k < half; k++) even[k] = x[2 * k], odd[k] = x[2 * k + 1];
    if (n % 2) even[half] = x[n - 1];
}

MAYBE_UNUSED void NAME(join_row)(ptrdiff_t n, const real *even, const real *odd, real *to)
{
    const ptrdiff_t half = n / 2;
    for (ptrdiff_t k = 0; half >= NAME(SHORT_LANES) && k < half; k += NAME(SHORT_LANES)) {
        const ptrdiff_t at = k < half - NAME(SHORT_LANES) ? k : half - NAME(SHORT_LANES);
        const short_vector e = *(const short_vector_u *)(even + at), o = *(const short_vector_u *)(odd + at);
        short_vector low, high;
        UNROLL for (int i = 0; i < NAME(SHORT_LANES); i++) {
            low[i] = i % 2 ? o[i / 2] : e[i / 2];
            high[i] = i % 2 ? o[(NAME(SHORT_LANES) + i) / 2] : e[(NAME(SHORT_LANES) + i) / 2];
        }
        *(short_vector_u *)(to + 2 * at) = low;
        *(short_vector_u *)(to + 2 * at + NAME(SHORT_LANES)) = high;
    }
    for (ptrdiff_t k = 0; half < NAME(SHORT_LANES) && k < half; k++) to[2 * k] = even[k], to[2 * k + 1] = odd[k];
    if (n % 2) to[n - 1] = even[half];
}

/* ---- products of planes ----------------------------------------------------------------------------------- */

/* The products of a vector, of which only the lanes in `kept` count: the others may be infinite. */
ALWAYS_INLINE vector NAME(kept_products)(vector g, vector x, vector_mask kept)
{
    return (vector)((vector_mask)(g * x) & kept);
}

/* `taps` (a constant) sums over one plane. The last vector of a row overlaps its neighbour. */
ALWAYS_INLINE void NAME(plane_products)(const int taps, ptrdiff_t height, ptrdiff_t width,
                                        const ptrdiff_t *tap, const real *x, ptrdiff_t x_row, const real *g,
                                        ptrdiff_t g_row, real *sums)
{
    const ptrdiff_t whole = width / LANES * LANES, last = width < LANES ? 0 : width - LANES;
    vector sum[PLANE_TAPS];
    vector_mask kept;
    for (int lane = 0; lane < LANES; lane++) kept[lane] = -(last + lane >= whole && last + lane < width);
    UNROLL for (int p = 0; p < taps; p++) sum[p] = *(const vector_u *)(sums + p * LANES);
    for (ptrdiff_t i = 0; i < height; i++, x += x_row, g += g_row) {
        for (ptrdiff_t j = 0; j < whole; j += LANES) {
            const vector g_vector = *(const vector_u *)(g + j);
            UNROLL for (int p = 0; p < taps; p++) sum[p] += g_vector * *(const vector_u *)(x + j + tap[p]);
        }
        if (whole < width) {
            const vector g_vector = *(const vector_u *)(g + last);
            UNROLL for (int p = 0; p < taps; p++)
                sum[p] += NAME(kept_products)(g_vector, *(const vector_u *)(x + last + tap[p]), kept);
        }
    }
    UNROLL for (int p = 0; p < taps; p++) *(vector_u *)(sums + p * LANES) = sum[p];
}

NEVER_INLINE void NAME(multiply_planes)(ptrdiff_t height, ptrdiff_t width, ptrdiff_t taps,
                                        const ptrdiff_t *tap, const real *x, ptrdiff_t x_row, const real *g,
                                        ptrdiff_t g_row, real *sums)
{
#define TAPS(n) case n: NAME(plane_products)(n, height, width, tap, x, x_row, g, g_row, sums); break;
    for (; taps > 0; taps -= PLANE_TAPS, tap += PLANE_TAPS, sums += PLANE_TAPS * LANES) {
        switch (taps < PLANE_TAPS ? taps : PLANE_TAPS) {
            TAPS(1) TAPS(2) TAPS(3) TAPS(4) TAPS(5) TAPS(6) TAPS(7) TAPS(8) TAPS(9)
        }
    }
#undef TAPS
}
