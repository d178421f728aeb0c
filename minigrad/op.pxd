# Types for the compiled engine: what op.py leaves open. Needed to build only.

from cython cimport final, locals

from minigrad.dispatch cimport KernelTable
from minigrad.graph cimport Node, Variable


cpdef bint _has_large(list arrays)
cpdef list _as_specs(rule_result, dtype)
cpdef tuple _broadcast_shape(list arrays)


@final
cdef class Op:
    cdef dict __dict__  # for what no hot path reads
    cdef object __weakref__
    cdef public object name, reference, attributes, _shape_rule, _dtype_rule, _joint_rule, small, add_gradient, autocast
    cdef public KernelTable kernels
    cdef public dict _saves
    cdef public list _rules
    cdef public bint has_options, promote, differentiable, view, moves, arithmetic_rules, variadic
    cdef public Py_ssize_t arity

    @locals(variable=Variable, arrays=list, outputs=list, scalars=bint, mixed=bint)
    cpdef apply(self, tuple args, dict attrs)
    cpdef _record(self, tuple args, dict attrs, device, list outputs, needs)
    @locals(table=KernelTable, specs=list)
    cpdef _compute(self, device, dtype, list arrays, dict attrs)
    @locals(arguments=tuple)
    cpdef _run_reference(self, device, list arrays, dict attrs)
    @locals(i=Py_ssize_t, found=list, arguments=tuple)
    cpdef list apply_gradient(self, g, y, inputs, dict attrs, list needed)
