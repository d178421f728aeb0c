"""The sums of a convolution that were cut into parts, added up: on the simulator and on a card."""

import numpy as np
import pytest

from minigrad.kernels.cuda.conv2d_parts import add_taps

pytestmark = pytest.mark.usefixtures("checked_accesses")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("parts", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (40, 13, 3, 2), (300, 9, 1, 1), (2, 1, 7, 7)], ids=str)
def test_parts_of_taps_are_added(backend, shape, parts, last, rng):
    outputs, channels, *kernel = shape
    partial = rng.integers(-9, 9, (parts, *kernel, outputs, channels)).astype(np.float32)
    expected = partial.sum(0).transpose(2, 3, 0, 1)
    for dtype in (np.float32, np.float16):
        empty = np.full(shape, np.nan, dtype)
        out = backend.put(empty)
        if last:
            out = backend.put(empty.transpose(0, 2, 3, 1).copy()).transpose(0, 3, 1, 2)
        add_taps(out, backend.put(partial.reshape(parts, -1)))
        np.testing.assert_array_equal(backend.get(out), expected)
