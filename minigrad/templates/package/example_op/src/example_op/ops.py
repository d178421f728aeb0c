"""What example_op is: its reference, its gradient, and the kernels that compute it.

As it stands it computes sqrt(x**2 + y**2 + epsilon), the length of the vectors (x, y).
Put your own operation in its place: first the reference, then the gradient, then the
kernels.
"""

from pathlib import Path

import minigrad as mg
from minigrad.kernels.launch import CudaKernel, blocks

# The reference: what the operation is. `xp` is NumPy, or CuPy on a card. It runs
# wherever no kernel fits, and every kernel must give what it gives. The parameters
# before the star are tensors, those after it are numbers, with their defaults.


@mg.op
def example_op(xp, x, y, *, epsilon=1e-6):
    """sqrt(x**2 + y**2 + epsilon) of each pair of elements."""
    return xp.sqrt(x * x + y * y + epsilon)


# The gradient, for one input after the other: `g` is the gradient of the result `out`.
# It computes with tensors, so the gradient of the gradient comes for free.


@example_op.grad
def _(g, out, x, y, *, epsilon):
    return g * x / out, g * y / out


# The CUDA kernel, for cards ("cuda") and for the simulator ("sim"). minigrad has made
# `out`, and has brought x and y to its shape, contiguous.

source = Path(__file__).parent / "example_op.cu"
cuda = CudaKernel(source, "example_op_kernel<T>")


@example_op.kernel("cuda", "sim", name="cuda", layout="broadcast")
def _(out, x, y, *, epsilon):
    """One thread for each element."""
    cuda.launch(blocks(out.size, 256), 256, (out, x, y, epsilon, out.size))
