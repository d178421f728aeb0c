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
