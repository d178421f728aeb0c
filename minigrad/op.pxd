# Types for the compiled engine: what op.py leaves open. Needed to build only.

from cython cimport final, locals

from minigrad.dispatch cimport KernelTable
from minigrad.graph cimport Node, Variable
from minigrad.op_definition cimport OpDefinition


cpdef bint _has_large(list arrays)
cpdef list _as_specs(op, rule_result, dtype)
cpdef tuple _broadcast_shape(list arrays)


@final
cdef class Op(OpDefinition):
    @locals(variable=Variable, arrays=list, outputs=list, scalars=bint, mixed=bint)
    cpdef apply(self, tuple args, dict attrs)
    cpdef _record(self, tuple args, dict attrs, device, list outputs, needs)
    @locals(table=KernelTable, specs=list)
    cpdef _compute(self, device, dtype, list arrays, dict attrs)
    @locals(arguments=tuple)
    cpdef _run_reference(self, device, list arrays, dict attrs)
    @locals(i=Py_ssize_t, found=list, arguments=tuple)
    cpdef list apply_gradient(self, g, y, inputs, dict attrs, list needed)
