"""Arithmetic on small arrays, without NumPy's machinery.

To add two arrays of four elements takes NumPy 0.5 to 1 us: it looks for a loop that fits the dtypes, asks how
errors are to be handled, sets up an iterator, and in the end asks whether an error occurred. Here the only
question is whether the arrays are plain: float32 or float64, of one dtype and shape, C-contiguous, of at most
``LIMIT`` elements; one of two may be a Python number. Then a loop runs, and no floating-point flag is looked
at. The results are NumPy's, to the bit: each element is one rounded operation.

:func:`add`, :func:`sub`, :func:`mul`, :func:`div` and :func:`neg` return None where that is not so.
:func:`total`, :func:`product` and :func:`negative` then do what the operators do, for tensors too.
"""

cimport numpy as cnp

cnp.import_array()

ctypedef fused real:
    float
    double

cdef enum:
    LIMIT = 1024
    LIMIT_PRODUCT = 512  # multiply-adds of a product of matrices: with more, the kernels are quicker
    ADD, SUB, MUL, DIV, NEG, RELU
    EXACT = 16777216  # 2**24: integers up to here are float32 numbers
    MOST_DIMENSIONS = 64  # of a NumPy array


cdef inline bint is_plain(cnp.ndarray array) noexcept:
    """Whether the loops below take it."""
    cdef int dtype = cnp.PyArray_TYPE(array)
    return (
        (dtype == cnp.NPY_FLOAT32 or dtype == cnp.NPY_FLOAT64)
        and cnp.PyArray_ISCARRAY_RO(array)
        and cnp.PyArray_SIZE(array) <= LIMIT
    )


cdef inline bint are_alike(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether both are plain, and of one dtype and shape."""
    return (
        is_plain(a)
        and cnp.PyArray_TYPE(b) == cnp.PyArray_TYPE(a)
        and cnp.PyArray_ISCARRAY_RO(b)
        and cnp.PyArray_SAMESHAPE(a, b)
    )


cdef inline cnp.ndarray empty_like(cnp.ndarray array):
    return cnp.PyArray_SimpleNew(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array))


cdef inline void compute(
    real *out, const real *x, const real *y, Py_ssize_t n, Py_ssize_t step_x, Py_ssize_t step_y, int operation
) noexcept nogil:
    """out[i] = x[i step_x] (operation) y[i step_y]: a step is 1, or 0 for a number."""
    cdef Py_ssize_t i
    if operation == ADD:
        for i in range(n):
            out[i] = x[i * step_x] + y[i * step_y]
    elif operation == SUB:
        for i in range(n):
            out[i] = x[i * step_x] - y[i * step_y]
    elif operation == MUL:
        for i in range(n):
            out[i] = x[i * step_x] * y[i * step_y]
    else:
        for i in range(n):
            out[i] = x[i * step_x] / y[i * step_y]


cdef inline bint read_number(object value, double *number) noexcept:
    """Whether ``value`` is a Python number that float32 and float64 arithmetic take as it is."""
    if type(value) is float:
        number[0] = <double>value
        return True
    if type(value) is int and -EXACT <= value <= EXACT:
        number[0] = <double><long>value
        return True
    return False


cdef binary(object x, object y, int operation):
    cdef cnp.ndarray a, out
    cdef double x_number = 0, y_number = 0
    cdef float x_float, y_float
    cdef void *x_data
    cdef void *y_data
    cdef bint x_is_array = type(x) is cnp.ndarray, y_is_array = type(y) is cnp.ndarray
    if x_is_array:
        a = <cnp.ndarray>x
        if y_is_array:
            if not are_alike(a, <cnp.ndarray>y):
                return None
        elif not is_plain(a) or not read_number(y, &y_number):
            return None
    elif y_is_array:
        a = <cnp.ndarray>y
        if not is_plain(a) or not read_number(x, &x_number):
            return None
    else:
        return None

    out = empty_like(a)
    x_float, y_float = <float>x_number, <float>y_number
    cdef bint single = cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32
    if x_is_array:
        x_data = cnp.PyArray_DATA(<cnp.ndarray>x)
    else:
        x_data = <void *>&x_float if single else <void *>&x_number
    if y_is_array:
        y_data = cnp.PyArray_DATA(<cnp.ndarray>y)
    else:
        y_data = <void *>&y_float if single else <void *>&y_number
    cdef Py_ssize_t n = cnp.PyArray_SIZE(a)
    if single:
        compute[float](
            <float *>cnp.PyArray_DATA(out), <float *>x_data, <float *>y_data, n, x_is_array, y_is_array,
            operation,
        )
    else:
        compute[double](
            <double *>cnp.PyArray_DATA(out), <double *>x_data, <double *>y_data, n, x_is_array, y_is_array,
            operation,
        )
    return out


cdef inline void negate(real *out, const real *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = -x[i]


cdef inline void rectify(real *out, const real *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = 0 if x[i] < 0 else x[i]  # NaN stays NaN


cdef unary(object x, int operation):
    if type(x) is not cnp.ndarray or not is_plain(<cnp.ndarray>x):
        return None
    cdef cnp.ndarray a = <cnp.ndarray>x, out = empty_like(a)
    cdef void *result = cnp.PyArray_DATA(out)
    cdef void *data = cnp.PyArray_DATA(a)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(a)
    if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32:
        if operation == NEG:
            negate(<float *>result, <float *>data, n)
        else:
            rectify(<float *>result, <float *>data, n)
    elif operation == NEG:
        negate(<double *>result, <double *>data, n)
    else:
        rectify(<double *>result, <double *>data, n)
    return out


cdef inline void pass_positive(real *out, const real *g, const real *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = 0 if y[i] <= 0 else g[i]


cdef inline void multiply(
    real *out, cnp.ndarray a, cnp.ndarray b, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K
) noexcept:
    """out (M, N) = a (M, K) @ b (K, N): a row of out is the sum of K rows of b, each times a number."""
    cdef const char *a_row = <const char *>cnp.PyArray_DATA(a)
    cdef const char *b_row
    cdef Py_ssize_t a_step = cnp.PyArray_STRIDE(a, 1), b_step = cnp.PyArray_STRIDE(b, 1)
    cdef Py_ssize_t i, j, k
    cdef real factor
    for i in range(M):
        for j in range(N):
            out[j] = 0
        b_row = <const char *>cnp.PyArray_DATA(b)
        for k in range(K):
            factor = (<const real *>(a_row + k * a_step))[0]
            for j in range(N):
                out[j] += factor * (<const real *>(b_row + j * b_step))[0]
            b_row += cnp.PyArray_STRIDE(b, 0)
        out += N
        a_row += cnp.PyArray_STRIDE(a, 0)


def add(x, y):
    """x + y, or None if the arrays are not small and plain."""
    return binary(x, y, ADD)


def sub(x, y):
    """x - y, or None if the arrays are not small and plain."""
    return binary(x, y, SUB)


def mul(x, y):
    """x y, or None if the arrays are not small and plain."""
    return binary(x, y, MUL)


def div(x, y):
    """x / y, or None if the arrays are not small and plain."""
    return binary(x, y, DIV)


def neg(x):
    """-x, or None if the array is not small and plain."""
    return unary(x, NEG)


def relu(x):
    """max(x, 0), or None if the array is not small and plain."""
    return unary(x, RELU)


def relu_grad(g, y):
    """0 where y <= 0, else g; None if the arrays are not small, plain and alike."""
    if type(g) is not cnp.ndarray or type(y) is not cnp.ndarray or not are_alike(g, y):
        return None
    cdef cnp.ndarray out = empty_like(<cnp.ndarray>g)
    cdef void *result = cnp.PyArray_DATA(out)
    cdef void *g_data = cnp.PyArray_DATA(<cnp.ndarray>g)
    cdef void *y_data = cnp.PyArray_DATA(<cnp.ndarray>y)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    if cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT32:
        pass_positive(<float *>result, <float *>g_data, <float *>y_data, n)
    else:
        pass_positive(<double *>result, <double *>g_data, <double *>y_data, n)
    return out


def matmul(x, y):
    """x (M, K) @ y (K, N), whose strides may be any; None if they are not small matrices of one dtype."""
    if type(x) is not cnp.ndarray or type(y) is not cnp.ndarray:
        return None
    cdef cnp.ndarray a = <cnp.ndarray>x, b = <cnp.ndarray>y, out
    cdef int dtype = cnp.PyArray_TYPE(a)
    if (
        (dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64)
        or cnp.PyArray_TYPE(b) != dtype
        or cnp.PyArray_NDIM(a) != 2
        or cnp.PyArray_NDIM(b) != 2
        or not cnp.PyArray_ISBEHAVED_RO(a)
        or not cnp.PyArray_ISBEHAVED_RO(b)
    ):
        return None
    cdef cnp.npy_intp M = cnp.PyArray_DIM(a, 0), K = cnp.PyArray_DIM(a, 1), N = cnp.PyArray_DIM(b, 1)
    if cnp.PyArray_DIM(b, 0) != K or max(M, N, K) > LIMIT_PRODUCT or M * N * K > LIMIT_PRODUCT:
        return None
    cdef cnp.npy_intp[2] shape
    shape[0], shape[1] = M, N
    out = cnp.PyArray_SimpleNew(2, shape, dtype)
    if dtype == cnp.NPY_FLOAT32:
        multiply(<float *>cnp.PyArray_DATA(out), a, b, M, N, K)
    else:
        multiply(<double *>cnp.PyArray_DATA(out), a, b, M, N, K)
    return out


def stretch(x, tuple shape):
    """x broadcast to ``shape``, a read-only view as of ``np.broadcast_to``, which takes 15 times as long; None
    if it is no float32 or float64 array in native byte order, or does not broadcast."""
    if type(x) is not cnp.ndarray:
        return None
    cdef cnp.ndarray array = <cnp.ndarray>x, view
    cdef int dtype = cnp.PyArray_TYPE(array), ndim = <int>len(shape), d, own
    cdef cnp.npy_intp sizes[MOST_DIMENSIONS]
    cdef cnp.npy_intp strides[MOST_DIMENSIONS]
    if (
        (dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64)
        or not cnp.PyArray_ISNOTSWAPPED(array)
        or not cnp.PyArray_NDIM(array) <= ndim <= MOST_DIMENSIONS
    ):
        return None
    for d in range(ndim):
        own = d - ndim + cnp.PyArray_NDIM(array)
        sizes[d], strides[d] = shape[d], 0
        if sizes[d] < 0:
            return None
        if own >= 0 and cnp.PyArray_DIM(array, own) != 1:
            if cnp.PyArray_DIM(array, own) != sizes[d]:
                return None
            strides[d] = cnp.PyArray_STRIDE(array, own)
    view = cnp.PyArray_New(cnp.ndarray, ndim, sizes, dtype, strides, cnp.PyArray_DATA(array), 0, 0, None)
    cnp.set_array_base(view, array)
    return view


def total(x, y):
    """x + y"""
    result = binary(x, y, ADD)
    return x + y if result is None else result


def product(x, y):
    """x y"""
    result = binary(x, y, MUL)
    return x * y if result is None else result


def negative(x):
    """-x"""
    result = neg(x)
    return -x if result is None else result
