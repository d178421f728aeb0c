"""Small kernels on the simulator, for tests: launch one, or catch what it complains of."""

import textwrap

import numpy as np
import pytest

from minigrad.kernels.errors import KernelAccessError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel


def launch(body, *args, parameters="float* y", grid=1, block=32, shared_bytes=0):
    """Launch a kernel ``k``. The first line of its body is line 2."""
    code = f"__global__ void k({parameters}) {{\n{textwrap.dedent(body).strip()}\n}}"
    CudaKernel(code, "k").launch(grid, block, args, shared_bytes)
    return args[0]


def message(*args, error=KernelAccessError, **options):
    """What a launch complains of."""
    with pytest.raises(KernelLaunchError) as caught:
        launch(*args, **options)
    assert type(caught.value) is error
    return str(caught.value)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def normal(*shape, dtype=np.float64, seed=0):
    """Normal random numbers, the same for the same shape and seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# Views of a matrix of whole vectors. The last two begin between vectors, and have rows of odd length.
VIEWS = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.T.copy().T,
    "rows reversed": lambda x: x[::-1],
    "both reversed": lambda x: x[::-1, ::-1],
    "every other row": lambda x: x.repeat(2, 0)[::2],
    "every other column": lambda x: x.repeat(2, 1)[:, ::2],
    "one row": lambda x: np.broadcast_to(x[:1], x.shape),
    "one column": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "shifted": lambda x: np.pad(x, ((0, 0), (1, 3)))[:, 1:-3],
    "in longer rows": lambda x: np.pad(x, ((0, 0), (0, 1)))[:, :-1],
}
