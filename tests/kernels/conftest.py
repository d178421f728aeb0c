"""Fixtures of the kernel tests: every instruction-set level that this machine runs, and both float dtypes."""

from functools import partial

import numpy as np
import pytest

from minigrad.kernels import cpu


@pytest.fixture(scope="session", params=cpu.available_levels())
def kernel_module(request):
    """``kernel_module("matmul")`` is that extension module, of each level in turn."""
    return partial(cpu.kernel_module, level=request.param)


@pytest.fixture(scope="session", params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param
