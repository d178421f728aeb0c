# Types for the compiled engine: what op_definition.py leaves open. Needed to build only.

from minigrad.dispatch cimport KernelTable


cdef class OpDefinition:
    cdef dict __dict__  # for what no hot path reads
    cdef object __weakref__
    cdef public object name, outputs, reference, attributes, _shape_rule, _dtype_rule, _joint_rule, _together, small, direct, add_gradient, autocast, promote
    cdef public KernelTable kernels
    cdef public dict _saves
    cdef public list _rules
    cdef public bint has_options, one_dtype, differentiable, view, moves, arithmetic_rules, ops_alone, variadic
    cdef public Py_ssize_t arity
