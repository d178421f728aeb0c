"""Random inputs for the cases of ops, and their usual shapes."""

import numpy as np


def uniform(low, high, shape):
    """An input of uniform random numbers."""
    return lambda rng: rng.uniform(low, high, shape)


def normal(shape):
    """An input of normal random numbers, among which no special ones are put."""
    return lambda rng: rng.standard_normal(shape)


def apart(shape):
    """Random numbers of which no two are closer than a finite difference's step: no ties, no kinks nearby."""

    def make(rng):
        n = int(np.prod(shape))
        return ((rng.permutation(n) - n / 2 + 0.25) / 4).reshape(shape).astype(float)

    return make


def integers(low, high, shape):
    return lambda rng: rng.integers(low, high, shape)


def bools(shape):
    return lambda rng: rng.random(shape) < 0.5


SHAPES = [(), (1,), (7,), (3, 5), (0,), (2, 0, 3), (2, 3, 4), (2, 3, 2, 5)]
LARGER = [(33, 17), (1025,)]
