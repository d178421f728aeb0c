"""Philox4x32-10, a counter-based random number generator, on whole arrays.

The n-th number is a function of a key and of n, with no state to carry from one to the next: every element
of an array can be computed by itself, by any thread of any device, and comes out the same. J. K. Salmon,
M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405.

A *stream* is named by a seed and an offset, 64 bits each: the seed is the key, and the counter of block b is
(low and high word of b, low and high word of the offset). A block is four words of 32 random bits. Element i
of what is drawn takes

- word i % 4 of block i // 4, for float32 and for the mask of a dropout;
- words 2 (i % 2) and 2 (i % 2) + 1 of block i // 2, for float64: 64 bits, the low word first.

These functions are the oracle of the kernels ``random.cu`` and ``random.pyx``, which give the same bits for
uniform numbers and masks, and the same normal numbers to within rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round: the golden ratio and sqrt(3) - 1
WORD = 0xFFFFFFFF


def philox(xp: Any, counter: Any, key: tuple[int, int]) -> Any:
    """Ten rounds on counters of four 32-bit words (uint64, (4, ...)) with a key of two; of the same form."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * xp.uint64(MULTIPLIERS[0]), c2 * xp.uint64(MULTIPLIERS[1])
        c0 = (p1 >> xp.uint64(32)) ^ c1 ^ xp.uint64(k0)
        c2 = (p0 >> xp.uint64(32)) ^ c3 ^ xp.uint64(k1)
        c1, c3 = p1 & xp.uint64(WORD), p0 & xp.uint64(WORD)
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return xp.stack([c0, c1, c2, c3])


def words(xp: Any, count: int, seed: int, offset: int) -> Any:
    """The first ``count`` words of a stream, uint32."""
    block = xp.arange(-(-count // 4), dtype=np.uint64)
    of_stream = xp.ones_like(block)
    counter = (
        block & xp.uint64(WORD),
        block >> xp.uint64(32),
        of_stream * xp.uint64(offset & WORD),
        of_stream * xp.uint64(offset >> 32),
    )
    return philox(xp, counter, (seed & WORD, seed >> 32)).T.ravel()[:count].astype(np.uint32)


def uniform(xp: Any, count: int, dtype: Any, seed: int, offset: int) -> Any:
    """``count`` numbers in [0, 1): multiples of 2^-24 for float32, of 2^-53 for float64."""
    if np.dtype(dtype) == np.float32:
        return (words(xp, count, seed, offset) >> 8).astype(np.float32) * np.float32(2.0**-24)
    return (_double_words(xp, count, seed, offset) >> 11).astype(np.float64) * 2.0**-53


def normal(xp: Any, count: int, dtype: Any, seed: int, offset: int) -> Any:
    """``count`` numbers of mean 0 and variance 1, by the transform of G. E. P. Box and M. E. Muller (1958).

    Two uniform numbers u in (0, 1] and v in [0, 1) give two normal ones, sqrt(-2 log u) times cos(2 pi v) and
    sin(2 pi v). For float32, u = (word + 1/2) 2^-32 reaches 6.7 standard deviations; for float64, of 53
    bits, u reaches 8.5.
    """
    pairs = -(-count // 2)
    if np.dtype(dtype) == np.float32:
        bits = words(xp, 2 * pairs, seed, offset).astype(np.float32) * np.float32(2.0**-32)
        u, v = bits[0::2] + np.float32(2.0**-33), bits[1::2]
    else:
        bits = (_double_words(xp, 2 * pairs, seed, offset) >> 11).astype(np.float64)
        u, v = (bits[0::2] + 1) * 2.0**-53, bits[1::2] * 2.0**-53
    radius = xp.sqrt(-2.0 * xp.log(u.astype(np.float64)))
    angle = 2 * math.pi * v.astype(np.float64)
    return xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], 1).ravel()[:count].astype(dtype)


def kept(xp: Any, count: int, p: float, seed: int, offset: int) -> Any:
    """``count`` bools, each False with probability ``p``: what a dropout keeps."""
    return words(xp, count, seed, offset) >= np.uint32(threshold(p))


def threshold(p: float) -> int:
    """The word below which an element is dropped, for a probability ``p`` in [0, 1)."""
    return min(round(p * 2.0**32), WORD)


def _double_words(xp: Any, count: int, seed: int, offset: int) -> Any:
    pairs = words(xp, 2 * count, seed, offset).astype(np.uint64)
    return pairs[0::2] | pairs[1::2] << xp.uint64(32)
