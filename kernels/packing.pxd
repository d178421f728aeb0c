# Types for the compiled launch: what packing.py leaves open. Needed to build only.

cimport cython


@cython.final
cdef class Packing:
    cdef public object array_type, struct, places
    cdef public Py_ssize_t count
    cdef public list _arrays, _numbers, _structs

    @cython.locals(values=list, i=Py_ssize_t, is_const=bint, mask="unsigned long long", address="unsigned long long")
    cpdef tuple fit(self, args)
