/* What a tile of C meets before it leaves the registers, for one element type. Included by gemm_template.h, for
 * gemm.h, which documents it. */

/* D, if there is one, is added; then, if `relu`, what is below 0 becomes 0, and NaN stays. */
typedef struct {
    const real *d;
    ptrdiff_t d_row;
    int relu;
} NAME(Epilogue);

ALWAYS_INLINE NAME(Epilogue) NAME(adding)(const real *d, ptrdiff_t d_row)
{
    return (NAME(Epilogue)){d, d_row, 0};
}

/* That of what begins at row i and column j. */
ALWAYS_INLINE NAME(Epilogue) NAME(epilogue_at)(NAME(Epilogue) e, ptrdiff_t i, ptrdiff_t j)
{
    if (e.d) e.d += i * e.d_row + j;
    return e;
}

/* That of one block of K, of those which C sums up: to the later ones C is D, and the last one ends the sum. */
ALWAYS_INLINE NAME(Epilogue) NAME(epilogue_of_block)(NAME(Epilogue) e, const real *c, ptrdiff_t ldc, int is_first,
                                                     int is_last)
{
    return (NAME(Epilogue)){is_first ? e.d : c, is_first ? e.d_row : ldc, e.relu && is_last};
}

ALWAYS_INLINE vector NAME(rectified)(vector x)
{
    const __typeof__(x < 0) negative = x < 0;
    return (vector)((__typeof__(negative))x & ~negative);
}

/* The epilogue of one element. */
ALWAYS_INLINE real NAME(finished)(real sum, NAME(Epilogue) e, ptrdiff_t i, ptrdiff_t j)
{
    if (e.d) sum += e.d[i * e.d_row + j];
    return e.relu && sum < 0 ? 0 : sum;
}
