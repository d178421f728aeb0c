"""Uniform and normal random numbers, and dropout: Philox4x32-10, as described in ``kernels/philox.py``.

Arrays are C-contiguous, of any shape, float32 or float64; ``seed`` and ``offset`` are integers in [0, 2^64).
An element's number depends on these and on its place alone, so any number of threads gives the same bits,
and so do the CUDA kernels (``normal`` to within rounding).

There is one rung, *vectorized*: the generator runs in vectors (``philox.h``), in stretches that stay in the
L1 cache. Arithmetic intensity: about 10 vector operations for an element of 4 bytes, or of 8 in dropout.
"""

from cython.parallel cimport prange
from libc.stdint cimport uint32_t, uint64_t

include "arguments.pxi"

ctypedef void (*fill_f32)(
    float *out, Py_ssize_t begin, Py_ssize_t end, uint64_t seed, uint64_t offset
) noexcept nogil
ctypedef void (*fill_f64)(
    double *out, Py_ssize_t begin, Py_ssize_t end, uint64_t seed, uint64_t offset
) noexcept nogil

cdef extern from *:
    """
    #include <string.h>

    #include "box_muller.h"
    #include "philox.h"

    /* In [0, 1): 24 bits, or 53. */
    ALWAYS_INLINE float unit_f32(const uint32_t *word) { return (float)(int)(*word >> 8) * 0x1p-24f; }
    ALWAYS_INLINE double unit_f64(const uint32_t *words) {
        return (double)(int64_t)(pair_of(words) >> 11) * 0x1p-53;
    }

    #define REAL float
    #define NAME(f) f##_f32
    #include "random.h"

    #define REAL double
    #define NAME(f) f##_f64
    #include "random.h"
    """
    fill_f32 uniform_array_f32, normal_array_f32
    fill_f64 uniform_array_f64, normal_array_f64
    void dropout_array_f32(
        float *out, const float *x, Py_ssize_t begin, Py_ssize_t end, uint32_t threshold, double scale,
        uint64_t seed, uint64_t offset,
    ) noexcept nogil
    void dropout_array_f64(
        double *out, const double *x, Py_ssize_t begin, Py_ssize_t end, uint32_t threshold, double scale,
        uint64_t seed, uint64_t offset,
    ) noexcept nogil

# Elements below which another thread costs more than it saves: a few microseconds of work. Threads begin at
# multiples of STRETCH, as random.h needs it.
cdef enum:
    CHEAP = 16384
    COSTLY = 4096
    STRETCH = 512


cdef inline void fill_part(
    void *out, Py_ssize_t n, uint64_t seed, uint64_t offset, int part, int parts, int dtype, fill_f32 f32,
    fill_f64 f64,
) noexcept nogil:
    cdef Py_ssize_t begin = share(n, part, parts, STRETCH), end = share(n, part + 1, parts, STRETCH)
    if dtype == cnp.NPY_FLOAT32:
        f32(<float *>out, begin, end, seed, offset)
    else:
        f64(<double *>out, begin, end, seed, offset)


cdef inline void dropout_part(
    void *out, const void *x, Py_ssize_t n, uint32_t threshold, double scale, uint64_t seed, uint64_t offset,
    int part, int parts, int dtype,
) noexcept nogil:
    cdef Py_ssize_t begin = share(n, part, parts, STRETCH), end = share(n, part + 1, parts, STRETCH)
    if dtype == cnp.NPY_FLOAT32:
        dropout_array_f32(<float *>out, <const float *>x, begin, end, threshold, scale, seed, offset)
    else:
        dropout_array_f64(<double *>out, <const double *>x, begin, end, threshold, scale, seed, offset)


cdef run_fill(
    cnp.ndarray out, uint64_t seed, uint64_t offset, fill_f32 f32, fill_f64 f64, Py_ssize_t work_per_thread,
    int threads,
):
    cdef int dtype = real_type(out), part, parts
    check_output(out, dtype)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef void *data = cnp.PyArray_DATA(out)
    parts = threads_for(n, work_per_thread, threads)
    with nogil:
        if parts == 1:
            fill_part(data, n, seed, offset, 0, 1, dtype, f32, f64)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                fill_part(data, n, seed, offset, part, parts, dtype, f32, f64)


def uniform(cnp.ndarray out, seed, offset, int threads):
    """Uniform numbers in [0, 1): multiples of 2^-24 in float32, of 2^-53 in float64."""
    run_fill(out, seed, offset, uniform_array_f32, uniform_array_f64, CHEAP, threads)


def normal(cnp.ndarray out, seed, offset, int threads):
    """Normal numbers of mean 0 and variance 1, by the transform of Box and Muller."""
    run_fill(out, seed, offset, normal_array_f32, normal_array_f64, COSTLY, threads)


def dropout(
    cnp.ndarray out, cnp.ndarray x, uint32_t threshold, double scale, uint64_t seed, uint64_t offset,
    int threads,
):
    """``x`` times ``scale``, or 0 where the element's random word is below ``threshold``."""
    cdef int dtype = real_type(x), part, parts
    check_input(x, dtype)
    check_output(out, dtype)
    check_same_shape(out, x)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef void *out_data = cnp.PyArray_DATA(out)
    cdef const void *x_data = cnp.PyArray_DATA(x)
    parts = threads_for(n, CHEAP, threads)
    with nogil:
        if parts == 1:
            dropout_part(out_data, x_data, n, threshold, scale, seed, offset, 0, 1, dtype)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                dropout_part(out_data, x_data, n, threshold, scale, seed, offset, part, parts, dtype)
