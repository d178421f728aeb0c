# Types for the compiled engine: what graph.py leaves open. Needed to build only.

cimport cython

cdef object _tick, _tensor_class
cdef list _NOT_KEPT
cdef long long _last_write


cdef class _Defaults:
    pass


cdef class Variable(_Defaults):
    cdef public object _array, device, grad, _written, _hooks
    cdef public Node _node
    cdef public Py_ssize_t _index
    cdef public bint requires_grad


@cython.locals(out=Variable)
cpdef wrap(array, device)

@cython.locals(cell=list)
cpdef list written_cell(Variable variable)


@cython.final
cdef class Node:
    cdef object __weakref__
    cdef public long long number
    cdef public object op, attrs, device, output_device, written, hooks, stack
    cdef public list inputs, edges, outputs

    @cython.locals(i=Py_ssize_t, found=list, inputs=list, bare=bint)
    cpdef list gradients(self, list grad_outputs, list needed, bint create_graph)
    cpdef free(self)
