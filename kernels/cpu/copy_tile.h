/* Copies of a tile of a strided array, a template: the including file defines
 *   REAL                  the element type (bits are copied, so any type of its size may be),
 *   NAME(f)               the name of f for this type,
 *   TRANSPOSES            defined if transpose.h has blocks for this type.
 */

/* to[i, j] = from[i, j] for i < rows, j < columns. Strides count elements; to's columns lie side by side. */
MAYBE_UNUSED void NAME(copy_tile)(REAL *to, ptrdiff_t to_row, const REAL *from, ptrdiff_t from_row,
                                  ptrdiff_t from_column, ptrdiff_t rows, ptrdiff_t columns) {
    ptrdiff_t i = 0;
#ifdef TRANSPOSES
    enum { BLOCK = NAME(TRANSPOSE) };
    if (from_row == 1 && from_column != 0 && from_column != 1) {
        /* Whole blocks, and the columns that are left beside them; the rows that are left come below. */
        ptrdiff_t j = 0;
        for (; j + BLOCK <= columns; j += BLOCK) /* down the rows first: they share cache lines */
            for (i = 0; i + BLOCK <= rows; i += BLOCK)
                NAME(transpose)(from + i + j * from_column, from_column, to + i * to_row + j, to_row);
        i = rows / BLOCK * BLOCK;
        for (; j < columns; j++)
            for (ptrdiff_t k = 0; k < i; k++) to[k * to_row + j] = from[k + j * from_column];
    }
#endif
    for (; i < rows; i++) {
        REAL *row = to + i * to_row;
        const REAL *source = from + i * from_row;
        if (from_column == 1)
            memcpy(row, source, columns * sizeof(REAL));
        else if (from_column == 0) {
            const REAL value = source[0]; /* read once: for all that the compiler knows, it may lie in the row */
            for (ptrdiff_t j = 0; j < columns; j++) row[j] = value;
        } else
            for (ptrdiff_t j = 0; j < columns; j++) row[j] = source[j * from_column];
    }
}

#undef REAL
#undef NAME
#undef TRANSPOSES
