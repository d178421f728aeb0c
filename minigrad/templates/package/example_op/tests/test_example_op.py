"""Tests of example_op: every kernel against the reference, and the gradients."""

import minigrad as mg
import numpy as np
from minigrad.testing import case, parametrize

from example_op import example_op

# Shapes of the inputs, and attributes. Shapes that broadcast, are empty, or are no
# multiple of a block are where mistakes hide.
CASES = [
    case((33, 1), (1, 17), gradient=False),  # differences of so many would take long
    case((0, 3), (0, 3)),
    case((4, 5), (4, 1), epsilon=2.0),
]


@parametrize(example_op, CASES)
def test_kernels_and_gradients(check):
    """A test for each device, kernel and case; on each device one of the gradients."""
    check()


def test_values():
    """The reference is what all else is compared with; known values check it."""
    x, y = mg.tensor([3.0, 5.0]), mg.tensor([4.0, 12.0])
    lengths = example_op(x, y, epsilon=0.0).numpy()
    np.testing.assert_allclose(lengths, [5.0, 13.0], rtol=1e-6)
