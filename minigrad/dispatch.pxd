# Types for the compiled engine: what dispatch.py leaves open. Needed to build only.

cimport cython


@cython.final
cdef class KernelTable:
    cdef public object op
    cdef public list kernels, scoped
    cdef public bint takes_shortcuts, is_replaced
    cdef public dict selected
    cdef public object decides
    cdef dict _candidates, _choices

    @cython.locals(known=dict)
    cpdef tuple candidates(self, device_type, dtype)
    @cython.locals(choices=dict)
    cpdef choose(self, device_type, dtype, list arrays, dict attrs)
    cpdef _first_that_fits(self, device_type, dtype, list arrays, dict attrs)


cpdef run_kernel(kernel, device, list arrays, dict attrs, list specs)

@cython.locals(i=Py_ssize_t)
cpdef _run(kernel, device, list arrays, dict attrs, list specs)
