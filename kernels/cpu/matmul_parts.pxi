# Threads of matmul.pyx that share K, each with sums of its own, for products of few outputs.


cdef bint splits_depth(Problem *p, int threads) noexcept nogil:
    """Whether threads do best with a part of K each: one product, long sums for few outputs."""
    return (threads > 1 and p.batch == 1
            and (p.M * p.N <= FEW_OUTPUTS or max(p.M, p.N) <= SHORT_SIDE)
            and p.K >= <Py_ssize_t> LONG_PART * threads)


cdef int run_parts(Problem *p, int threads) except -1:
    """One product: each thread sums a part of K, and the sums are added in the order of the parts."""
    cdef bint is_float = p.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double)
    cdef Py_ssize_t of_gemm = (gemm_workspace_f32 if is_float else gemm_workspace_f64)(p.M, p.N, p.K)
    cdef Py_ssize_t bytes_each = whole_lines((p.M * p.N + of_gemm) * item)
    cdef void *memory = allocate(threads * bytes_each)
    cdef char *workspace = aligned(memory)
    cdef int part
    with nogil:
        for part in prange(threads, num_threads=threads, schedule="static"):
            multiply_part(p, part, threads, workspace + part * bytes_each)
        for part in range(1, threads):
            if is_float:
                add_part(p.M * p.N, <float *> p.out, <float *> (workspace + part * bytes_each))
            else:
                add_part(p.M * p.N, <double *> p.out, <double *> (workspace + part * bytes_each))
        if p.relu and is_float:
            rectify(p.M * p.N, <float *> p.out)
        elif p.relu:
            rectify(p.M * p.N, <double *> p.out)
    free(memory)
    return 0


cdef void multiply_part(Problem *p, int part, int parts, char *scratch) noexcept nogil:
    """The sums over part ``part`` of K: the first, with the bias, to out, the others to ``scratch``."""
    cdef Py_ssize_t begin = share(p.K, part, parts, CACHE_LINE), a = begin * p.a_col, b = begin * p.b_row
    cdef Py_ssize_t depth = share(p.K, part + 1, parts, CACHE_LINE) - begin, outputs = p.M * p.N
    cdef void *out = p.out if part == 0 else scratch
    # ReLU follows when all parts have been added.
    cdef const float *bias_f32 = <float *> p.bias if part == 0 else NULL
    cdef const double *bias_f64 = <double *> p.bias if part == 0 else NULL
    if p.dtype == cnp.NPY_FLOAT32:
        gemm_add_f32(p.M, p.N, depth, <float *> p.a + a, p.a_row, p.a_col, <float *> p.b + b, p.b_row, p.b_col,
                     <float *> out, p.N, Epilogue_f32(bias_f32, 0, False), <float *> scratch + outputs)
    else:
        gemm_add_f64(p.M, p.N, depth, <double *> p.a + a, p.a_row, p.a_col, <double *> p.b + b, p.b_row, p.b_col,
                     <double *> out, p.N, Epilogue_f64(bias_f64, 0, False), <double *> scratch + outputs)


cdef inline void add_part(Py_ssize_t n, real *out, const real *part) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] += part[i]


cdef inline void rectify(Py_ssize_t n, real *out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = 0 if out[i] < 0 else out[i]
