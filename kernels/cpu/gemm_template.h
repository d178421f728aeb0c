/* The functions of gemm.h for one element type. Included by gemm.h alone, which documents them. */

enum {
    NAME(MR) = TILE_ROWS,
    NAME(NR) = TILE_VECTORS * LANES,
    /* A micro-panel of A (KC x MR) stays in L1, an A block (MC x KC, about 300 KB) in L2, and a B strip
     * (KC x NC, 3 to 4 MB) in L3. */
    NAME(KC) = sizeof(real) == 4 ? 384 : 256,
    NAME(MC) = 168, /* a multiple of 12, 8 and 6 */
    NAME(NC) = 2048,
    NAME(KC_UNPACKED) = 1024,
    NAME(SHORT) = 128,
    NAME(KC_PANELS) = TILE_ROWS > 8 ? 1536 / sizeof(real) : 512, /* MR rows of A (12 or 18 KB) stay in L1 */
    NAME(IN_L3) = (3 << 20) / sizeof(real), /* elements that stay in L3 while they are used again */
    NAME(LINE) = 64 / sizeof(real),         /* elements of a cache line */
    /* A panel of B under a wide tile fills L1 by itself: each row is called there so many rows ahead of its use. */
    NAME(ROWS_AHEAD) = TILE_ROWS > 8 ? 8 : 0,
    NAME(PANEL_SHARES) = 8, /* the next panel of B sets out for L2 with as many tiles of the one before */
};

ALWAYS_INLINE ptrdiff_t NAME(smaller)(ptrdiff_t x, ptrdiff_t y) { return x < y ? x : y; }

#include "gemm_packing_template.h"
#include "gemm_epilogue_template.h"

/* Panels of B for which a copy of rows of A does not pay. */
ALWAYS_INLINE int NAME(few_panels)(void) { return copies_rows() ? 4 : 2; }

/* ---- register tiles ------------------------------------------------------------------------------------ */

/* C tile of `rows` x (`vectors` * LANES), both compile-time constants. A has any strides: it is read one
 * broadcast element at a time. Each row of B is contiguous. The epilogue comes last. With each row of B,
 * `fetched` elements from `ahead` on set out for L2; that is a constant, too. */
ALWAYS_INLINE void NAME(tile_fetching)(const int rows, const int vectors, ptrdiff_t depth, const real *a,
                                       ptrdiff_t a_row, ptrdiff_t a_col, const real *b, ptrdiff_t b_row,
                                       real *c, ptrdiff_t ldc, NAME(Epilogue) e, const real *ahead,
                                       const int fetched)
{
    vector sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            sum[i][v] = (vector){0};
            __builtin_prefetch(c + i * ldc + v * LANES, 1); /* there when the sums are ready */
        }
    }
    /* A pointer for each three rows, which an address reaches as p, p + a_row and p + 2 a_row. Left to itself, the
     * compiler sees that all rows advance alike, and keeps one pointer and a distance to each other row: twelve rows
     * fill the general registers, and what it then holds in vector registers takes a turn of the multiply-adds each
     * time it is fetched, some 4 % of them. */
    const real *three[(TILE_ROWS + 2) / 3];
    UNROLL for (int i = 0; i < rows; i += 3) three[i / 3] = a + i * a_row;
    for (ptrdiff_t left = depth; left > 0; left--, b += b_row, ahead += fetched) {
        vector b_vector[TILE_VECTORS];
        if (fetched > 0) __builtin_prefetch(ahead, 0, 2);
        if (NAME(ROWS_AHEAD) > 0) { /* its lines: one more than vectors, if it begins within one */
            const real *row = b + NAME(ROWS_AHEAD) * b_row;
            UNROLL for (int v = 0; v < vectors; v++) __builtin_prefetch(row + v * LANES);
            __builtin_prefetch(row + vectors * LANES - 1);
        }
        UNROLL for (int v = 0; v < vectors; v++) b_vector[v] = *(const vector_u *)(b + v * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            const real a_element = three[i / 3][i % 3 * a_row];
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] += a_element * b_vector[v];
        }
        UNROLL for (int i = 0; i < rows; i += 3) {
            three[i / 3] += a_col;
            __asm__("" : "+r"(three[i / 3])); /* the pointer may have become any other */
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            if (e.d) sum[i][v] += *(const vector_u *)(e.d + i * e.d_row + v * LANES);
            if (e.relu) sum[i][v] = NAME(rectified)(sum[i][v]);
            *(vector_u *)(c + i * ldc + v * LANES) = sum[i][v];
        }
    }
}

ALWAYS_INLINE void NAME(tile)(const int rows, const int vectors, ptrdiff_t depth, const real *a,
                              ptrdiff_t a_row, ptrdiff_t a_col, const real *b, ptrdiff_t b_row,
                              real *c, ptrdiff_t ldc, NAME(Epilogue) e)
{
    NAME(tile_fetching)(rows, vectors, depth, a, a_row, a_col, b, b_row, c, ldc, e, NULL, 0);
}

/* The tile for a number of rows known only now: one copy of `tile` for each. */
ALWAYS_INLINE void NAME(tile_rows)(int rows, const int vectors, ptrdiff_t depth, const real *a,
                                   ptrdiff_t a_row, ptrdiff_t a_col, const real *b, ptrdiff_t b_row, real *c,
                                   ptrdiff_t ldc, NAME(Epilogue) e)
{
#define ROWS(n) \
    case n: \
        NAME(tile)(n, vectors, depth, a, a_row, a_col, b, b_row, c, ldc, e); \
        break;
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if TILE_ROWS >= 8
        ROWS(7) ROWS(8)
#endif
#if TILE_ROWS >= 12
        ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
    }
#undef ROWS
}

/* Any rows <= MR and columns <= NR, A and B at any strides as in `tile`. B's rows must be readable up to the
 * next full vector (a packed panel is; in place, pass whole vectors only). */
NEVER_INLINE void NAME(partial_tile)(int rows, int columns, ptrdiff_t depth, const real *a, ptrdiff_t a_row,
                                     ptrdiff_t a_col, const real *b, ptrdiff_t b_row, real *c, ptrdiff_t ldc,
                                     NAME(Epilogue) e)
{
    if (columns == NAME(NR)) {
        NAME(tile_rows)(rows, TILE_VECTORS, depth, a, a_row, a_col, b, b_row, c, ldc, e);
    } else if (columns == LANES) {
        NAME(tile_rows)(rows, 1, depth, a, a_row, a_col, b, b_row, c, ldc, e);
    } else {
        /* Whole vectors into a scratch tile, of which the valid columns are kept. */
        real scratch[TILE_ROWS * NAME(NR)] __attribute__((aligned(64)));
        const int padded = columns < LANES ? LANES : NAME(NR);
        if (e.d) {
            memset(scratch, 0, sizeof(scratch));
            NAME(copy_narrow)(rows, columns, e.d, e.d_row, scratch, padded);
        }
        NAME(partial_tile)(rows, padded, depth, a, a_row, a_col, b, b_row, scratch, padded,
                           (NAME(Epilogue)){e.d ? scratch : NULL, padded, e.relu});
        NAME(copy_narrow)(rows, columns, scratch, padded, c, ldc);
    }
}

/* From one packed panel of each. The full tile has a copy of its own, in which all strides are constants. */
NEVER_INLINE void NAME(full_tile)(ptrdiff_t depth, const real *a_panel, const real *b_panel, real *c,
                                  ptrdiff_t ldc, NAME(Epilogue) e)
{
    NAME(tile)(NAME(MR), TILE_VECTORS, depth, a_panel, 1, NAME(MR), b_panel, NAME(NR), c, ldc, e);
}

/* The same, while a share of the next panel of B sets out for L2. */
NEVER_INLINE void NAME(full_tile_fetching)(ptrdiff_t depth, const real *a_panel, const real *b_panel, real *c,
                                           ptrdiff_t ldc, NAME(Epilogue) e, const real *ahead)
{
    NAME(tile_fetching)(NAME(MR), TILE_VECTORS, depth, a_panel, 1, NAME(MR), b_panel, NAME(NR), c, ldc, e, ahead,
                        NAME(NR) / NAME(PANEL_SHARES));
}

ALWAYS_INLINE void NAME(panel_tile)(int rows, int columns, ptrdiff_t depth, const real *a_panel,
                                    const real *b_panel, real *c, ptrdiff_t ldc, NAME(Epilogue) e)
{
    if (rows == NAME(MR) && columns == NAME(NR))
        NAME(full_tile)(depth, a_panel, b_panel, c, ldc, e);
    else
        NAME(partial_tile)(rows, columns, depth, a_panel, 1, NAME(MR), b_panel, NAME(NR), c, ldc, e);
}

MAYBE_UNUSED void NAME(micro_kernel)(ptrdiff_t depth, const real *a_panel, const real *b_panel, real *c,
                                     ptrdiff_t ldc, int accumulate)
{
    NAME(full_tile)(depth, a_panel, b_panel, c, ldc, NAME(adding)(accumulate ? c : NULL, ldc));
}

MAYBE_UNUSED void NAME(edge_kernel)(int rows, int columns, ptrdiff_t depth, const real *a_panel,
                                    const real *b_panel, real *c, ptrdiff_t ldc, int accumulate)
{
    NAME(panel_tile)(rows, columns, depth, a_panel, b_panel, c, ldc, NAME(adding)(accumulate ? c : NULL, ldc));
}

/* ---- drivers ------------------------------------------------------------------------------------------- */

ALWAYS_INLINE ptrdiff_t NAME(round_up)(ptrdiff_t size, ptrdiff_t unit)
{
    return (size + unit - 1) / unit * unit;
}

/* The size of equal blocks of `total`, with no small one last: a multiple of `unit`, at most
 * round_up(largest, unit). */
ALWAYS_INLINE ptrdiff_t NAME(balanced)(ptrdiff_t total, ptrdiff_t largest, ptrdiff_t unit)
{
    const ptrdiff_t blocks = total > largest ? (total + largest - 1) / largest : 1;
    return NAME(round_up)((total + blocks - 1) / blocks, unit);
}

/* What a product of no terms is: D or zeros, rectified if C is to be. */
MAYBE_UNUSED void NAME(start)(ptrdiff_t M, ptrdiff_t N, real *c, ptrdiff_t ldc, NAME(Epilogue) e)
{
    for (ptrdiff_t i = 0; i < M; i++)
        for (ptrdiff_t j = 0; j < N; j++) c[i * ldc + j] = NAME(finished)(0, e, i, j);
}

/* What will be packed next: contiguous runs of `length` elements, `stride` apart. */
typedef struct {
    const real *first;
    ptrdiff_t runs, length, stride;
} NAME(Ahead);

/* The next `runs` runs, on their way to L2. */
ALWAYS_INLINE void NAME(prefetch_ahead)(NAME(Ahead) *ahead, ptrdiff_t runs)
{
    for (; runs > 0 && ahead->runs > 0; runs--, ahead->runs--, ahead->first += ahead->stride)
        for (ptrdiff_t i = 0; i < ahead->length; i += NAME(LINE)) __builtin_prefetch(ahead->first + i, 0, 2);
}

/* All tiles of one packed block: C[mc, nc] = A[mc, kc] B[kc, nc] + D[mc, nc]. Meanwhile what lies ahead is fetched
 * from memory, a share with each tile: packing by itself, with no arithmetic between, would wait for it. So would
 * the first tile of each panel of B, which comes from L3. */
MAYBE_UNUSED void NAME(macro_kernel_ahead)(ptrdiff_t mc, ptrdiff_t nc, ptrdiff_t kc, const real *a_packed,
                                           const real *b_packed, real *c, ptrdiff_t ldc, NAME(Epilogue) e,
                                           NAME(Ahead) ahead)
{
    const ptrdiff_t tiles = ((mc + NAME(MR) - 1) / NAME(MR)) * ((nc + NAME(NR) - 1) / NAME(NR));
    if (tiles == 0) return;
    const ptrdiff_t share = (ahead.runs + tiles - 1) / tiles, panel_share = NAME(NR) / NAME(PANEL_SHARES) * kc;
    for (ptrdiff_t jr = 0; jr < nc; jr += NAME(NR)) {
        const int columns = (int)NAME(smaller)(nc - jr, NAME(NR));
        const real *b_panel = b_packed + jr * kc, *next_panel = b_panel + NAME(NR) * kc;
        int shares = jr + NAME(NR) < nc ? NAME(PANEL_SHARES) : 0;
        for (ptrdiff_t ir = 0; ir < mc; ir += NAME(MR)) {
            const int rows = (int)NAME(smaller)(mc - ir, NAME(MR));
            const real *a_panel = a_packed + ir * kc;
            real *tile = c + ir * ldc + jr;
            const NAME(Epilogue) tile_epilogue = NAME(epilogue_at)(e, ir, jr);
            NAME(prefetch_ahead)(&ahead, share);
            if (rows == NAME(MR) && shares-- > 0)
                NAME(full_tile_fetching)(kc, a_panel, b_panel, tile, ldc, tile_epilogue,
                                         next_panel + shares * panel_share);
            else
                NAME(panel_tile)(rows, columns, kc, a_panel, b_panel, tile, ldc, tile_epilogue);
        }
    }
}

MAYBE_UNUSED void NAME(macro_kernel)(ptrdiff_t mc, ptrdiff_t nc, ptrdiff_t kc, const real *a_packed,
                                     const real *b_packed, real *c, ptrdiff_t ldc, NAME(Epilogue) e)
{
    NAME(macro_kernel_ahead)(mc, nc, kc, a_packed, b_packed, c, ldc, e, (NAME(Ahead)){NULL, 0, 0, 0});
}

/* The block (mc, kc) of A, if it has contiguous rows or columns, and is no empty one. */
ALWAYS_INLINE NAME(Ahead) NAME(block_ahead)(ptrdiff_t mc, ptrdiff_t kc, const real *block, ptrdiff_t a_row,
                                            ptrdiff_t a_col)
{
    if (mc > 0 && kc > 0 && a_row == 1) return (NAME(Ahead)){block, kc, mc, a_col};
    if (mc > 0 && kc > 0 && a_col == 1) return (NAME(Ahead)){block, mc, kc, a_row};
    return (NAME(Ahead)){NULL, 0, 0, 0};
}

MAYBE_UNUSED void NAME(gemm_packed_add)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *a, ptrdiff_t a_row,
                                        ptrdiff_t a_col, const real *b, ptrdiff_t b_row, ptrdiff_t b_col,
                                        real *c, ptrdiff_t ldc, NAME(Epilogue) e,
                                        real *workspace)
{
    if (K == 0) NAME(start)(M, N, c, ldc, e);
    if (M == 0 || N == 0 || K == 0) return;
    const ptrdiff_t MC = NAME(balanced)(M, NAME(MC), NAME(MR));
    /* Whole lines, for packing to read. */
    const ptrdiff_t KC = NAME(smaller)(K, NAME(balanced)(K, NAME(KC), NAME(LINE)));
    const ptrdiff_t NC = NAME(balanced)(N, NAME(NC), NAME(NR));
    real *b_packed = workspace, *a_packed = workspace + KC * NC; /* NC: whole vectors, so still aligned */
    for (ptrdiff_t jc = 0; jc < N; jc += NC) {
        const ptrdiff_t nc = NAME(smaller)(N - jc, NC);
        for (ptrdiff_t pc = 0; pc < K; pc += KC) {
            const ptrdiff_t kc = NAME(smaller)(K - pc, KC);
            const NAME(Epilogue) block = NAME(epilogue_of_block)(e, c, ldc, pc == 0, pc + kc == K);
            NAME(pack_b)(kc, nc, b + pc * b_row + jc * b_col, b_row, b_col, b_packed);
            for (ptrdiff_t ic = 0; ic < M; ic += MC) {
                const ptrdiff_t mc = NAME(smaller)(M - ic, MC);
                NAME(pack_a)(mc, kc, a + ic * a_row + pc * a_col, a_row, a_col, a_packed);
                const int is_last = ic + MC >= M;
                const ptrdiff_t next_ic = is_last ? 0 : ic + MC, next_pc = NAME(smaller)(K, is_last ? pc + KC : pc);
                const NAME(Ahead) ahead = NAME(block_ahead)(
                    NAME(smaller)(M - next_ic, MC), NAME(smaller)(K - next_pc, KC),
                    a + next_ic * a_row + next_pc * a_col, a_row, a_col
                );
                NAME(macro_kernel_ahead)(mc, nc, kc, a_packed, b_packed, c + ic * ldc + jc, ldc,
                                         NAME(epilogue_at)(block, ic, jc), ahead);
            }
        }
    }
}

/* With A read in place, and so is B where its rows are contiguous, end with a whole vector, and are used
 * at most twice or lie close to each other: rows further apart evict one another from the cache. */
MAYBE_UNUSED void NAME(gemm_unpacked_add)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *a,
                                          ptrdiff_t a_row, ptrdiff_t a_col, const real *b, ptrdiff_t b_row,
                                          ptrdiff_t b_col, real *c, ptrdiff_t ldc, NAME(Epilogue) e, real *workspace)
{
    if (K == 0) NAME(start)(M, N, c, ldc, e);
    const ptrdiff_t close = 1024 / sizeof(real), KC = NAME(balanced)(K, NAME(KC_UNPACKED), 1);
    const int near = b_col == 1 && (M <= 2 * NAME(MR) || (-close < b_row && b_row < close));
    for (ptrdiff_t pc = 0; pc < K; pc += KC) {
        const ptrdiff_t kc = NAME(smaller)(K - pc, KC);
        const NAME(Epilogue) block = NAME(epilogue_of_block)(e, c, ldc, pc == 0, pc + kc == K);
        for (ptrdiff_t jr = 0; jr < N; jr += NAME(NR)) {
            const int columns = (int)NAME(smaller)(N - jr, NAME(NR));
            const int width = columns <= LANES ? LANES : NAME(NR);
            const real *panel = b + pc * b_row + jr * b_col;
            ptrdiff_t panel_row = b_row;
            if (!near || columns != width) {
                if (width == LANES)
                    NAME(pack_panels)(LANES, columns, kc, panel, b_col, b_row, workspace);
                else
                    NAME(pack_b)(kc, columns, panel, b_row, b_col, workspace);
                panel = workspace;
                panel_row = width;
            }
            for (ptrdiff_t ir = 0; ir < M; ir += NAME(MR))
                NAME(partial_tile)((int)NAME(smaller)(M - ir, NAME(MR)), columns, kc,
                                   a + ir * a_row + pc * a_col, a_row, a_col, panel, panel_row,
                                   c + ir * ldc + jr, ldc, NAME(epilogue_at)(block, ir, jr));
        }
    }
}

/* A full tile with A in place, its rows contiguous. */
NEVER_INLINE void NAME(tile_in_place)(ptrdiff_t depth, const real *a, ptrdiff_t a_row, const real *b_panel,
                                      real *c, ptrdiff_t ldc, NAME(Epilogue) e)
{
    NAME(tile)(NAME(MR), TILE_VECTORS, depth, a, a_row, 1, b_panel, NAME(NR), c, ldc, e);
}

/* The elements `begin` to `end` of some contiguous rows, on their way to L1. */
ALWAYS_INLINE void NAME(prefetch_rows)(ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t end, const real *a,
                                       ptrdiff_t a_row)
{
    for (ptrdiff_t p = begin; p < end; p += NAME(LINE))
        for (ptrdiff_t i = 0; i < rows; i++) __builtin_prefetch(a + i * a_row + p);
}

/* MR rows of A, in L1, meet all panels of B, which come from L2 in one stream; meanwhile the next rows of A
 * are fetched from memory. No row of A or C is visited twice. */
MAYBE_UNUSED void NAME(gemm_panels)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *a, ptrdiff_t a_row,
                                    ptrdiff_t a_col, const real *b_panels, ptrdiff_t depth, real *c,
                                    ptrdiff_t ldc, NAME(Epilogue) e)
{
    real copy[TILE_ROWS > FEWEST_WAYS ? NAME(MR) * NAME(KC_PANELS) : 1] __attribute__((aligned(64)));
    if (K == 0) NAME(start)(M, N, c, ldc, e);
    if (N == 0) return;
    const ptrdiff_t KC = NAME(balanced)(K, NAME(KC_PANELS), 1), panels = (N + NAME(NR) - 1) / NAME(NR);
    for (ptrdiff_t pc = 0; pc < K; pc += KC) {
        const ptrdiff_t kc = NAME(smaller)(K - pc, KC);
        const ptrdiff_t share = NAME(round_up)((kc + panels - 1) / panels, NAME(LINE));
        const NAME(Epilogue) block = NAME(epilogue_of_block)(e, c, ldc, pc == 0, pc + kc == K);
        for (ptrdiff_t ir = 0; ir < M; ir += NAME(MR)) {
            const int rows = (int)NAME(smaller)(M - ir, NAME(MR));
            const int copied = copies_rows() && rows == NAME(MR) && panels >= NAME(few_panels)();
            const ptrdiff_t next_rows = a_col == 1 ? NAME(smaller)(M - ir - rows, NAME(MR)) : 0;
            const real *a_rows = a + ir * a_row + pc * a_col;
            if (copied) NAME(pack_a)(rows, kc, a_rows, a_row, a_col, copy);
            for (ptrdiff_t panel = 0; panel < panels; panel++) {
                const ptrdiff_t jr = panel * NAME(NR), place = ir * ldc + jr;
                const int columns = (int)NAME(smaller)(N - jr, NAME(NR));
                const real *b = b_panels + jr * depth + pc * NAME(NR);
                const NAME(Epilogue) tile = NAME(epilogue_at)(block, ir, jr);
                if (next_rows)
                    NAME(prefetch_rows)(next_rows, panel * share, NAME(smaller)((panel + 1) * share, kc),
                                        a_rows + rows * a_row, a_row);
                if (copied)
                    NAME(panel_tile)(rows, columns, kc, copy, b, c + place, ldc, tile);
                else if (rows == NAME(MR) && columns == NAME(NR) && a_col == 1)
                    NAME(tile_in_place)(kc, a_rows, a_row, b, c + place, ldc, tile);
                else
                    NAME(partial_tile)(rows, columns, kc, a_rows, a_row, a_col, b, NAME(NR), c + place, ldc,
                                       tile);
            }
        }
    }
}

/* Whether gemm_rows suits a product: contiguous rows of A, so many that packing B pays; a B that stays in cache,
 * and where rows are copied, has panels enough for that. */
ALWAYS_INLINE int NAME(suits_rows)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, ptrdiff_t a_col)
{
    return a_col == 1 && M >= 32 * NAME(MR) && (!copies_rows() || N > NAME(few_panels)() * NAME(NR))
        && (double)K * NAME(round_up)(N, NAME(NR)) <= NAME(IN_L3);
}

MAYBE_UNUSED void NAME(gemm_rows_add)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *a, ptrdiff_t a_row,
                                      ptrdiff_t a_col, const real *b, ptrdiff_t b_row, ptrdiff_t b_col,
                                      real *c, ptrdiff_t ldc, NAME(Epilogue) e, real *workspace)
{
    NAME(pack_b)(K, N, b, b_row, b_col, workspace);
    NAME(gemm_panels)(M, N, K, a, a_row, a_col, workspace, K, c, ldc, e);
}

/* The dot products of x and of `columns` columns of B, each contiguous, added to y. */
ALWAYS_INLINE void NAME(dot_columns)(const int columns, ptrdiff_t K, const real *x, const real *b,
                                     ptrdiff_t b_col, real *y)
{
    vector sum[4][2] = {{{0}, {0}}, {{0}, {0}}, {{0}, {0}}, {{0}, {0}}};
    ptrdiff_t p = 0;
    for (; p + 2 * LANES <= K; p += 2 * LANES)
        UNROLL for (int v = 0; v < 2; v++) {
            const vector x_vector = *(const vector_u *)(x + p + v * LANES);
            UNROLL for (int j = 0; j < columns; j++)
                sum[j][v] += x_vector * *(const vector_u *)(b + j * b_col + p + v * LANES);
        }
    UNROLL for (int j = 0; j < columns; j++) {
        const vector both = sum[j][0] + sum[j][1];
        real total = 0;
        UNROLL for (int lane = 0; lane < LANES; lane++) total += both[lane];
        for (ptrdiff_t q = p; q < K; q++) total += x[q] * b[j * b_col + q];
        y[j] += total;
    }
}

/* y[0:N] = x[0:K] B[0:K, 0:N] + D, whose elements are d_stride apart: each element of B is used once, so this
 * runs at the speed of memory, and all that matters is to read B along its contiguous direction, in few streams. */
MAYBE_UNUSED void NAME(gemv)(ptrdiff_t N, ptrdiff_t K, const real *x, ptrdiff_t x_stride, const real *b,
                             ptrdiff_t b_row, ptrdiff_t b_col, real *restrict y, NAME(Epilogue) e,
                             ptrdiff_t d_stride)
{
    if (e.d != y)
        for (ptrdiff_t j = 0; j < N; j++) y[j] = e.d ? e.d[j * d_stride] : 0;
    if (b_col == 1 && N > 1) { /* four rows at a time: y is read and written once for four rows of B */
        ptrdiff_t p = 0;
        for (; p + 4 <= K; p += 4) {
            const real *row = b + p * b_row, *x4 = x + p * x_stride;
            const real x0 = x4[0], x1 = x4[x_stride], x2 = x4[2 * x_stride], x3 = x4[3 * x_stride];
            for (ptrdiff_t j = 0; j < N; j++)
                y[j] += (x0 * row[j] + x1 * row[b_row + j])
                      + (x2 * row[2 * b_row + j] + x3 * row[3 * b_row + j]);
        }
        for (; p < K; p++)
            for (ptrdiff_t j = 0; j < N; j++) y[j] += x[p * x_stride] * b[p * b_row + j];
    } else if (b_row == 1 && x_stride == 1) { /* dot products, along four columns of B at a time */
        ptrdiff_t j = 0;
        for (; j + 4 <= N; j += 4) NAME(dot_columns)(4, K, x, b + j * b_col, b_col, y + j);
        for (; j < N; j++) NAME(dot_columns)(1, K, x, b + j * b_col, b_col, y + j);
    } else {
        for (ptrdiff_t j = 0; j < N; j++) {
            real total = 0;
            for (ptrdiff_t p = 0; p < K; p++) total += x[p * x_stride] * b[p * b_row + j * b_col];
            y[j] += total;
        }
    }
    if (e.relu)
        for (ptrdiff_t j = 0; j < N; j++) y[j] = y[j] < 0 ? 0 : y[j];
}

/* Elements of workspace for a product of this size, or of any smaller one, by any driver. */
MAYBE_UNUSED ptrdiff_t NAME(gemm_workspace)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K)
{
    const ptrdiff_t MC = NAME(round_up)(NAME(smaller)(M, NAME(MC)), NAME(MR));
    const ptrdiff_t NC = NAME(round_up)(NAME(smaller)(N, NAME(NC)), NAME(NR));
    const ptrdiff_t packed = NAME(smaller)(K, NAME(KC)) * (MC + NC);
    const ptrdiff_t unpacked = NAME(smaller)(K, NAME(KC_UNPACKED)) * NAME(NR);
    const ptrdiff_t panels = NAME(smaller)(K * NAME(round_up)(N, NAME(NR)), NAME(IN_L3));
    const ptrdiff_t larger = packed > unpacked ? packed : unpacked;
    return larger > panels ? larger : panels;
}

/* The bounds below are measured: packing pays when each packed element is used often enough. */
MAYBE_UNUSED void NAME(gemm_add)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *a, ptrdiff_t a_row,
                                 ptrdiff_t a_col, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, real *c,
                                 ptrdiff_t ldc, NAME(Epilogue) e, real *workspace)
{
    const int b_transposed = b_row == 1 && b_col != 1, a_transposed = a_row == 1 && a_col != 1;
    const int high = copies_rows(), stays_in_l3 = (double)M * K <= NAME(IN_L3);
    const int few_rows = M <= (high && !b_transposed ? 3 : 2) * NAME(MR);
    /* Each panel of B has all of A read again, from memory where many rows have come between. */
    const int few_columns = N <= (K <= NAME(KC_UNPACKED) && stays_in_l3 ? NAME(few_panels)() : 2) * NAME(NR);
    const int near = a_transposed ? (K <= NAME(KC_UNPACKED) && stays_in_l3) || a_col <= 1024 / (int)sizeof(real)
                                  : N <= NAME(NR) || stays_in_l3;
    /* However long K is: a packed element would be used only M / MR or N / NR times, few ones where tiles are wide. */
    const int short_sides = TILE_ROWS > FEWEST_WAYS && !high && !a_transposed && M <= NAME(SHORT) && N <= NAME(SHORT);
    const double largest = high && (b_transposed || !a_transposed) ? 64
                         : a_transposed || NAME(suits_rows)(M, N, K, a_col) ? 128
                         : 320;
    if (M == 1 || (M <= 4 && N > 1 && b_transposed))
        for (ptrdiff_t i = 0; i < M; i++)
            NAME(gemv)(N, K, a + i * a_row, a_col, b, b_row, b_col, c + i * ldc, NAME(epilogue_at)(e, i, 0), 1);
    else if (N == 1 && ldc == 1) /* the transposed problem */
        NAME(gemv)(M, K, b, b_row, a, a_col, a_row, c, e, e.d_row);
    else if (few_rows || (few_columns && near) || short_sides || (double)M * N * K <= largest * largest * largest)
        NAME(gemm_unpacked_add)(M, N, K, a, a_row, a_col, b, b_row, b_col, c, ldc, e, workspace);
    else if (NAME(suits_rows)(M, N, K, a_col))
        NAME(gemm_rows_add)(M, N, K, a, a_row, a_col, b, b_row, b_col, c, ldc, e, workspace);
    else
        NAME(gemm_packed_add)(M, N, K, a, a_row, a_col, b, b_row, b_col, c, ldc, e, workspace);
}

/* The same with `accumulate` for D: C itself, or nothing. */
#define ACCUMULATING(gemm) \
    MAYBE_UNUSED void NAME(gemm)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *a, ptrdiff_t a_row, \
                                 ptrdiff_t a_col, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, real *c, \
                                 ptrdiff_t ldc, int accumulate, real *workspace) \
    { \
        NAME(gemm##_add)(M, N, K, a, a_row, a_col, b, b_row, b_col, c, ldc, \
                         NAME(adding)(accumulate ? c : NULL, ldc), workspace); \
    }
ACCUMULATING(gemm)
ACCUMULATING(gemm_packed)
ACCUMULATING(gemm_unpacked)
#undef ACCUMULATING
