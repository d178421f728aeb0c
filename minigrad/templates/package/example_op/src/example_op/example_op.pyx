# example_op: out[i] = sqrt(x[i]**2 + y[i]**2 + epsilon). `floating` is float or double.

from cython cimport floating
from libc.math cimport sqrt


def example_op(
    floating[::1] out, const floating[::1] x, const floating[::1] y, floating epsilon
):
    """One element after the other."""
    cdef Py_ssize_t i
    for i in range(out.shape[0]):
        out[i] = sqrt(x[i] * x[i] + y[i] * y[i] + epsilon)
