"""Elementwise functions and their gradients.

Each is called as ``function(out, *inputs, threads)``. ``out`` is C-contiguous; the inputs are arrays of any
strides that broadcast to its shape, or numbers (always, where they are called z and w below). All are float32,
or all float64, but for the results of comparisons and the condition of ``where``, which are bools. ``out`` may
be one of the inputs. A gradient multiplies the gradient of the result by the derivative, in one pass;
``relu_grad``, ``abs_grad`` and so on take it from the saved result or input, whichever is said there.

There is one rung, *vectorized*: vectors along the innermost dimension (``elementwise.h``, ``vector_math.h``,
which states the errors of exp and the like), views read tile by tile (``tiles.pxi``), and threads.
Arithmetic intensity: from one operation (an addition, for 12 bytes) to about fifty (GELU, for 8 bytes): the
former runs at the speed of memory, the latter gains from polynomials in vector registers.
"""

from cython.parallel cimport prange

from minigrad.kernels.cpu.memory import empty

include "arguments.pxi"
include "tiles.pxi"

cdef extern from *:
    """
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("schedule-insns") /* interleaves the two vectors of COSTLY functions */
    #endif

    #include "vector_math.h"
    #define REAL float
    #define VECTOR f32v
    #define LANES F32_LANES
    #define NAME(f) f##_f32
    #include "elementwise.h"

    #define REAL double
    #define VECTOR f64v
    #define LANES F64_LANES
    #define NAME(f) f##_f64
    #include "elementwise.h"
    """
    function neg_array_f32, abs_array_f32, square_array_f32, cube_array_f32, sqrt_array_f32, relu_array_f32
    function add_array_f32, sub_array_f32, mul_array_f32, div_array_f32, maximum_array_f32
    function minimum_array_f32, clamp_array_f32, leaky_relu_array_f32, where_array_f32, eq_array_f32
    function ne_array_f32, lt_array_f32, le_array_f32, gt_array_f32, ge_array_f32, exp_array_f32
    function erf_array_f32, sigmoid_array_f32, tanh_array_f32, silu_array_f32, gelu_array_f32
    function gelu_tanh_array_f32, relu_grad_array_f32, abs_grad_array_f32
    function sigmoid_grad_array_f32, tanh_grad_array_f32, leaky_relu_grad_array_f32, clamp_grad_array_f32
    function larger_share_array_f32, divisor_grad_array_f32, silu_grad_array_f32, gelu_grad_array_f32
    function gelu_tanh_grad_array_f32, log_array_f32, sin_array_f32, cos_array_f32
    function neg_array_f64, abs_array_f64, square_array_f64, cube_array_f64, sqrt_array_f64, relu_array_f64
    function add_array_f64, sub_array_f64, mul_array_f64, div_array_f64, maximum_array_f64
    function minimum_array_f64, clamp_array_f64, leaky_relu_array_f64, where_array_f64, eq_array_f64
    function ne_array_f64, lt_array_f64, le_array_f64, gt_array_f64, ge_array_f64, exp_array_f64
    function erf_array_f64, sigmoid_array_f64, tanh_array_f64, silu_array_f64, gelu_array_f64
    function gelu_tanh_array_f64, relu_grad_array_f64, abs_grad_array_f64
    function sigmoid_grad_array_f64, tanh_grad_array_f64, leaky_relu_grad_array_f64, clamp_grad_array_f64
    function larger_share_array_f64, divisor_grad_array_f64, silu_grad_array_f64, gelu_grad_array_f64
    function gelu_tanh_grad_array_f64, log_array_f64, sin_array_f64, cos_array_f64
    void gelu_and_slope_array_f32(float *y, float *slope, const float *x, Py_ssize_t n) nogil
    void gelu_and_slope_array_f64(double *y, double *slope, const double *x, Py_ssize_t n) nogil

# Elements below which another thread costs more than it saves: a few microseconds of work. A cheap function
# is bound by memory, a costly one by its polynomial.
cdef enum:
    CHEAP = 32768
    COSTLY = 16384
    LARGE = 32768  # results of fewer elements NumPy's loops, which need no setting up, have done sooner
    SMALL = 1024  # the most elements that ``small`` takes
    FEW = 1024  # below, those of cheap functions have so even where nothing but ``new`` stands before a kernel

cdef object BOOL = cnp.PyArray_DescrFromType(cnp.NPY_BOOL)


cdef inline bint is_real(cnp.ndarray array, int dtype) noexcept:
    """Whether it holds float32 or float64 numbers, of type number ``dtype``, that can be read in place."""
    return (
        (dtype == cnp.NPY_FLOAT32 or dtype == cnp.NPY_FLOAT64)
        and cnp.PyArray_TYPE(array) == dtype
        and cnp.PyArray_ISBEHAVED_RO(array)
    )


cdef inline bint stretch(cnp.npy_intp *sizes, int *ndim, cnp.ndarray array) noexcept:
    """Lets ``sizes``, the innermost first, take in an array; False if it does not broadcast with them."""
    cdef int d, own = cnp.PyArray_NDIM(array)
    cdef cnp.npy_intp size
    for d in range(own):
        size = cnp.PyArray_DIM(array, own - 1 - d)
        if d >= ndim[0] or sizes[d] == 1:
            sizes[d] = size
        elif size != 1 and size != sizes[d]:
            return False
    ndim[0] = max(ndim[0], own)
    return True


def is_large(*inputs, **attributes):
    """Whether the arrays among the inputs broadcast to at least ``LARGE`` elements."""
    cdef Py_ssize_t size = 1, n
    cdef int d, ndim = 0
    cdef cnp.ndarray array
    for x in inputs:
        if isinstance(x, cnp.ndarray):
            if cnp.PyArray_SIZE(x) >= LARGE:
                return True
            ndim = max(ndim, cnp.PyArray_NDIM(x))
    for d in range(1, ndim + 1):
        n = 1
        for x in inputs:
            if isinstance(x, cnp.ndarray):
                array = x
                if d <= cnp.PyArray_NDIM(array):
                    n = max(n, cnp.PyArray_DIM(array, cnp.PyArray_NDIM(array) - d))
        size *= n
    return size >= LARGE


def copy(cnp.ndarray out, cnp.ndarray x, int threads):
    """A copy of x, which is broadcast, in C order; any type of 1, 4 or 8 bytes."""
    check_output(out, cnp.PyArray_TYPE(x))
    if cnp.PyArray_ITEMSIZE(x) not in (1, 4, 8) or x.dtype.kind not in "fiub":
        raise TypeError(f"copy takes numbers of 1, 4 or 8 bytes, got {x.dtype}")
    if not cnp.PyArray_ISBEHAVED_RO(x):
        raise ValueError("kernel input must be aligned and in native byte order")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out), tiles
    if n == 0:
        return
    cdef Tiling tiling
    cdef int part, parts = threads_for(n, CHEAP, threads)
    tiling.inputs = 1
    add_operand(&tiling, 0, out, out)
    add_operand(&tiling, 1, x, out)
    merge_dims(&tiling, out)
    choose_tile(&tiling)
    tiles = tiling.tiles
    parts = <int>min(<Py_ssize_t>parts, tiles)
    with nogil:
        if parts == 1:
            copy_tiles(&tiling, 0, tiles)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                copy_tiles(&tiling, share(tiles, part, parts, 1), share(tiles, part + 1, parts, 1))


cdef class Function:
    """A function of each element: see the module's text."""

    cdef function f32, f64
    cdef int arity, work_per_thread
    cdef int least  # elements that ``new`` asks for
    cdef int arrays  # the inputs after so many are numbers
    cdef bint takes_number  # as one of two inputs, without a copy
    cdef bint returns_bool, takes_bool  # the result of a comparison; the first input of ``where``
    cdef readonly str __name__, __doc__

    def __call__(self, cnp.ndarray out, *arguments):
        if len(arguments) != self.arity + 1:
            raise TypeError(f"{self.__name__} takes out, {self.arity} inputs and threads")
        self.compute(out, arguments)

    def small(self, *inputs):
        """The function of a few numbers as a new array, without what any other inputs need; None if they are not
        contiguous arrays of floats, of one dtype and shape and at most ``SMALL`` elements."""
        cdef const void *data[MAX_INPUTS]
        cdef cnp.ndarray array, first = None, out
        cdef int dtype = 0, k
        if self.takes_bool or self.arrays < self.arity or len(inputs) != self.arity:
            return None
        for k in range(self.arity):
            if type(inputs[k]) is not cnp.ndarray:
                return None
            array = <cnp.ndarray>inputs[k]
            if k == 0:
                first, dtype = array, cnp.PyArray_TYPE(array)
            if (not is_real(array, dtype) or not cnp.PyArray_IS_C_CONTIGUOUS(array)
                    or not cnp.PyArray_SAMESHAPE(array, first)):
                return None
            data[k] = cnp.PyArray_DATA(array)
        if cnp.PyArray_SIZE(first) > SMALL:
            return None
        out = cnp.PyArray_SimpleNew(
            cnp.PyArray_NDIM(first), cnp.PyArray_DIMS(first), cnp.NPY_BOOL if self.returns_bool else dtype
        )
        (self.f32 if dtype == cnp.NPY_FLOAT32 else self.f64)(cnp.PyArray_DATA(out), data, 0, cnp.PyArray_SIZE(first))
        return out

    def new(self, *arguments):
        """The function of inputs and threads as a new array; None if the inputs are not floats of one dtype,
        arrays or numbers, or if a cheap one would have fewer than ``FEW`` elements."""
        cdef cnp.npy_intp sizes[MAX_DIMS]
        cdef cnp.ndarray first = None
        cdef int k, ndim = 0
        cdef Py_ssize_t n = 1
        if self.takes_bool or len(arguments) != self.arity + 1:
            return None
        for k in range(self.arity):
            x = arguments[k]
            if k < self.arrays and type(x) is cnp.ndarray:
                if first is None:
                    first = <cnp.ndarray>x
                if not is_real(<cnp.ndarray>x, cnp.PyArray_TYPE(first)) or not stretch(sizes, &ndim, x):
                    return None
            elif type(x) is not float and type(x) is not int:
                return None
        for k in range(ndim):
            n *= sizes[k]
        if first is None or n < self.least:
            return None
        shape = tuple([sizes[ndim - 1 - k] for k in range(ndim)])
        cdef cnp.ndarray out = empty(shape, BOOL if self.returns_bool else first.dtype)
        self.compute(out, arguments)
        return out

    cdef int compute(self, cnp.ndarray out, tuple arguments) except -1:
        cdef int dtype = self.common_dtype(out, arguments)
        check_output(out, cnp.NPY_BOOL if self.returns_bool else dtype)
        if cnp.PyArray_SIZE(out) == 0:
            return 0
        cdef float float_numbers[MAX_INPUTS]
        cdef double numbers[MAX_INPUTS]
        cdef Tiling tiling
        cdef int k
        tiling.inputs, tiling.arrays, tiling.takes_number = self.arity, self.arrays, self.takes_number
        add_operand(&tiling, 0, out, out)
        for k in range(self.arity):
            if k < self.arrays and isinstance(arguments[k], cnp.ndarray):
                self.check_array(arguments[k], k, dtype)
                add_operand(&tiling, 1 + k, arguments[k], out)
            elif self.takes_bool and k == 0:
                raise TypeError(f"{self.__name__}: the first input must be an array of bools")
            else:
                numbers[k] = arguments[k]
                float_numbers[k] = <float>numbers[k]
                if dtype == cnp.NPY_FLOAT32:
                    add_number(&tiling, 1 + k, &float_numbers[k], 4, cnp.PyArray_NDIM(out))
                else:
                    add_number(&tiling, 1 + k, &numbers[k], 8, cnp.PyArray_NDIM(out))
        merge_dims(&tiling, out)
        choose_tile(&tiling)
        self.run(&tiling, dtype, cnp.PyArray_SIZE(out), arguments[self.arity])
        return 0

    cdef int common_dtype(self, cnp.ndarray out, tuple arguments) except -1:
        """The type number of the floating inputs."""
        cdef int k
        for k in range(self.takes_bool, self.arity):
            if isinstance(arguments[k], cnp.ndarray):
                return real_type(arguments[k])
        return real_type(out)

    cdef int check_array(self, cnp.ndarray array, int k, int dtype) except -1:
        cdef int expected = cnp.NPY_BOOL if self.takes_bool and k == 0 else dtype
        if cnp.PyArray_TYPE(array) != expected:
            raise TypeError(f"kernel input has dtype {array.dtype}, which does not fit its other arguments")
        if not cnp.PyArray_ISBEHAVED_RO(array):
            raise ValueError("kernel input must be aligned and in native byte order")
        return 0

    cdef void run(self, Tiling *tiling, int dtype, Py_ssize_t n, int threads):
        cdef function f = self.f32 if dtype == cnp.NPY_FLOAT32 else self.f64
        cdef int part, parts = threads_for(n, self.work_per_thread, threads)
        cdef Py_ssize_t tiles = tiling.tiles
        parts = <int>min(<Py_ssize_t>parts, tiles)
        with nogil:
            if parts == 1:
                run_tiles(tiling, f, 0, tiles)
            else:
                for part in prange(parts, num_threads=parts, schedule="static"):
                    run_tiles(tiling, f, share(tiles, part, parts, 1), share(tiles, part + 1, parts, 1))


cdef Function cheap(str name, int arity, function f32, function f64, str doc):
    """A function that is bound by memory."""
    cdef Function made = Function.__new__(Function)
    made.__name__, made.__doc__, made.f32, made.f64 = name, doc, f32, f64
    made.arity = made.arrays = arity
    made.work_per_thread, made.least, made.takes_number = CHEAP, FEW, arity == 2
    return made


cdef Function costly(str name, int arity, function f32, function f64, str doc):
    """A function that is bound by arithmetic."""
    cdef Function made = cheap(name, arity, f32, f64, doc)
    made.work_per_thread, made.least, made.takes_number = COSTLY, 0, False
    return made


cdef Function limited(str name, int arrays, function f32, function f64, str doc):
    """A function of some arrays and the numbers z and w."""
    cdef Function made = cheap(name, arrays + 2, f32, f64, doc)
    made.arrays = arrays
    return made


cdef Function comparison(str name, function f32, function f64, str doc):
    cdef Function made = cheap(name, 2, f32, f64, doc)
    made.returns_bool = True
    return made


neg = cheap("neg", 1, neg_array_f32, neg_array_f64, "-x")
abs = cheap("abs", 1, abs_array_f32, abs_array_f64, "The magnitude of x.")
square = cheap("square", 1, square_array_f32, square_array_f64, "x x")
cube = cheap("cube", 1, cube_array_f32, cube_array_f64, "x x x")
sqrt = cheap("sqrt", 1, sqrt_array_f32, sqrt_array_f64, "The square root of x.")
relu = cheap("relu", 1, relu_array_f32, relu_array_f64, "max(x, 0); NaN stays NaN.")
add = cheap("add", 2, add_array_f32, add_array_f64, "x + y")
sub = cheap("sub", 2, sub_array_f32, sub_array_f64, "x - y")
mul = cheap("mul", 2, mul_array_f32, mul_array_f64, "x y")
div = cheap("div", 2, div_array_f32, div_array_f64, "x / y")
maximum = cheap("maximum", 2, maximum_array_f32, maximum_array_f64, "The larger of x and y; NaN if one is.")
minimum = cheap(
    "minimum", 2, minimum_array_f32, minimum_array_f64,
    "The smaller of x and y; NaN if one is.",
)
clamp = limited("clamp", 1, clamp_array_f32, clamp_array_f64, "x limited to [z, w]; NaN stays NaN.")
leaky_relu = limited(
    "leaky_relu", 1, leaky_relu_array_f32, leaky_relu_array_f64,
    "x w where x > 0, else x z.",
)
where = cheap("where", 3, where_array_f32, where_array_f64, "y where x (bools) is true, else z.")
(<Function>where).takes_bool = True
eq = comparison("eq", eq_array_f32, eq_array_f64, "x == y")
ne = comparison("ne", ne_array_f32, ne_array_f64, "x != y")
lt = comparison("lt", lt_array_f32, lt_array_f64, "x < y")
le = comparison("le", le_array_f32, le_array_f64, "x <= y")
gt = comparison("gt", gt_array_f32, gt_array_f64, "x > y")
ge = comparison("ge", ge_array_f32, ge_array_f64, "x >= y")
exp = costly("exp", 1, exp_array_f32, exp_array_f64, "e to the power of x.")
log = costly(
    "log", 1, log_array_f32, log_array_f64,
    "The natural logarithm; -infinity of 0, NaN of negative numbers.",
)
sin = costly("sin", 1, sin_array_f32, sin_array_f64, "The sine of an angle in radians.")
cos = costly("cos", 1, cos_array_f32, cos_array_f64, "The cosine of an angle in radians.")
erf = costly(
    "erf", 1, erf_array_f32, erf_array_f64,
    "The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.",
)
sigmoid = costly("sigmoid", 1, sigmoid_array_f32, sigmoid_array_f64, "1 / (1 + exp(-x)), without overflow.")
tanh = costly("tanh", 1, tanh_array_f32, tanh_array_f64, "The hyperbolic tangent.")
silu = costly("silu", 1, silu_array_f32, silu_array_f64, "x sigmoid(x).")
gelu = costly(
    "gelu", 1, gelu_array_f32, gelu_array_f64,
    "x Phi(x), Phi being the normal distribution function; far out on the left it keeps its digits.",
)
gelu_tanh = costly(
    "gelu_tanh", 1, gelu_tanh_array_f32, gelu_tanh_array_f64,
    "GELU by the approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).",
)
relu_grad = cheap(
    "relu_grad", 2, relu_grad_array_f32, relu_grad_array_f64,
    "0 where y <= 0, else x; y is relu's result.",
)
abs_grad = cheap("abs_grad", 2, abs_grad_array_f32, abs_grad_array_f64, "x sign(y); y is abs's input.")
sigmoid_grad = cheap(
    "sigmoid_grad", 2, sigmoid_grad_array_f32, sigmoid_grad_array_f64,
    "x y (1 - y); y is sigmoid's result.",
)
tanh_grad = cheap(
    "tanh_grad", 2, tanh_grad_array_f32, tanh_grad_array_f64,
    "x (1 - y^2); y is tanh's result.",
)
leaky_relu_grad = limited(
    "leaky_relu_grad", 2, leaky_relu_grad_array_f32, leaky_relu_grad_array_f64,
    "x w where y > 0, else x z; y is leaky_relu's input.",
)
clamp_grad = limited(
    "clamp_grad", 2, clamp_grad_array_f32, clamp_grad_array_f64,
    "x where z <= y <= w, else 0; y is clamp's input.",
)
larger_share = cheap(
    "larger_share", 3, larger_share_array_f32, larger_share_array_f64,
    "x where y > z, x / 2 where they are equal, else 0.",
)
divisor_grad = cheap(
    "divisor_grad", 3, divisor_grad_array_f32, divisor_grad_array_f64,
    "-x y / z^2, the gradient of y / z for z.",
)
silu_grad = costly(
    "silu_grad", 2, silu_grad_array_f32, silu_grad_array_f64,
    "x (s + y s (1 - s)), with s = sigmoid(y).",
)
gelu_grad = costly(
    "gelu_grad", 2, gelu_grad_array_f32, gelu_grad_array_f64,
    "x (Phi(y) + y phi(y)), with the normal distribution function and density.",
)
gelu_tanh_grad = costly(
    "gelu_tanh_grad", 2, gelu_tanh_grad_array_f32, gelu_tanh_grad_array_f64,
    "x times the derivative of gelu_tanh at y.",
)


def gelu_and_slope(cnp.ndarray out not None, cnp.ndarray slope not None, cnp.ndarray x not None, int threads):
    """gelu, and to ``slope`` its derivative, which costs little beside it; all C-contiguous and of one shape."""
    cdef int dtype = real_type(x), part
    check_input(x, dtype)
    for result in (out, slope):
        check_output(result, dtype)
        check_same_shape(result, x)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), line = 64 // cnp.PyArray_ITEMSIZE(x)
    cdef char *ys = <char *> cnp.PyArray_DATA(out)
    cdef char *slopes = <char *> cnp.PyArray_DATA(slope)
    cdef char *xs = <char *> cnp.PyArray_DATA(x)
    cdef int parts = threads_for(n, COSTLY, threads)
    with nogil:
        if parts == 1:
            run_gelu_and_slope(dtype, ys, slopes, xs, 0, n)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                run_gelu_and_slope(dtype, ys, slopes, xs, share(n, part, parts, line),
                                   share(n, part + 1, parts, line))


cdef inline void run_gelu_and_slope(int dtype, char *y, char *slope, const char *x, Py_ssize_t begin,
                                    Py_ssize_t end) noexcept nogil:
    if dtype == cnp.NPY_FLOAT32:
        gelu_and_slope_array_f32(<float *> y + begin, <float *> slope + begin, <const float *> x + begin, end - begin)
    else:
        gelu_and_slope_array_f64(<double *> y + begin, <double *> slope + begin, <const double *> x + begin,
                                 end - begin)
