"""Every kernel of every op on the simulator: the same bits in whatever order its threads run."""

import numpy as np
import pytest
from test_every_op import CASES

import minigrad as mg
from minigrad.kernels import sim
from minigrad.testing.arrays import tensor_in_layout

SIMULATED = sorted(name for name in CASES if mg.list_kernels(name, "sim"))


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.parametrize("name", SIMULATED)
def test_kernels_give_the_same_bits_in_32_orders(name, rng):
    """And under the simulator's checks: no race, no garbage, no access that is out of place."""
    op = mg.get_op(name)
    for kernel in mg.list_kernels(name, "sim"):
        dtypes = [dtype for dtype in kernel.dtypes if dtype.kind == "f"] or [np.dtype("f4")]
        found = False
        for layout in ("contiguous", "channels last") if kernel.channels_last else ("contiguous",):
            calls = [laid_out(one, dtype, layout, rng, kernel) for one in CASES[name] for dtype in dtypes]
            taken = [call for call in calls if call]
            if not taken:
                continue
            found = True
            inputs, attrs = max(taken, key=lambda call: min(size_of(call[0]), 2000))
            with sim.checks(True), sim.stress(32), mg.use_kernel(name, kernel.name, "sim"), mg.no_grad():
                op(*inputs, **attrs)
        assert found, f"no case of {name} is one that the kernel {kernel.name} takes"


def laid_out(one, dtype, layout, rng, kernel):
    """A case's inputs as tensors of the simulator, and its attributes; None if ``kernel`` refuses them."""
    inputs = []
    for value in one.inputs:
        array = rng.standard_normal(value) if isinstance(value, tuple) else value
        array = array(rng) if callable(array) else array
        if isinstance(array, np.ndarray):
            array = array.astype(dtype) if array.dtype.kind == "f" else array
            array = tensor_in_layout(array, mg.device("sim"), layout)
        inputs.append(array)
    arrays = [value._array if isinstance(value, mg.Tensor) else value for value in inputs]
    if any(isinstance(a, np.ndarray) and not a.size for a in arrays):
        return None
    attrs = mg.get_op(kernel.op)._complete(one.attrs)
    fits = kernel.when is None or kernel.when(*arrays, **attrs)
    return (inputs, one.attrs) if fits else None


def size_of(inputs):
    return sum(value.numel() for value in inputs if isinstance(value, mg.Tensor))
