"""Winograd's algorithm for dilated convolutions on the processor, which knows none: phase by phase.

With a dilation d an output pixel meets input pixels a multiple of d away from it, and so (with a padding that
is a multiple of d too) only those whose row and column agree with its own modulo d. Each such pair of a row
and a column phase is an image of its own, d times smaller on either side, and its convolution has no
dilation. For 64 channels, moving the pixels there and back takes a third of the time that the algorithm does,
and leaves it 1.5 times ahead of the implicit GEMM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.kernels import cpu
from minigrad.kernels.cpu import memory


def have_equal_phases(size: tuple[int, ...], padding: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether images of ``size`` (H, W) fall into phases of one size, and the padding is whole in each."""
    return all(n % d == 0 == p % d for n, p, d in zip(size, padding, dilation, strict=True))


def phase_shape(shape: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """The shape of the phases of images (N, C, H, W), all of them as one batch."""
    (n, c, h, w), (dh, dw) = shape, dilation
    return n * dh * dw, c, h // dh, w // dw


def _to_phases(images: Any, dilation: tuple[int, int], threads: int) -> Any:
    (n, c, h, w), (dh, dw) = images.shape, dilation
    phases = images.reshape(n, c, h // dh, dh, w // dw, dw).transpose(0, 3, 5, 1, 2, 4)
    copy = memory.empty(phases.shape, images.dtype)
    cpu.elementwise.copy(copy, phases, threads)
    return copy.reshape(phase_shape(images.shape, dilation))


def _from_phases(images: Any, phases: Any, dilation: tuple[int, int], threads: int) -> None:
    (n, c, h, w), (dh, dw) = images.shape, dilation
    phases = phases.reshape(n, dh, dw, c, h // dh, w // dw).transpose(0, 3, 4, 1, 5, 2)
    cpu.elementwise.copy(images.reshape(phases.shape), phases, threads)


def _of_images(name: str) -> Callable[..., None]:
    """Forward, or the gradient for the input: images become images."""
    run = getattr(cpu.conv2d_winograd, name)

    def of_images(out: Any, images: Any, *weights_and_options: Any) -> None:
        *weights, sh, sw, ph, pw, dh, dw, groups, threads = weights_and_options
        options = sh, sw, ph // dh, pw // dw, 1, 1, groups, threads
        if (dh, dw) == (1, 1):
            run(out, images, *weights, *options)
            return
        result = memory.empty(phase_shape(out.shape, (dh, dw)), out.dtype)
        run(result, _to_phases(images, (dh, dw), threads), *weights, *options)
        _from_phases(out, result, (dh, dw), threads)

    of_images.__doc__ = run.__doc__
    return of_images


forward, input_grad = _of_images("forward"), _of_images("input_grad")


def weight_grad(out: Any, g: Any, x: Any, *options: int) -> None:
    sh, sw, ph, pw, dh, dw, groups, threads = options
    if (dh, dw) != (1, 1):
        g, x = (_to_phases(images, (dh, dw), threads) for images in (g, x))
    cpu.conv2d_winograd.weight_grad(out, g, x, sh, sw, ph // dh, pw // dw, 1, 1, groups, threads)


weight_grad.__doc__ = cpu.conv2d_winograd.weight_grad.__doc__
