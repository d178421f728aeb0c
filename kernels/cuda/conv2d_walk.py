"""How a filter moves over the images that the copy engine reads, for ``conv2d_wgmma.cu``.

A pixel of the result is the sum over the taps of the filter at one of its places. Forward, there is a
place for each pixel of the output. Of the input's gradient, whose taps run backwards, those pixels are made
together that the same taps reach: the phases of the stride.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import gcd, prod
from operator import sub
from typing import NamedTuple

from ..arguments import unchanging
from ..launch import blocks
from . import tensor_map

MOST_PHASES = 4  # of a stride: each takes a launch

LATTICE = ("height", "width", "first_y", "first_x", "stride_y", "stride_x")  # the fields of struct Lattice
NO_LATTICE = unchanging(dict.fromkeys(LATTICE, 0))


class Axis(NamedTuple):
    """How the filter moves along one axis of the images that are read."""

    size: int  # of an image of the result
    lower: int  # from the image's first pixel to the filter's first corner
    upper: int  # from the image's last pixel to the filter's last corner, or a few beyond it
    stride: int
    taps: int
    first: int  # from the filter's corner to its first tap
    step: int  # from tap to tap
    number: int = 0  # of the first tap's weights along this axis, and
    next: int = 1  # from tap to tap
    start: int = 0  # where the first of the result's pixels stands


class Walk(NamedTuple):
    """How the filter moves over the images that are read; of each, (vertical, horizontal)."""

    size: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    stride: tuple[int, ...]
    reach: tuple[int, ...]
    filter: unchanging  # the fields of struct Filter


def walk_of(vertical: Axis, horizontal: Axis, across: int) -> Walk:
    """``across``: how many taps a row of the weights has."""
    size, lower, upper, stride, taps, first, step, number, following, _ = zip(
        vertical, horizontal, strict=True
    )
    reach = tuple(abs(d) * (n - 1) for d, n in zip(step, taps, strict=True))
    names = (
        *("height", "width", "corner_y", "corner_x", "stride_y", "stride_x"),
        *("taps_down", "taps_across", "first_down", "first_right", "step_down", "step_right"),
        *("number", "next_right", "next_down"),
    )
    of_weights = number[0] * across + number[1], following[1], following[0] * across - following[1] * taps[1]
    values = *size, *lower, *stride, *taps, *first, *step, *of_weights
    return Walk(size, lower, upper, stride, reach, unchanging(zip(names, values, strict=True)))


@lru_cache(maxsize=1024)  # here and below: the same few convolutions come in every step of a training
def walk_forwards(output: tuple[int, ...], kernel: tuple[int, ...], options: tuple[int, ...]) -> Walk:
    """From the input's pixels to those of an ``output`` (H, W)."""
    axes = [
        Axis(size, -pad, pad - dilation * (taps - 1), stride, taps, 0, dilation)
        for size, taps, stride, pad, dilation in zip(
            output, kernel, options[:2], options[2:4], options[4:6], strict=True
        )
    ]
    return walk_of(*axes, kernel[1])


@lru_cache(maxsize=1024)
def walks_backwards(
    input: tuple[int, ...], output: tuple[int, ...], kernel: tuple[int, ...], options: tuple[int, ...]
) -> list[tuple[Walk | None, unchanging | None]]:
    """From the pixels of an ``output`` to those of an ``input`` (H, W), for each phase of the stride, and
    where these stand: None if they are all. No walk, if no tap reaches them."""
    stride = options[:2]
    axes = zip(input, output, kernel, stride, options[2:4], options[4:6], strict=True)
    vertical, horizontal = ([_phase(start, *axis) for start in range(min(axis[0], axis[3]))] for axis in axes)
    found: list[tuple[Walk | None, unchanging | None]] = []
    for down, right in product(vertical, horizontal):
        walk = walk_of(down, right, kernel[1]) if down.taps and right.taps else None
        values = *input, down.start, right.start, *stride
        found.append((walk, unchanging(zip(LATTICE, values, strict=True)) if prod(stride) > 1 else None))
    return found


def _phase(start: int, size: int, outputs: int, kernel: int, stride: int, pad: int, dilation: int) -> Axis:
    """Of one axis the pixels start, start + stride, ...: see struct Phase of conv2d.cuh. The taps that reach
    them run backwards."""
    common = gcd(stride, dilation)
    following, back = stride // common, dilation // common
    first = next(
        (t for t in range(min(following, kernel)) if (start + pad - t * dilation) % stride == 0), kernel
    )
    taps, pixels = blocks(kernel - first, following), blocks(size - start, stride)
    reach = back * (taps - 1)
    lower = (start + pad - first * dilation) // stride - reach
    upper = lower + pixels - outputs
    return Axis(pixels, lower, upper, 1, taps, reach, -back, first, following, start)


@lru_cache(maxsize=1024)
def fits(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple) -> bool:
    """Whether the copy engine can move such a filter over images."""
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    corners = (*(-p for p in padding), *map(sub, padding, reach))
    return max(stride) <= tensor_map.LARGEST_FILTER_STRIDE and _engine_takes(corners, reach)


@lru_cache(maxsize=1024)
def fits_backwards(input: tuple[int, ...], output: tuple[int, ...], kernel: tuple, *options: tuple) -> bool:
    """The same for the gradient for an ``input`` (H, W); ``options`` are stride, padding and dilation."""
    if prod(options[0]) > MOST_PHASES:
        return False
    walks = [walk for walk, _ in walks_backwards(input, output, kernel, sum(options, ())) if walk]
    return all(_engine_takes(walk.lower + walk.upper, walk.reach) for walk in walks)


def _engine_takes(corners: tuple[int, ...], reach: tuple[int, ...]) -> bool:
    within = all(tensor_map.LEAST_CORNER <= c <= tensor_map.LARGEST_CORNER for c in corners)
    return within and max(reach) <= tensor_map.LARGEST_OFFSET
