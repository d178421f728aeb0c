"""example_op: an operation of your own for minigrad, with a gradient and kernels, in one file.

    python example_op.py                  check every kernel and the gradients
    python -m pytest test_example_op.py   the same as tests

As it stands it computes sqrt(x**2 + y**2 + epsilon), the length of the vectors (x, y).
Put your own operation in its place from the top down: first the reference, then the
gradient, then the kernels. Run the file after each step. You need no GPU: where there
is none, the CUDA kernel runs on the simulator alone.
"""

import minigrad as mg
from minigrad.kernels.launch import CudaKernel, blocks
from minigrad.testing import case, check_op

# 1. The reference: what the operation is. `xp` is NumPy, or CuPy on a card. It runs
#    wherever no kernel fits, and every kernel must give what it gives. The parameters
#    before the star are tensors, those after it are numbers, with their defaults.


@mg.op
def example_op(xp, x, y, *, epsilon=1e-6):
    """sqrt(x**2 + y**2 + epsilon) of each pair of elements."""
    return xp.sqrt(x * x + y * y + epsilon)


# 2. The gradient, for one input after the other: `g` is the gradient of the result
#    `out`. It computes with tensors, so the gradient of the gradient comes for free.
#    What it does not look at is not kept for it if its name starts with an underscore.


@example_op.grad
def _(g, out, x, y, *, epsilon):
    return g * x / out, g * y / out


# 3. The CUDA kernel, for cards ("cuda") and for the simulator ("sim"). minigrad has
#    made `out`, and has brought x and y to its shape, contiguous.

code = CudaKernel(
    """
    // One thread for each element. T is float or double.
    template <typename T>
    __global__ void example_op_kernel(T* out, const T* x, const T* y, T epsilon, long long n) {
        long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = sqrt(x[i] * x[i] + y[i] * y[i] + epsilon);
    }""",
    "example_op_kernel<T>",
)


@example_op.kernel("cuda", "sim", name="cuda", layout="broadcast")
def _(out, x, y, *, epsilon):
    """One thread for each element."""
    code.launch(blocks(out.size, 256), 256, (out, x, y, epsilon, out.size))


# 4. What to check: shapes of the inputs, and attributes. Shapes that broadcast, are
#    empty, or are no multiple of a block are where mistakes hide.

CASES = [
    case((), (), gradient=False),
    case((1000,), (1000,), gradient=False),  # differences of so many would take long
    case((33, 1), (1, 17)),
    case((0, 3), (0, 3)),
    case((4, 5), (4, 5), epsilon=2.0),
]

if __name__ == "__main__":
    check_op(example_op, CASES)
    print("example_op: every kernel and the gradients are right")
