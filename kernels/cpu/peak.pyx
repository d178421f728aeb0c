"""Measures the machine itself: what its arithmetic units and its memory can do at most.

    multiply_adds    chains of multiply-adds in registers: no kernel can compute faster
    read, triad      long arrays, read once, or read and written: no kernel can stream faster

A kernel's rate divided by these peaks says how much of the machine it uses. The loops are in peak.h. Each
function splits its work evenly over ``threads`` OpenMP threads, and is timed by its caller. All is float32.
"""

from cython.parallel cimport prange

include "arguments.pxi"

cdef extern from "peak.h" nogil:
    enum:
        CHAINS
        F32_LANES
    float fma_chains(Py_ssize_t steps, float start)
    float read_f32(const float *x, Py_ssize_t n)
    void triad_f32(float *out, const float *a, const float *b, Py_ssize_t n)


def multiply_adds(Py_ssize_t steps, int threads):
    """Runs ``steps`` rounds of multiply-adds on each of ``threads`` threads.

    Returns (the number of floating-point operations, two for each multiply-add; a sum of the results, near
    the number of vectors' elements, which only shows that they were computed).
    """
    cdef float total = 0
    cdef int part
    threads = max(1, threads)
    with nogil:
        if threads == 1:  # without OpenMP, which a forked child must not enter
            total = fma_chains(steps, 1.0)
        else:
            for part in prange(threads, num_threads=threads, schedule="static"):
                total += fma_chains(steps, 1.0)
    return 2.0 * CHAINS * F32_LANES * steps * threads, total


def read(cnp.ndarray x not None, int threads):
    """The sum of ``x``, a float32 array, as quickly as it can be read (the rounding is that of float32)."""
    check_input(x, cnp.NPY_FLOAT32)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), begin
    cdef const float *data = <const float *>cnp.PyArray_DATA(x)
    cdef float total = 0
    cdef int part
    threads = max(1, threads)
    with nogil:
        if threads == 1:
            total = read_f32(data, n)
        else:
            for part in prange(threads, num_threads=threads, schedule="static"):
                begin = n * part // threads
                total += read_f32(data + begin, n * (part + 1) // threads - begin)
    return total


def triad(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None, int threads):
    """``out = a + 3 b`` for float32 arrays of one shape."""
    check_output(out, cnp.NPY_FLOAT32)
    check_input(a, cnp.NPY_FLOAT32)
    check_input(b, cnp.NPY_FLOAT32)
    check_same_shape(a, out)
    check_same_shape(b, out)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out), begin
    cdef float *o = <float *>cnp.PyArray_DATA(out)
    cdef const float *x = <const float *>cnp.PyArray_DATA(a)
    cdef const float *y = <const float *>cnp.PyArray_DATA(b)
    cdef int part
    threads = max(1, threads)
    with nogil:
        if threads == 1:
            triad_f32(o, x, y, n)
        else:
            for part in prange(threads, num_threads=threads, schedule="static"):
                begin = n * part // threads
                triad_f32(o + begin, x + begin, y + begin, n * (part + 1) // threads - begin)
