"""For kernels from Cython source: ``from arrays cimport exp_array, gemm``. What they do stands in arrays.h."""

cdef extern from "arrays.h" nogil:
    double exp_array(void *x, Py_ssize_t n, size_t size)
    double dot_array(const void *x, const void *y, Py_ssize_t n, size_t size)
    double max_array(const void *x, Py_ssize_t n, size_t size)
    Py_ssize_t gemm_workspace(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, size_t size)
    void gemm(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const void *a, Py_ssize_t a_row, Py_ssize_t a_col,
              const void *b, Py_ssize_t b_row, Py_ssize_t b_col, void *c, Py_ssize_t c_row, int add,
              void *workspace, size_t size)
