"""Tests of example_op; run them with `python -m pytest`."""

import minigrad as mg
import numpy as np
from minigrad.testing import check_op

from example_op import CASES, example_op


def test_kernels_and_gradients():
    """Every kernel on every device of this machine; the first and the second gradient."""
    check_op(example_op, CASES)


def test_values():
    """The reference is what all else is compared with; known values check it."""
    x, y = mg.tensor([3.0, 5.0]), mg.tensor([4.0, 12.0])
    lengths = example_op(x, y, epsilon=0.0).numpy()
    np.testing.assert_allclose(lengths, [5.0, 13.0], rtol=1e-6)
