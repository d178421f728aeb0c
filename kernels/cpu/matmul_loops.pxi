# The loops of matmul.pyx's rungs *naive* and *tiled*, batch by batch.


cdef void naive_batch(Problem *p, real *out, real *a, real *b) noexcept nogil:
    cdef Py_ssize_t index
    for index in range(p.batch):
        naive_product(p, out + index * p.M * p.N, a + batch_offset(p, p.a_batch, index),
                      b + batch_offset(p, p.b_batch, index))


cdef void naive_product(Problem *p, real *out, real *a, real *b) noexcept nogil:
    cdef Py_ssize_t i, j, k
    cdef real total
    for i in range(p.M):
        for j in range(p.N):
            total = 0
            for k in range(p.K):
                total += a[i * p.a_row + k * p.a_col] * b[k * p.b_row + j * p.b_col]
            out[i * p.N + j] = total


cdef void tiled_batch(Problem *p, real *out, real *a, real *b) noexcept nogil:
    cdef Py_ssize_t index
    for index in range(p.batch):
        tiled_product(p, out + index * p.M * p.N, a + batch_offset(p, p.a_batch, index),
                      b + batch_offset(p, p.b_batch, index))


cdef void tiled_product(Problem *p, real *out, real *a, real *b) noexcept nogil:
    cdef real[TILE_K * TILE_N] tile
    cdef Py_ssize_t i, j, k, first_k, first_n = 0, depth, width
    for i in range(p.M * p.N):
        out[i] = 0
    while first_n < p.N:
        width = min(<Py_ssize_t> TILE_N, p.N - first_n)
        first_k = 0
        while first_k < p.K:
            depth = min(<Py_ssize_t> TILE_K, p.K - first_k)
            # A copy: in place, rows of b a power of two apart would evict each other from L1.
            for k in range(depth):
                for j in range(width):
                    tile[k * TILE_N + j] = b[(first_k + k) * p.b_row + (first_n + j) * p.b_col]
            for i in range(p.M):
                row_times_tile(width, depth, a + i * p.a_row + first_k * p.a_col, p.a_col, tile,
                               out + i * p.N + first_n)
            first_k += TILE_K
        first_n += TILE_N


cdef inline void row_times_tile(Py_ssize_t width, Py_ssize_t depth, const real *a, Py_ssize_t a_col,
                                const real *tile, real *out) noexcept nogil:
    """out (width,) += a (depth,) @ tile (depth, width), four rows at a time: out is loaded and stored once
    for four multiply-adds."""
    cdef Py_ssize_t j, k = 0
    cdef real a0, a1, a2, a3
    cdef const real *row
    while k + 4 <= depth:
        a0, a1, a2, a3 = a[k * a_col], a[(k + 1) * a_col], a[(k + 2) * a_col], a[(k + 3) * a_col]
        row = tile + k * TILE_N
        for j in range(width):
            out[j] += ((a0 * row[j] + a1 * row[TILE_N + j])
                       + (a2 * row[2 * TILE_N + j] + a3 * row[3 * TILE_N + j]))
        k += 4
    while k < depth:
        for j in range(width):
            out[j] += a[k * a_col] * tile[k * TILE_N + j]
        k += 1
