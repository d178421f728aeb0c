"""One step of an optimizer, in place, for all parameters of a group in one call; and the norm of gradients.

The arguments are lists with one array for each parameter. All arrays are of one dtype (float32 or float64)
and C-contiguous, and those of a parameter have its shape. The hyperparameters are doubles; what depends on
them alone is computed once, in double, and then rounded.

There is one rung, *fused*: Adam reads four arrays and writes three, about a dozen operations for 28 bytes.
Written as NumPy expressions it goes through memory some ten times more, so one loop that the compiler
vectorises is what there is to gain; nothing stays in a cache between two steps. Threads divide the elements of
all parameters together, so that twenty small ones cost little more than a large one.
"""

from cython.parallel cimport prange
from libc.math cimport pow, sqrt
from libc.stdlib cimport calloc, free
from libc.string cimport memset

include "arguments.pxi"

cdef extern from *:
    """
    #include <math.h>
    #include "vector.h"
    #define sqrt_f32 sqrtf
    #define sqrt_f64 sqrt

    /* The arrays of one parameter. */
    typedef struct {
        void *param, *state, *state2;
        const void *grad;
        ptrdiff_t first, size; /* first: how many elements the parameters before it have */
        double step_size;       /* lr / (1 - beta1^step) */
        double sqrt_correction; /* sqrt(1 - beta2^step) */
        int starts;             /* its first step */
    } Slot;

    typedef struct {
        double lr, beta1, beta2, eps, momentum;
        double shrink;    /* 1 - lr * weight_decay in AdamW: parameters are multiplied by it first */
        double l2;        /* weight_decay elsewhere: this share of the parameter is added to the gradient */
        double new_share; /* 1 - dampening */
        int nesterov;
    } Factors;

    typedef void (*slot_kernel)(const Slot *slot, ptrdiff_t begin, ptrdiff_t end, const Factors *f);
    typedef double (*slot_sum)(const void *array, ptrdiff_t begin, ptrdiff_t end);

    #define REAL float
    #define NAME(f) f##_f32
    #include "optim.h"

    #define REAL double
    #define NAME(f) f##_f64
    #include "optim.h"
    """
    ctypedef struct Slot:
        void *param
        void *state
        void *state2
        const void *grad
        Py_ssize_t first, size
        double step_size, sqrt_correction
        bint starts

    ctypedef struct Factors:
        double lr, beta1, beta2, eps, momentum, shrink, l2, new_share
        bint nesterov

    ctypedef void (*slot_kernel)(
        const Slot *slot, Py_ssize_t begin, Py_ssize_t end, const Factors *f
    ) noexcept nogil
    ctypedef double (*slot_sum)(const void *array, Py_ssize_t begin, Py_ssize_t end) noexcept nogil

    slot_kernel adam_slot_f32, sgd_slot_f32, scale_slot_f32
    slot_kernel adam_slot_f64, sgd_slot_f64, scale_slot_f64
    slot_sum sum_of_squares_f32, sum_of_squares_f64

# Elements below which it is not worth waking another thread.
cdef enum:
    WORK_PER_THREAD = 32768
    LINE = 16  # threads begin at multiples of it in a parameter: whole vectors, whole cache lines


cdef class Slots:
    """The parameters of a call, checked, and how many elements they have."""

    cdef Slot *slots
    cdef Py_ssize_t count, total
    cdef int dtype

    def __cinit__(self, list params):
        cdef cnp.ndarray param
        cdef Py_ssize_t i
        self.count, self.total = len(params), 0
        self.slots = <Slot *>calloc(max(1, self.count), sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError(f"no memory for the addresses of {self.count} parameters")
        self.dtype = real_type(params[0]) if params else cnp.NPY_FLOAT32
        for i in range(self.count):
            param = params[i]
            check_output(param, self.dtype)
            self.slots[i].param = cnp.PyArray_DATA(param)
            self.slots[i].first, self.slots[i].size = self.total, cnp.PyArray_SIZE(param)
            self.total += self.slots[i].size

    def __dealloc__(self):
        free(self.slots)

    cdef int check_length(self, list arrays) except -1:
        if len(arrays) != self.count:
            raise ValueError(f"kernel expects an entry for each of {self.count} parameters, got {len(arrays)}")
        return 0

    cdef int add_gradients(self, list params, list grads) except -1:
        cdef cnp.ndarray grad
        cdef Py_ssize_t i
        self.check_length(grads)
        for i in range(self.count):
            grad = grads[i]
            check_input(grad, self.dtype)
            check_same_shape(grad, params[i])
            self.slots[i].grad = cnp.PyArray_DATA(grad)
        return 0

    cdef void *state_data(self, cnp.ndarray state, cnp.ndarray param) except NULL:
        check_output(state, self.dtype)
        check_same_shape(state, param)
        return cnp.PyArray_DATA(state)


cdef void run_part(
    const Slot *slots, Py_ssize_t count, slot_kernel kernel, const Factors *f, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """The elements [begin, end) of all parameters, as if they were one."""
    cdef Py_ssize_t i, first, last
    for i in range(count):
        # Both cuts are rounded to a LINE of this parameter, down, but the end of its last.
        first = max(0, begin - slots[i].first) // LINE * LINE
        last = end - slots[i].first
        last = slots[i].size if last >= slots[i].size else last // LINE * LINE
        if first < last:
            kernel(&slots[i], first, last, f)


cdef run(Slots slots, slot_kernel f32, slot_kernel f64, const Factors *f, int threads):
    cdef slot_kernel kernel = f32 if slots.dtype == cnp.NPY_FLOAT32 else f64
    cdef const Slot *data = slots.slots
    cdef Py_ssize_t count = slots.count, total = slots.total
    cdef int parts = threads_for(total, WORK_PER_THREAD, threads), part
    with nogil:
        if parts == 1:
            run_part(data, count, kernel, f, 0, total)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                run_part(
                    data, count, kernel, f, share(total, part, parts, LINE), share(total, part + 1, parts, LINE)
                )


def fits(list params, *columns):
    """Whether the kernels take these lists of arrays: contiguous, writeable, of one floating dtype and fitting
    shapes. Entries of ``columns`` may be None."""
    cdef cnp.ndarray param, array
    cdef int dtype = cnp.PyArray_TYPE(params[0])
    cdef Py_ssize_t i
    cdef list column
    if dtype != cnp.NPY_FLOAT32 and dtype != cnp.NPY_FLOAT64:
        return False
    for param in params:
        if cnp.PyArray_TYPE(param) != dtype or not cnp.PyArray_ISCARRAY(param):
            return False
    for column in columns:
        for i in range(len(params)):
            array = column[i]
            if array is None:
                continue
            if cnp.PyArray_TYPE(array) != dtype or not cnp.PyArray_ISCARRAY_RO(array):
                return False
            if not cnp.PyArray_SAMESHAPE(array, params[i]):
                return False
    return True


def adam_step(
    list params, list grads, list exp_avgs, list exp_avg_sqs, list steps, double lr, double beta1,
    double beta2, double eps, double weight_decay, bint decoupled, int threads,
):
    """Adam (https://arxiv.org/abs/1412.6980), or AdamW if ``decoupled`` (https://arxiv.org/abs/1711.05101).

    ``params``, ``exp_avgs`` and ``exp_avg_sqs`` are updated in place; each of ``steps`` counts from 1. The
    formula is PyTorch's: eps is added to the bias-corrected square root.
    """
    cdef Slots slots = Slots(params)
    slots.add_gradients(params, grads)
    slots.check_length(exp_avgs)
    slots.check_length(exp_avg_sqs)
    slots.check_length(steps)
    cdef Py_ssize_t i, step
    for i in range(slots.count):
        slots.slots[i].state = slots.state_data(exp_avgs[i], params[i])
        slots.slots[i].state2 = slots.state_data(exp_avg_sqs[i], params[i])
        step = steps[i]
        if step < 1:
            raise ValueError(f"adam_step counts steps from 1, got {step}")
        slots.slots[i].step_size = lr / (1 - pow(beta1, step))
        slots.slots[i].sqrt_correction = sqrt(1 - pow(beta2, step))
    cdef Factors f
    memset(&f, 0, sizeof(f))
    f.beta1, f.beta2, f.eps = beta1, beta2, eps
    f.shrink = 1 - lr * weight_decay if decoupled else 1
    f.l2 = 0 if decoupled else weight_decay
    run(slots, adam_slot_f32, adam_slot_f64, &f, threads)


def sgd_step(
    list params, list grads, list momentum_buffers, list first_steps, double lr, double momentum,
    double dampening, double weight_decay, bint nesterov, int threads,
):
    """Stochastic gradient descent with momentum, PyTorch's formula, in place.

    Without momentum the ``momentum_buffers`` are None. At a parameter's first step its buffer becomes the
    gradient itself, whatever it held and whatever ``dampening`` is.
    """
    cdef Slots slots = Slots(params)
    slots.add_gradients(params, grads)
    slots.check_length(momentum_buffers)
    slots.check_length(first_steps)
    cdef Py_ssize_t i
    for i in range(slots.count):
        if momentum_buffers[i] is not None:
            slots.slots[i].state = slots.state_data(momentum_buffers[i], params[i])
            slots.slots[i].starts = first_steps[i]
    cdef Factors f
    memset(&f, 0, sizeof(f))
    f.lr, f.momentum, f.l2, f.nesterov = lr, momentum, weight_decay, nesterov
    f.new_share = 1 - dampening
    run(slots, sgd_slot_f32, sgd_slot_f64, &f, threads)


def scale(list arrays, double factor, int threads):
    """All ``arrays`` times ``factor``, in place."""
    cdef Slots slots = Slots(arrays)
    cdef Factors f
    memset(&f, 0, sizeof(f))
    f.lr = factor
    run(slots, scale_slot_f32, scale_slot_f64, &f, threads)


cdef enum:
    MAX_PARTS = 64


def norm(list arrays, int threads):
    """The square root of the sum of all squares in ``arrays``, which is taken in double."""
    cdef Slots slots = Slots(arrays)
    cdef slot_sum kernel = sum_of_squares_f32 if slots.dtype == cnp.NPY_FLOAT32 else sum_of_squares_f64
    cdef const Slot *data = slots.slots
    cdef Py_ssize_t count = slots.count, total = slots.total
    cdef int parts = min(threads_for(total, WORK_PER_THREAD, threads), <int>MAX_PARTS), part
    cdef double[MAX_PARTS] sums
    cdef double sum_of_all = 0
    with nogil:
        if parts == 1:
            sums[0] = sum_part(data, count, kernel, 0, total)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                sums[part] = sum_part(
                    data, count, kernel, share(total, part, parts, LINE), share(total, part + 1, parts, LINE)
                )
    for part in range(parts):
        sum_of_all += sums[part]
    return sqrt(sum_of_all)


cdef double sum_part(
    const Slot *slots, Py_ssize_t count, slot_sum kernel, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    cdef Py_ssize_t i, first, last
    cdef double sum_of_part = 0
    for i in range(count):
        first, last = max(0, begin - slots[i].first), min(slots[i].size, end - slots[i].first)
        if first < last:
            sum_of_part += kernel(slots[i].param, first, last)
    return sum_of_part
