"""Tests of example_op; run them with `python -m pytest`."""

import minigrad as mg
import numpy as np
from minigrad.testing import parametrize

from example_op import CASES, example_op


@parametrize(example_op, CASES)
def test_kernels_and_gradients(check):
    """A test for each device, kernel and case; on each device one of the gradients."""
    check()


def test_values():
    """The reference is what all else is compared with; known values check it."""
    x, y = mg.tensor([3.0, 5.0]), mg.tensor([4.0, 12.0])
    lengths = example_op(x, y, epsilon=0.0).numpy()
    np.testing.assert_allclose(lengths, [5.0, 13.0], rtol=1e-6)
