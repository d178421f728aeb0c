"""Fixtures of the kernel tests: every instruction-set level that this machine runs, both float dtypes, and
where CUDA kernels run: the simulator and a card."""

from functools import partial

import numpy as np
import pytest

from minigrad.kernels import cpu, cuda, sim


@pytest.fixture(scope="session", params=cpu.available_levels())
def kernel_module(request):
    """``kernel_module("matmul")`` is that extension module, of each level in turn."""
    return partial(cpu.kernel_module, level=request.param)


@pytest.fixture(scope="session", params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=["sim", "cuda"])
def run(request):
    """``run(kernel, shape, dtype, *args)``: the output of a CUDA kernel, which starts filled with NaN.

    A list of shapes is for a kernel of several outputs, which takes and gives a tuple.
    """
    if request.param == "sim" and not sim.is_available():
        pytest.skip("the simulator needs a C++ compiler: install g++")
    if request.param == "cuda" and not cuda.is_available():
        pytest.skip(cuda.why_unavailable())
    put, get = (np.array, np.array) if request.param == "sim" else (cuda.cupy().asarray, cuda.cupy().asnumpy)

    def run(kernel, shape, dtype, *args, fill=np.nan):
        args = [put(a) if isinstance(a, np.ndarray) else a for a in args]
        if isinstance(shape, list):
            outs = tuple(put(np.full(one, fill, dtype)) for one in shape)
            kernel(outs, *args)
            return tuple(map(get, outs))
        out = put(np.full(shape, fill, dtype))
        kernel(out, *args)
        return get(out)

    return run
