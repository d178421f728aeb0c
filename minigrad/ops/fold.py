"""Unfold and fold (im2col and col2im), pixel shuffling and channel shuffling."""

from __future__ import annotations

from typing import Any

from minigrad.op import op
from minigrad.ops.shape import permute, reshape, squeeze, unsqueeze
from minigrad.ops.windows import output_size, pair, windows


@op(name="unfold", moves=True)
def _unfold(xp, x, *, kernel, stride, padding, dilation):
    """(N, C, H, W) -> (N, C KH KW, L): each of the L patches as a column."""
    view = windows(xp, x, kernel, stride, padding, dilation)
    n, c, oh, ow, kh, kw = view.shape
    return view.transpose(0, 1, 4, 5, 2, 3).reshape(n, c * kh * kw, oh * ow)


@op(name="fold")
def _fold(xp, x, *, size, kernel, stride, padding, dilation):
    """(N, C KH KW, L) -> (N, C, H, W): the patches added where they came from."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    oh, ow = output_size("fold", size, kernel, stride, padding, dilation)
    n, c = x.shape[0], x.shape[1] // (kh * kw)
    patches = x.reshape(n, c, kh, kw, oh, ow)
    out = xp.zeros((n, c, size[0] + 2 * ph, size[1] + 2 * pw), x.dtype)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            out[:, :, rows, columns] += patches[:, :, i, j]
    return out[:, :, ph : ph + size[0], pw : pw + size[1]]


_unfold.grad(x=lambda g, _y, _x, **attrs: _fold(g, size=_x.shape[2:], **attrs))
_fold.grad(x=lambda g, _y, _x, *, size, **attrs: _unfold(g, **attrs))


@_unfold.shape
def _(x, *, kernel, stride, padding, dilation):
    oh, ow = output_size("unfold", x.shape, kernel, stride, padding, dilation)
    return x.shape[0], x.shape[1] * kernel[0] * kernel[1], oh * ow


@_fold.shape
def _(x, *, size, kernel, **options):
    return x.shape[0], x.shape[1] // (kernel[0] * kernel[1]), *size


def unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """The patches under a sliding window, each as a column: (N, C, H, W) -> (N, C KH KW, L).

    L is the number of windows, row by row; the arguments are those of a convolution. The N may be left out.
    """
    if input.ndim == 3:
        return squeeze(unfold(unsqueeze(input, 0), kernel_size, dilation, padding, stride), 0)
    if input.ndim != 4:
        raise ValueError(f"unfold: expected (N, C, H, W) or (C, H, W), got shape {input.shape}")
    return _unfold(input, **_options("unfold", kernel_size, dilation, padding, stride))


def fold(
    input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Any:
    """Patches added up at their places, (N, C KH KW, L) -> (N, C, H, W): the adjoint of :func:`unfold`.

    ``output_size`` is (H, W). The N may be left out.
    """
    if input.ndim == 2:
        return squeeze(fold(unsqueeze(input, 0), output_size, kernel_size, dilation, padding, stride), 0)
    if input.ndim != 3:
        raise ValueError(f"fold: expected (N, C KH KW, L) or (C KH KW, L), got shape {input.shape}")
    size = pair("fold", "output_size", output_size, 1)
    options = _options("fold", kernel_size, dilation, padding, stride)
    places = _places(size, options)
    taps = options["kernel"][0] * options["kernel"][1]
    if input.shape[1] % taps or input.shape[2] != places:
        raise ValueError(
            f"fold: for output size {size} and kernel {options['kernel']} expected (N, a multiple of {taps}, "
            f"{places}), got shape {input.shape}"
        )
    return _fold(input, size=size, **options)


def _places(size: tuple[int, int], options: dict) -> int:
    rows, columns = output_size("fold", size, *options.values())
    return rows * columns


def _options(name: str, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> dict:
    return {
        "kernel": pair(name, "kernel_size", kernel_size, 1),
        "stride": pair(name, "stride", stride, 1),
        "padding": pair(name, "padding", padding, 0),
        "dilation": pair(name, "dilation", dilation, 1),
    }


def pixel_shuffle(input: Any, upscale_factor: int) -> Any:
    """Channels as pixels, (..., C r^2, H, W) -> (..., C, H r, W r); https://arxiv.org/abs/1609.05158."""
    r = upscale_factor
    if input.ndim < 3 or r < 1 or input.shape[-3] % (r * r):
        raise ValueError(
            f"pixel_shuffle: expected (..., C, H, W) with C a multiple of {r * r}, got shape {input.shape}"
        )
    *batch, channels, height, width = input.shape
    n = len(batch)
    parts = reshape(input, (*batch, channels // (r * r), r, r, height, width))
    parts = permute(parts, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reshape(parts, (*batch, channels // (r * r), height * r, width * r))


def pixel_unshuffle(input: Any, downscale_factor: int) -> Any:
    """Pixels as channels, (..., C, H r, W r) -> (..., C r^2, H, W): the inverse of :func:`pixel_shuffle`."""
    r = downscale_factor
    if input.ndim < 3 or r < 1 or input.shape[-1] % r or input.shape[-2] % r:
        raise ValueError(
            f"pixel_unshuffle: expected (..., C, H, W) with H and W multiples of {r}, got shape {input.shape}"
        )
    *batch, channels, height, width = input.shape
    n = len(batch)
    parts = reshape(input, (*batch, channels, height // r, r, width // r, r))
    parts = permute(parts, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshape(parts, (*batch, channels * r * r, height // r, width // r))


def channel_shuffle(input: Any, groups: int) -> Any:
    """The channels of (N, C, ...) dealt out, so that each group has some of all; arXiv:1707.01083."""
    if input.ndim < 3 or groups < 1 or input.shape[1] % groups:
        raise ValueError(f"channel_shuffle: {groups} groups do not divide the channels of {input.shape}")
    n, channels, *rest = input.shape
    parts = reshape(input, (n, groups, channels // groups, *rest))
    return reshape(permute(parts, (0, 2, 1, *range(3, parts.ndim))), input.shape)
