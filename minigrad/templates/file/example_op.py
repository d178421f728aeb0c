"""example_op: an operation of your own for minigrad, with a gradient and kernels, in one file.

    python example_op.py                  check the kernels and the gradients, and time
    python -m pytest test_example_op.py   the checks alone, as tests

As it stands it computes sqrt(x**2 + y**2 + epsilon), the length of the vectors (x, y).
Put your own operation in its place from the top down: first the reference, then the
gradient, then the kernels. Run the file after each step. You need no GPU: where there
is none, the CUDA kernel runs on the simulator alone.
"""

import minigrad as mg
from minigrad.testing import bench_op, case, check_op

# 1. The reference: what the operation is. `xp` is NumPy, or CuPy on a card. It runs
#    wherever no kernel fits, and every kernel must give what it gives. The parameters
#    before the star are tensors, those after it are numbers, with their defaults.


@mg.op
def example_op(xp, x, y, *, epsilon: float = 1e-6):
    """sqrt(x**2 + y**2 + epsilon) of each pair of elements."""
    return xp.sqrt(x * x + y * y + epsilon)


# 2. The gradient, for one input after the other: `g` is the gradient of the result
#    `out`. It computes with tensors, so the gradient of the gradient comes for free.
#    What it does not look at is not kept for it if its name starts with an underscore.


@example_op.grad
def _(g, out, x, y, *, epsilon):
    return g * x / out, g * y / out


# 3. A kernel for the CPU, in Cython: Python with types, which becomes C. It is compiled
#    when it first runs, and then kept. minigrad has made `out`, and has brought x and y
#    to its shape, contiguous; each parameter gets what bears its name.

example_op.cython(
    """
from cython cimport floating
from libc.math cimport sqrt


def example_op(
    floating[::1] out, const floating[::1] x, const floating[::1] y, floating epsilon
):
    '''One element after the other.'''
    cdef Py_ssize_t i
    for i in range(out.shape[0]):
        out[i] = sqrt(x[i] * x[i] + y[i] * y[i] + epsilon)
""",
    layout="broadcast",
)


# 4. A kernel in CUDA, for cards ("cuda") and for the simulator ("sim"). T is float or
#    double, and n is the number of elements of `out`.

example_op.cuda(
    """
    // One thread for each element.
    template <typename T>
    __global__ void example_op_kernel(
        T* out, const T* x, const T* y, T epsilon, long long n
    ) {
        long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = sqrt(x[i] * x[i] + y[i] * y[i] + epsilon);
    }
    """,
    "example_op_kernel<T>",
    launch="1d",
    name="cuda",
    layout="broadcast",
)


# 5. What to check: shapes of the inputs, and attributes. Shapes that broadcast, are
#    empty, or are no multiple of a block are where mistakes hide.

CASES = [
    case((33, 1), (1, 17), gradient=False),  # differences of so many would take long
    case((0, 3), (0, 3)),
    case((4, 5), (4, 1), epsilon=2.0),
]


# 6. What to time: a million elements. On the simulator time says nothing; what a kernel
#    asks of a card is shown by `minigrad sim-profile`.

TIMED = [case((1000, 1000), (1000, 1000))]


if __name__ == "__main__":
    check_op(example_op, CASES)
    print("example_op: every kernel and the gradients are right")
    print(bench_op(example_op, TIMED))
