"""What example_op is: its reference, its gradient, and the kernels that compute it.

As it stands it computes sqrt(x**2 + y**2 + epsilon), the length of the vectors (x, y).
Put your own operation in its place: first the reference, then the gradient, then the
kernels.
"""

import minigrad as mg

# The reference: what the operation is. `xp` is NumPy, or CuPy on a card. It runs
# wherever no kernel fits, and every kernel must give what it gives. The parameters
# before the star are tensors, those after it are numbers, with their defaults.


@mg.op
def example_op(xp, x, y, *, epsilon: float = 1e-6):
    """sqrt(x**2 + y**2 + epsilon) of each pair of elements."""
    return xp.sqrt(x * x + y * y + epsilon)


# The gradient, for one input after the other: `g` is the gradient of the result `out`.
# It computes with tensors, so the gradient of the gradient comes for free.


@example_op.grad
def _(g, out, x, y, *, epsilon):
    return g * x / out, g * y / out


# The kernels. minigrad makes `out`, and brings x and y to its shape, contiguous; each
# parameter of a kernel gets what bears its name (`n` is the size of `out`). They are
# compiled when they first run, and then kept. The CUDA kernel runs on cards ("cuda")
# and on the simulator ("sim"): a thread for each element, in blocks of 256.

example_op.cython(
    "example_op.pyx",
    layout="broadcast",
)

example_op.cuda(
    "example_op.cu",
    "example_op_kernel<T>",
    launch="1d",
    block=256,
    name="cuda",
    layout="broadcast",
)
