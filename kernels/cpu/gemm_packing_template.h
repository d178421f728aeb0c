/* The packing of gemm.h for one element type: panels in the order in which the register tiles read them. Included by
 * gemm_template.h alone. */

/* Rows of fewer than 32 columns, as those of a narrow tile or panel are: in parts of a power of two, one for each bit
 * of their number, with no loop over single ones. */
ALWAYS_INLINE void NAME(copy_narrow)(ptrdiff_t rows, ptrdiff_t columns, const real *from, ptrdiff_t from_row, real *to,
                                     ptrdiff_t to_row)
{
    _Static_assert(NAME(MR) <= 32 && NAME(NR) <= 32, "a part of 32 columns is missing");
    UNROLL for (int part = 16; part > 0; part /= 2) {
        if (!(columns & part)) continue;
        for (ptrdiff_t i = 0; i < rows; i++) memcpy(to + i * to_row, from + i * from_row, part * sizeof(real));
        from += part;
        to += part;
    }
}

/* Whole panels of lanes that are contiguous. Where a panel is a whole number of cache lines wide, each row is read
 * in one go. Else a few rows at a time go into all panels: a panel's neighbour finds the rest of a line still in
 * the cache, which for rows a power of two apart holds only a few. */
ALWAYS_INLINE void NAME(pack_contiguous_lanes)(const int width, ptrdiff_t panels, ptrdiff_t depth,
                                               const real *from, ptrdiff_t depth_stride, real *out)
{
    const ptrdiff_t rows = width * sizeof(real) % 64 ? 8 : 1;
    for (ptrdiff_t first = 0; first < depth; first += rows) {
        const ptrdiff_t end = NAME(smaller)(depth, first + rows);
        for (ptrdiff_t panel = 0; panel < panels; panel++) {
            real *to = out + panel * width * depth;
            for (ptrdiff_t p = first; p < end; p++)
                memcpy(to + p * width, from + p * depth_stride + panel * width, width * sizeof(real));
        }
    }
}

/* Packs `length` lanes of `depth` elements into panels of `width` lanes: rows of A, or columns of B. The
 * element (lane, p) is read at from[lane * lane_stride + p * depth_stride]. */
ALWAYS_INLINE void NAME(pack_panels)(const int width, ptrdiff_t length, ptrdiff_t depth, const real *from,
                                     ptrdiff_t lane_stride, ptrdiff_t depth_stride, real *out)
{
    enum { BLOCK = NAME(TRANSPOSE), LINE = NAME(LINE) };
    const int blocked = width / BLOCK * BLOCK;
    ptrdiff_t first = 0;
    if (lane_stride == 1) {
        NAME(pack_contiguous_lanes)(width, length / width, depth, from, depth_stride, out);
        first = length / width * width;
        out += first * depth;
    }
    for (; first < length; first += width, out += width * depth) {
        const real *panel = from + first * lane_stride;
        const ptrdiff_t lanes = length - first < width ? length - first : width;
        ptrdiff_t p = 0;
        if (lanes == width && depth_stride == 1) {
            /* A whole cache line of each group of lanes before the next group: lanes may lie a power of two
             * apart, and then fewer of them fit into the cache than a panel has. */
            for (; p + LINE <= depth; p += LINE) {
                int lane = 0;
                for (; lane + 2 * BLOCK <= blocked; lane += 2 * BLOCK)
                    for (int q = 0; q < LINE; q += BLOCK)
                        NAME(transpose_two)(panel + lane * lane_stride + p + q, lane_stride,
                                            out + (p + q) * width + lane, width);
                for (; lane < blocked; lane += BLOCK)
                    for (int q = 0; q < LINE; q += BLOCK)
                        NAME(transpose)(panel + lane * lane_stride + p + q, lane_stride,
                                        out + (p + q) * width + lane, width);
                for (; lane < width; lane++)
                    for (int q = 0; q < LINE; q++)
                        out[(p + q) * width + lane] = panel[lane * lane_stride + p + q];
            }
        }
        if (lanes < width) memset(out + p * width, 0, (depth - p) * width * sizeof(real));
        if (lane_stride == 1 && lanes < width)
            NAME(copy_narrow)(depth - p, lanes, panel + p * depth_stride, depth_stride, out + p * width, width);
        else
            for (; p < depth; p++)
                for (ptrdiff_t lane = 0; lane < lanes; lane++)
                    out[p * width + lane] = panel[lane * lane_stride + p * depth_stride];
    }
}

NEVER_INLINE void NAME(pack_a)(ptrdiff_t rows, ptrdiff_t depth, const real *a, ptrdiff_t a_row,
                               ptrdiff_t a_col, real *out)
{
    NAME(pack_panels)(NAME(MR), rows, depth, a, a_row, a_col, out);
}

NEVER_INLINE void NAME(pack_b)(ptrdiff_t depth, ptrdiff_t columns, const real *b, ptrdiff_t b_row,
                               ptrdiff_t b_col, real *out)
{
    NAME(pack_panels)(NAME(NR), columns, depth, b, b_col, b_row, out);
}
