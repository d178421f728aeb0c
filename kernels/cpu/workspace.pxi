# Workspaces, whose parts begin at cache lines: vectors are aligned then, and no two threads share a line.

from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

cdef enum:
    CACHE_LINE = 64


cdef inline Py_ssize_t whole_lines(Py_ssize_t bytes) noexcept nogil:
    """``bytes`` rounded up, so that what follows begins at a cache line."""
    return ceil_divide(bytes, CACHE_LINE) * CACHE_LINE


cdef void *allocate(Py_ssize_t bytes) except NULL:
    """Memory to be freed; its first aligned byte is ``aligned(memory)``."""
    cdef void *memory = malloc(bytes + CACHE_LINE)
    if memory == NULL:
        raise MemoryError(f"no memory for a kernel's workspace of {bytes} bytes")
    return memory


cdef inline char *aligned(void *memory) noexcept nogil:
    return <char *> ((<uintptr_t> memory + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE)
