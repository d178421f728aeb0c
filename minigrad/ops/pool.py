"""Max, average and adaptive average pooling over images (N, C, H, W).

Max pooling keeps for each window the *tap* that won, the position i * KH + j inside the window, as a small
integer. With it the gradient is a scatter, and the gradient of that a gather, both linear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.dispatch import KEPT, Spec
from minigrad.kernels import cpu, cuda
from minigrad.kernels.channels_last import is_channels_last
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import Op, op
from minigrad.ops.shape import laid_out_as
from minigrad.ops.windows import output_size, pair

# ---- max pooling ------------------------------------------------------------------------------------------


def _taps(xp, x, fill, size, *, kernel, stride, padding, dilation):
    """For each tap: its number, and the (N, C, OH, OW) view of ``x``, padded with ``fill``, under it."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    (h, w), (oh, ow) = x.shape[2:], size
    below, right = (oh - 1) * sh + (kh - 1) * dh + 1 - h - ph, (ow - 1) * sw + (kw - 1) * dw + 1 - w - pw
    x = xp.pad(x, ((0, 0), (0, 0), (ph, max(below, 0)), (pw, max(right, 0))), constant_values=fill)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            yield i * kw + j, x[:, :, rows, columns]


_BYTE, _INT = np.dtype(np.uint8), np.dtype(np.int32)


def _tap_dtype(kernel: tuple[int, int]) -> np.dtype:
    return _BYTE if kernel[0] * kernel[1] <= 256 else _INT


@op(name="max_pool2d", saved_outputs=(1,), ops_alone=True)
def _max_pool2d(xp, x, *, kernel, stride, padding, dilation, size):
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    shape = (*x.shape[:2], *size)
    best, winner = xp.full(shape, -xp.inf, x.dtype), xp.full(shape, -1)
    inside = xp.ones((1, 1, *x.shape[2:]), bool)
    for (tap, value), (_, valid) in zip(
        _taps(xp, x, 0, size, **options), _taps(xp, inside, False, size, **options), strict=True
    ):
        better = valid & ((value > best) | xp.isnan(value) | (winner < 0))
        best, winner = xp.where(better, value, best), xp.where(better, tap, winner)
    return best, xp.maximum(winner, 0).astype(_tap_dtype(kernel))


@op
def max_pool2d_input_grad(xp, g, taps, *, input_size, kernel, stride, padding, dilation, size):
    """``g`` added to the element that won each window, in zeros of spatial size ``input_size``."""
    rows, columns = _winners(xp, taps, kernel, stride, padding, dilation)
    (h, w), out = input_size, xp.zeros((*g.shape[:2], *input_size), g.dtype)
    # A dilated window may lie in the padding altogether: it has no winner, and gives to nobody.
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    g, rows, columns = xp.where(inside, g, 0), rows % h, columns % w
    n, c = xp.ogrid[: g.shape[0], : g.shape[1]]
    index = (n[..., None, None], c[..., None, None], rows, columns)
    xp.add.at(out, index, g)
    return out


@op
def max_pool2d_gather(xp, x, taps, *, kernel, stride, padding, dilation, size):
    """The element of ``x`` under each window's winning tap."""
    rows, columns = _winners(xp, taps, kernel, stride, padding, dilation)
    h, w = x.shape[2:]
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    n, c = xp.ogrid[: x.shape[0], : x.shape[1]]
    return xp.where(inside, x[n[..., None, None], c[..., None, None], rows % h, columns % w], x.dtype.type(0))


def _winners(xp, taps, kernel, stride, padding, dilation):
    """The row and column of each window's winner in the unpadded input."""
    tap = taps.astype(np.int64)
    oh, ow = taps.shape[2:]
    rows = xp.arange(oh)[:, None] * stride[0] - padding[0] + tap // kernel[1] * dilation[0]
    columns = xp.arange(ow) * stride[1] - padding[1] + tap % kernel[1] * dilation[1]
    return rows, columns


_max_pool2d.grad(
    x=lambda g, y, _x, **attrs: max_pool2d_input_grad(g[0], y[1], input_size=_x.shape[2:], **attrs)
)
max_pool2d_input_grad.grad(
    g=lambda gg, _y, _g, taps, *, input_size, **attrs: max_pool2d_gather(gg, taps, **attrs)
)
max_pool2d_gather.grad(
    x=lambda gg, _y, _x, taps, **attrs: max_pool2d_input_grad(gg, taps, input_size=_x.shape[2:], **attrs)
)


@_max_pool2d.shape
def _(x, *, kernel, stride, padding, dilation, size):
    shape = (*x.shape[:2], *size)
    return [Spec(shape, x.dtype), Spec(shape, _tap_dtype(kernel))]


@max_pool2d_input_grad.shape
def _(g, taps, *, input_size, **options):
    return *g.shape[:2], *input_size


@max_pool2d_gather.shape
def _(x, taps, **options):
    return taps.shape


def max_pool2d(
    input: Any,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of ``input`` (N, C, H, W) or (C, H, W); NaN counts as largest.

    ``stride`` is the kernel size by default; ``padding``, at most half the kernel, never wins;
    ``ceil_mode`` lets a last window hang over the border. ``return_indices`` adds the winners' positions in
    the flattened H x W plane, as int64.
    """
    name = "max_pool2d"
    if is_single_image(name, input):
        pooled = max_pool2d(
            input.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
        return tuple(p.squeeze(0) for p in pooled) if return_indices else pooled.squeeze(0)
    kernel, step, pads = _pool_options(name, kernel_size, stride, padding)
    dilation = pair(name, "dilation", dilation, 1)
    size = output_size(name, input.shape, kernel, step, pads, dilation, ceil_mode)
    options = {"kernel": kernel, "stride": step, "padding": pads, "dilation": dilation}
    values, taps = _max_pool2d(input, size=size, **options)
    return (values, _flat_indices(taps, input.shape, **options)) if return_indices else values


@op(name="max_pool2d_indices", differentiable=False)
def _indices(xp, taps, *, width, kernel, stride, padding, dilation):
    rows, columns = _winners(xp, taps, kernel, stride, padding, dilation)
    return rows * width + columns


def _flat_indices(taps: Any, shape: tuple, **options: Any) -> Any:
    return _indices(taps, width=shape[3], **options)


# ---- average pooling --------------------------------------------------------------------------------------


def _counts(xp, input_size, dtype, *, kernel, stride, padding, size, include_pad, divisor):
    """What each window's sum is divided by: (1, 1, OH, OW)."""
    if divisor:
        return xp.full((1, 1, *size), divisor, dtype)
    counted = xp.ones((1, 1, *input_size), dtype)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": (1, 1)}
    if include_pad:
        # Padding counts on both sides, but not what a window of ceil_mode reaches beyond it.
        (ph, pw) = padding
        counted = xp.ones((1, 1, input_size[0] + 2 * ph, input_size[1] + 2 * pw), dtype)
        options["padding"] = (0, 0)
    return sum(view for _, view in _taps(xp, counted, 0, size, **options))


@op(name="avg_pool2d")
def _avg_pool2d(xp, x, *, kernel, stride, padding, size, include_pad, divisor):
    total = xp.zeros((*x.shape[:2], *size), x.dtype)
    for _, view in _taps(xp, x, 0, size, kernel=kernel, stride=stride, padding=padding, dilation=(1, 1)):
        total = total + view
    return total / _counts(
        xp, x.shape[2:], x.dtype, kernel=kernel, stride=stride, padding=padding, size=size,
        include_pad=include_pad, divisor=divisor,
    )  # fmt: skip


@op
def avg_pool2d_input_grad(xp, g, *, input_size, kernel, stride, padding, size, include_pad, divisor):
    """Each element of ``g`` spread evenly over its window."""
    (kh, kw), (sh, sw), (ph, pw), (h, w), (oh, ow) = kernel, stride, padding, input_size, size
    share = g / _counts(
        xp, input_size, g.dtype, kernel=kernel, stride=stride, padding=padding, size=size,
        include_pad=include_pad, divisor=divisor,
    )  # fmt: skip
    reach = max(h + 2 * ph, (oh - 1) * sh + kh), max(w + 2 * pw, (ow - 1) * sw + kw)
    padded = xp.zeros((*g.shape[:2], *reach), g.dtype)
    for i in range(kh):
        for j in range(kw):
            padded[:, :, i : i + sh * (oh - 1) + 1 : sh, j : j + sw * (ow - 1) + 1 : sw] += share
    return padded[:, :, ph : ph + h, pw : pw + w]


# One pixel is the same memory in either format: what is left of an image tells how it lay.
_avg_pool2d.grad(
    x=lambda g, y, _x, **attrs: avg_pool2d_input_grad(laid_out_as(g, y), input_size=_x.shape[2:], **attrs)
)
avg_pool2d_input_grad.grad(g=lambda gg, _y, _g, *, input_size, **attrs: _avg_pool2d(gg, **attrs))


@_avg_pool2d.shape
def _(x, *, size, **options):
    return *x.shape[:2], *size


@avg_pool2d_input_grad.shape
def _(g, *, input_size, **options):
    return *g.shape[:2], *input_size


def avg_pool2d(
    input: Any,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window of ``input`` (N, C, H, W) or (C, H, W).

    ``count_include_pad`` counts the padding's zeros in the mean; ``divisor_override`` divides the sum by
    that number instead. The other arguments are as in :func:`max_pool2d`.
    """
    name = "avg_pool2d"
    if is_single_image(name, input):
        pooled = avg_pool2d(
            input.unsqueeze(0), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        return pooled.squeeze(0)
    if divisor_override is not None and divisor_override == 0:
        raise ValueError("avg_pool2d: divisor_override must not be zero")
    kernel, step, pads = _pool_options(name, kernel_size, stride, padding)
    size = output_size(name, input.shape, kernel, step, pads, (1, 1), ceil_mode)
    return _avg_pool2d(
        input,
        kernel=kernel,
        stride=step,
        padding=pads,
        size=size,
        include_pad=bool(count_include_pad),
        divisor=int(divisor_override or 0),
    )


# ---- adaptive average pooling -----------------------------------------------------------------------------


def bins(size: int, count: int) -> list[tuple[int, int]]:
    """``count`` bins over ``size`` elements: bin i is [floor(i size / count), ceil((i+1) size / count))."""
    return [(i * size // count, -((-(i + 1) * size) // count)) for i in range(count)]


def _bin_means(xp, x, count):
    """The means of ``count`` bins over the last dimension."""
    return xp.stack([x[..., start:stop].mean(-1) for start, stop in bins(x.shape[-1], count)], -1)


def _spread(xp, g, size):
    """Each element of the last dimension spread evenly over its bin of ``size`` elements."""
    out = xp.zeros((*g.shape[:-1], size), g.dtype)
    for i, (start, stop) in enumerate(bins(size, g.shape[-1])):
        out[..., start:stop] += g[..., i : i + 1] / (stop - start)
    return out


@op(name="adaptive_avg_pool2d")
def _adaptive_avg_pool2d(xp, x, *, size):
    columns = _bin_means(xp, x, size[1])
    return xp.swapaxes(_bin_means(xp, xp.swapaxes(columns, 2, 3), size[0]), 2, 3)


@op
def adaptive_avg_pool2d_input_grad(xp, g, *, input_size):
    """Each element of ``g`` spread evenly over its bin."""
    columns = _spread(xp, g, input_size[1])
    return xp.swapaxes(_spread(xp, xp.swapaxes(columns, 2, 3), input_size[0]), 2, 3)


_adaptive_avg_pool2d.grad(
    x=lambda g, y, _x, *, size: adaptive_avg_pool2d_input_grad(laid_out_as(g, y), input_size=_x.shape[2:])
)
adaptive_avg_pool2d_input_grad.grad(
    g=lambda gg, _y, _g, *, input_size: _adaptive_avg_pool2d(gg, size=_g.shape[2:])
)


@_adaptive_avg_pool2d.shape
def _(x, *, size):
    return *x.shape[:2], *size


@adaptive_avg_pool2d_input_grad.shape
def _(g, *, input_size):
    return *g.shape[:2], *input_size


def adaptive_avg_pool2d(input: Any, output_size: int | tuple[int | None, int | None]) -> Any:
    """``input`` (N, C, H, W) or (C, H, W) averaged to ``output_size``; None keeps a size."""
    name = "adaptive_avg_pool2d"
    if is_single_image(name, input):
        return adaptive_avg_pool2d(input.unsqueeze(0), output_size).squeeze(0)
    return _adaptive_avg_pool2d(input, size=adaptive_size(name, input, output_size))


def adaptive_size(name: str, x: Any, output_size: Any) -> tuple[int, int]:
    """``output_size`` as a pair, with the image's own sizes where it has None."""
    if 0 in x.shape[2:]:
        raise ValueError(f"{name}: the image is empty (input shape {x.shape})")
    if isinstance(output_size, (tuple, list)) and len(output_size) == 2:
        output_size = [own if n is None else n for n, own in zip(output_size, x.shape[2:], strict=True)]
    return pair(name, "output_size", output_size, 1)


# ---- checks -----------------------------------------------------------------------------------------------


def is_single_image(name: str, x: Any) -> bool:
    ndim = x.ndim
    if ndim not in (3, 4):
        raise ValueError(f"{name}: input needs 4 dimensions (N, C, H, W), or 3 for one image; got {x.shape}")
    return ndim == 3


def _pool_options(name: str, kernel_size: Any, stride: Any, padding: Any) -> tuple:
    kernel = pair(name, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair(name, "stride", stride, 1)
    padding = pair(name, "padding", padding, 0)
    if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
        raise ValueError(f"{name}: padding may be at most half of the kernel {kernel}, got {padding}")
    return kernel, stride, padding


# ---- kernels ----------------------------------------------------------------------------------------------
# A kernel takes its options as plain numbers, on the CPU followed by the number of threads.


def _lie_last(*arrays: Any, **options: Any) -> bool:
    return any(is_channels_last(a) for a in arrays)


def _decides(*arrays: Any, **options: Any) -> tuple:
    """What the conditions of the CUDA kernels look at."""
    return *[(a.shape, a.strides, a.dtype) for a in arrays], *options.items()


def _register(target: Op, devices: tuple[str, ...], rung: str, run: Any, when: Any = None) -> None:
    on_cpu = devices == ("cpu",)

    def kernel(
        out, *arrays, kernel=(), stride=(), padding=(), dilation=(), include_pad=None, divisor=0, **sizes
    ):
        outs = out if isinstance(out, tuple) else (out,)
        of_average = () if include_pad is None else (int(include_pad), divisor)
        threads = (get_num_threads(),) if on_cpu else ()
        run(*outs, *arrays, *kernel, *stride, *padding, *dilation, *of_average, *threads)

    kernel.__doc__ = run.__doc__
    dtypes = "f4 f8" if on_cpu else "f4 f8 f2 bf16"
    of_format = {"when": _lie_last, "channels_last": KEPT} if rung == "channels_last" else {"when": when}
    target.kernel(*devices, name=rung, dtypes=dtypes, **of_format)(kernel)


def _do_not_overlap(g, taps, *, kernel, stride, dilation, **options):
    return g.size > 0 and cuda.pool2d.do_not_overlap(*kernel, *stride, 0, 0, *dilation)


def _worth_tiles(x, *, kernel, stride, padding, size, dilation=(1, 1), **options):
    window = (*kernel, *stride, *padding, *dilation)
    return cuda.pool2d_tiled.worth_tiles(tuple(size), window, x.dtype.itemsize)


def _in_strips(x, *, kernel, stride, padding, size, dilation=(1, 1), **options):
    window = (*kernel, *stride, *padding, *dilation)
    return x.size > 0 and cuda.pool2d_rolling.in_strips(x.shape[2:], tuple(size), window)


def _in_squares(x, *rest, kernel, stride, padding, size, dilation=(1, 1), input_size=None, **options):
    """Whether the vectorized CUDA kernels take the pooling, or the gradient, if there is an input_size."""
    window = (*kernel, *stride, *padding, *dilation)
    is_gradient = input_size is not None
    planes = input_size if is_gradient else x.shape[2:]
    return cuda.pool2d_vectorized.in_squares(
        tuple(planes), tuple(size), window, x.dtype.itemsize, is_gradient
    )


def _one_window(x, *, size, kernel=(), stride=(), padding=(), **options):
    return cuda.pool2d.is_one_window(x.shape, (*x.shape[:2], *size), *kernel, *stride, *padding)


def _one_window_grad(g, *, input_size, kernel=(), stride=(), padding=(), **options):
    large = (*g.shape[:2], *input_size)
    return cuda.pool2d.is_one_window(large, g.shape, *kernel, *stride, *padding)


_CPU, _CARDS = ("cpu",), ("cuda", "sim")
_POOLINGS, _GRADIENTS = (_max_pool2d, _avg_pool2d), (max_pool2d_input_grad, avg_pool2d_input_grad)
_ADAPTIVE = (_adaptive_avg_pool2d, adaptive_avg_pool2d_input_grad)

for _op in (*_POOLINGS, *_GRADIENTS, *_ADAPTIVE, max_pool2d_gather):
    _op.kernels.decides = _decides
for _op in (*_POOLINGS, *_GRADIENTS):
    for _rung in ("naive", "vectorized"):
        _register(_op, _CPU, _rung, getattr(cpu.pool2d, f"{_op.name}_{_rung}"))
for _op in (*_ADAPTIVE, max_pool2d_gather):
    _register(_op, _CPU, "naive", getattr(cpu.pool2d, _op.name))

for _op in (*_POOLINGS, *_GRADIENTS, *_ADAPTIVE, max_pool2d_gather):
    _register(_op, _CARDS, "naive", getattr(cuda.pool2d, _op.name))
for _op in _POOLINGS:
    _register(_op, _CARDS, "tiled", getattr(cuda.pool2d_tiled, f"{_op.name}_tiled"), _worth_tiles)
    _register(_op, _CARDS, "rolling", getattr(cuda.pool2d_rolling, f"{_op.name}_rolling"), _in_strips)
for _op in _GRADIENTS:
    _register(_op, _CARDS, "rows", getattr(cuda.pool2d_rows, f"{_op.name}_rows"))
_scatter = cuda.pool2d.max_pool2d_input_grad_scatter
_register(max_pool2d_input_grad, _CARDS, "scatter", _scatter, _do_not_overlap)
for _op in (*_POOLINGS, *_GRADIENTS):
    _run = getattr(cuda.pool2d_vectorized, f"{_op.name}_vectorized")
    _register(_op, _CARDS, "vectorized", _run, _in_squares)
for _op in (_avg_pool2d, avg_pool2d_input_grad, *_ADAPTIVE):
    _when = _one_window_grad if _op.name.endswith("grad") else _one_window
    _register(_op, _CARDS, "planes", getattr(cuda.pool2d, f"{_op.name}_planes"), _when)
for _op in (*_POOLINGS, *_GRADIENTS, *_ADAPTIVE):
    _register(_op, _CARDS, "channels_last", getattr(cuda.pool2d_channels_last, _op.name))
