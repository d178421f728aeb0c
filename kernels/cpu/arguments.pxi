# What the .pyx files share: the checks on the arrays that a kernel is given, and how work is split. The op
# layer has already checked shapes in the caller's terms; what is checked here is what would corrupt memory.

cimport numpy as cnp

cnp.import_array()

ctypedef fused real:
    float
    double


cdef inline int check_output(cnp.ndarray array, int dtype) except -1:
    """An output must be writeable, C-contiguous and of type number ``dtype``."""
    if cnp.PyArray_TYPE(array) != dtype:
        raise TypeError(f"kernel output has dtype {array.dtype}, which does not fit its inputs")
    if not cnp.PyArray_ISCARRAY(array):
        raise ValueError("kernel output must be aligned, writeable and C-contiguous")
    return 0


cdef inline int check_input(cnp.ndarray array, int dtype) except -1:
    """An input must be C-contiguous and of type number ``dtype``."""
    if cnp.PyArray_TYPE(array) != dtype:
        raise TypeError(f"kernel input has dtype {array.dtype}, which does not fit its other arguments")
    if not cnp.PyArray_ISCARRAY_RO(array):
        raise ValueError("kernel input must be aligned and C-contiguous")
    return 0


cdef inline int real_type(cnp.ndarray array) except -1:
    """The type number of a float32 or float64 array; TypeError for any other."""
    cdef int dtype = cnp.PyArray_TYPE(array)
    if dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64:
        raise TypeError(f"kernel takes float32 or float64, got {array.dtype}")
    return dtype


cdef inline int check_same_shape(cnp.ndarray a, cnp.ndarray b) except -1:
    if not cnp.PyArray_SAMESHAPE(a, b):
        raise ValueError(
            f"kernel arrays must have one shape, got {(<object>a).shape} and {(<object>b).shape}"
        )
    return 0


cdef inline Py_ssize_t ceil_divide(Py_ssize_t x, Py_ssize_t y) noexcept nogil:
    return (x + y - 1) // y


cdef inline Py_ssize_t greatest_common_divisor(Py_ssize_t x, Py_ssize_t y) noexcept nogil:
    while y:
        x, y = y, x % y
    return x


# A parallel region costs a microsecond even with one thread, and some more to wake another. So kernels that
# have too little work for two threads call their serial loop directly: the parts below are then one.


cdef inline int threads_for(Py_ssize_t work, Py_ssize_t work_per_thread, int threads) noexcept nogil:
    """At most ``threads``, and no more than the work can feed."""
    return <int>max(1, min(<Py_ssize_t>threads, work // work_per_thread))


cdef inline Py_ssize_t share(Py_ssize_t n, int part, int parts, Py_ssize_t unit) noexcept nogil:
    """Where part ``part`` of n elements begins: at a multiple of ``unit``."""
    cdef Py_ssize_t step = unit * parts
    return min(n, ceil_divide(n, step) * unit * part)
