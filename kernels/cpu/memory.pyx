"""Memory for NumPy arrays on the CPU, from the caching allocator of ``caching_allocator.h``.

It computes nothing and has no levels: like ``cpuid`` it exists once, whatever the instruction set. There are
two ways to its memory: :func:`empty` makes an array in it; and inside of :func:`numpy_allocates_here` NumPy
takes the memory of its results from it, through its data-memory handler (NEP 49). Either way the array owns
its data and knows which allocator to return it to; it is an array like any other, and may outlive everything.

Outside of that context NumPy's own allocation is as it was.

The environment variable ``MINIGRAD_NO_CPU_MEMORY_CACHING=1`` turns the cache off, for tools that watch each
block (valgrind, AddressSanitizer): every block is then allocated by the C library and freed at once.
"""

import os

import numpy as np
from numpy._core._exceptions import _ArrayMemoryError as NumpyMemoryError

cimport numpy as cnp
from libc.stdint cimport SIZE_MAX, int64_t
from libc.string cimport memset, strcpy

from minigrad.kernels.errors import OutOfMemoryError

cnp.import_array()

cdef extern from "caching_allocator.h" nogil:
    ctypedef struct MemoryStats:
        size_t allocated, most_allocated, reserved, most_reserved
        size_t allocations, taken, returned, retries, failures

    void *memory_allocate(size_t size, int *fresh)
    void memory_free(void *data)
    void *memory_reallocate(void *data, size_t size)
    void memory_empty_cache()
    void memory_set_limit(size_t limit)
    void memory_set_idle(int64_t nanoseconds)
    MemoryStats memory_stats()
    void memory_reset_peak()
    void memory_start(size_t most_cached, int64_t idle)

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept nogil
        void *(*calloc)(void *ctx, size_t count, size_t size) noexcept nogil
        void *(*realloc)(void *ctx, void *data, size_t size) noexcept nogil
        void (*free)(void *ctx, void *data, size_t size) noexcept nogil

    ctypedef struct PyDataMem_Handler:
        char name[127]
        unsigned char version
        PyDataMemAllocator allocator

    object PyDataMem_SetHandler(object handler)

cdef extern from *:
    """
    /* The bytes of an array; -1 if a size is negative, or there are too many to count. */
    static Py_ssize_t count_bytes(Py_ssize_t itemsize, int ndim, const npy_intp *sizes) {
        Py_ssize_t bytes = itemsize;
        for (int i = 0; i < ndim; i++)
            if (sizes[i] < 0 || __builtin_mul_overflow(bytes, sizes[i], &bytes)) return -1;
        return bytes;
    }

    /* An array that owns `data`, which `handler` frees with it. */
    static PyObject *array_in(void *data, PyObject *dtype, int ndim, npy_intp *sizes, PyObject *handler) {
        Py_INCREF(dtype);
        PyObject *array = PyArray_NewFromDescr(
            &PyArray_Type, (PyArray_Descr *)dtype, ndim, sizes, NULL, data, NPY_ARRAY_CARRAY, NULL);
        if (!array) {
            memory_free(data);
            return NULL;
        }
        Py_INCREF(handler);
        ((PyArrayObject_fields *)array)->mem_handler = handler;
        PyArray_ENABLEFLAGS((PyArrayObject *)array, NPY_ARRAY_OWNDATA);
        return array;
    }

    enum { NUMPY_TRACE_DOMAIN = 389047 };  /* where tracemalloc has the memory of NumPy's arrays */
    """
    Py_ssize_t count_bytes(Py_ssize_t itemsize, int ndim, const cnp.npy_intp *sizes) nogil
    object array_in(void *data, object dtype, int ndim, cnp.npy_intp *sizes, object handler)
    int NUMPY_TRACE_DOMAIN

cdef extern from "Python.h":
    object PyCapsule_New(void *pointer, const char *name, void *destructor)
    int PyTraceMalloc_Track(unsigned int domain, size_t pointer, size_t size)

cdef enum:
    MOST_DIMENSIONS = 64  # of a NumPy array

cdef int64_t SECOND = 1000000000  # nanoseconds


# ---- NumPy's data-memory handler --------------------------------------------------------------------------


cdef void *handler_malloc(void *ctx, size_t size) noexcept nogil:
    return memory_allocate(size, NULL)


cdef void *handler_calloc(void *ctx, size_t count, size_t size) noexcept nogil:
    cdef int zeros = 0
    cdef void *data
    if size and count > SIZE_MAX // size:
        return NULL
    data = memory_allocate(count * size, &zeros)
    if data and not zeros:
        memset(data, 0, count * size)
    return data


cdef void *handler_realloc(void *ctx, void *data, size_t size) noexcept nogil:
    return memory_reallocate(data, size)


cdef void handler_free(void *ctx, void *data, size_t size) noexcept nogil:
    memory_free(data)


cdef PyDataMem_Handler handler_functions
strcpy(handler_functions.name, b"minigrad")
handler_functions.version = 1
handler_functions.allocator.malloc = handler_malloc
handler_functions.allocator.calloc = handler_calloc
handler_functions.allocator.realloc = handler_realloc
handler_functions.allocator.free = handler_free
cdef object handler = PyCapsule_New(&handler_functions, "mem_handler", NULL)


cpdef enter():
    """From here on NumPy takes the memory of new arrays from here, in this thread; see :func:`leave`."""
    return PyDataMem_SetHandler(handler)


cpdef leave(entered):
    """Undo ``entered = enter()``."""
    PyDataMem_SetHandler(entered)


cdef class numpy_allocates_here:
    """A context between :func:`enter` and :func:`leave`.

    Where NumPy finds no memory in it, the error is OutOfMemoryError, with sizes.
    """

    cdef object entered

    def __enter__(self):
        self.entered = enter()

    def __exit__(self, kind, error, traceback):
        leave(self.entered)
        if isinstance(error, NumpyMemoryError):
            raise explain(error) from error


def explain(error):
    """What to raise for NumPy's ``error`` about memory: it says how much there is, and the limit."""
    return out_of_memory(str(error))


# ---- arrays -----------------------------------------------------------------------------------------------


def empty(shape, dtype):
    """A new C-contiguous array whose elements are not set, aligned to 64 bytes.

    Args:
        shape: a tuple of sizes, or one size.
        dtype: a dtype, or what ``np.dtype`` takes.

    Raises:
        OutOfMemoryError: the system, or the limit, leaves no memory for it.
    """
    cdef cnp.npy_intp sizes[MOST_DIMENSIONS]
    cdef Py_ssize_t ndim, i, size
    cdef void *data
    if type(shape) is not tuple:
        shape = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
    if not isinstance(dtype, cnp.dtype):
        dtype = np.dtype(dtype)
    ndim = len(<tuple>shape)
    if ndim > MOST_DIMENSIONS or (<cnp.dtype>dtype).hasobject:
        return np.empty(shape, dtype)
    for i in range(ndim):
        sizes[i] = (<tuple>shape)[i]
    size = count_bytes((<cnp.dtype>dtype).itemsize, <int>ndim, sizes)
    if size <= 0:
        return np.empty(shape, dtype)  # an array without elements, or the error that says what is wrong
    data = memory_allocate(size, NULL)
    if not data:
        raise out_of_memory(f"an array of shape {shape} and {dtype} takes {size} bytes")
    PyTraceMalloc_Track(NUMPY_TRACE_DOMAIN, <size_t>data, size)
    return array_in(data, dtype, <int>ndim, sizes, handler)


cdef out_of_memory(what):
    cdef MemoryStats stats = memory_stats()
    bound = "none is set" if limit is None else f"{limit} bytes"
    return OutOfMemoryError(
        f"{what}: the CPU has no memory left for it; arrays hold {stats.allocated} bytes, {stats.reserved} are "
        f"reserved, the limit: {bound}. Free arrays, take smaller batches, or raise the limit"
    )


# ---- settings and statistics ------------------------------------------------------------------------------

cdef object limit = None


def set_limit(bytes):
    """Let no more than ``bytes`` be reserved; None: no limit."""
    global limit
    memory_set_limit(SIZE_MAX if bytes is None else bytes)
    limit = bytes


def set_idle_time(seconds):
    """Return freed blocks to the system that nobody has asked for in ``seconds``."""
    memory_set_idle(<int64_t>(seconds * SECOND))


def empty_cache():
    """Return all freed blocks to the system."""
    memory_empty_cache()


def statistics():
    """What the allocator counts (a dict): bytes, and how often something happened."""
    return memory_stats()


def reset_peaks():
    """Let the peaks in :func:`statistics` start again from what is held now."""
    memory_reset_peak()


def _most_cached():
    """The bytes of freed blocks that may be kept: a quarter of the machine's memory, or none."""
    if os.environ.get("MINIGRAD_NO_CPU_MEMORY_CACHING", "0").strip() not in ("", "0"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


memory_start(_most_cached(), 30 * SECOND)
