"""Two-dimensional convolution and its two gradients, three ops whose gradients are each other.

The transposed convolution is the gradient for the input, given another name.

All arrays are NCHW: x (N, C, H, W), weight (O, C / groups, KH, KW), output (N, O, OH, OW). The convolution
is linear in x and in the weight, so the gradient for one is linear in the other and in the output's
gradient: differentiating any of the three ops gives the other two.

Under autocast, where tensor cores make all three, images are of 16 bits and the weight stays float32: the
launch that brings it in order for the kernels rounds it, too, and its gradient is not rounded at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from minigrad.dispatch import KEPT, Spec
from minigrad.dtypes import FLOAT32, is_half
from minigrad.graph import mode
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.mixed_precision import LOWER, cast_inputs
from minigrad.op import Op, op
from minigrad.op_inputs import check_dtypes
from minigrad.ops import conv_choice_on_cards as on_card
from minigrad.ops import conv_phases
from minigrad.ops.conv_choice import (
    PREFERS,
    PREFERS_WINOGRAD_ON_A_CARD,
    fits_depthwise,
    fits_winograd_in_phases,
    fits_winograd_on_a_card,
)
from minigrad.ops.padding import pad
from minigrad.ops.reduce import sum
from minigrad.ops.windows import output_size, pair, windows

# ---- the three ops ----------------------------------------------------------------------------------------


@op(name="conv2d", promote=None, ops_alone=True)
def _conv2d(xp, x, weight, bias=None, *, stride, padding, dilation, groups):
    view = windows(xp, x, weight.shape[2:], stride, padding, dilation)
    n, c, oh, ow, kh, kw = view.shape
    view = view.reshape(n, groups, c // groups, oh, ow, kh, kw)
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    out = xp.einsum("ngchwij,gocij->ngohw", view, grouped, optimize=True)
    out = out.reshape(n, weight.shape[0], oh, ow)
    return out if bias is None else out + bias[:, None, None]


@op(promote=None, ops_alone=True)
def conv2d_input_grad(xp, g, weight, *, input_size, stride, padding, dilation, groups):
    """The gradient of conv2d for its input of size (H, W) ``input_size``."""
    (n, o, oh, ow), (_, c, kh, kw) = g.shape, weight.shape
    (h, w), (sh, sw), (ph, pw), (dh, dw) = input_size, stride, padding, dilation
    padded = xp.zeros((n, groups, c, h + 2 * ph, w + 2 * pw), g.dtype)
    g = g.reshape(n, groups, o // groups, oh, ow)
    weight = weight.reshape(groups, o // groups, c, kh, kw)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            padded[..., rows, columns] += xp.einsum("ngohw,goc->ngchw", g, weight[..., i, j], optimize=True)
    return padded.reshape(n, groups * c, *padded.shape[-2:])[:, :, ph : ph + h, pw : pw + w]


@op(promote=None, ops_alone=True)
def conv2d_weight_grad(xp, g, x, *, kernel_size, stride, padding, dilation, groups, in_float32=False):
    """The gradient of conv2d for its weight, whose kernels have size (KH, KW) ``kernel_size``, in the dtype
    of ``g``; or where that has 16 bits, in float32."""
    view = windows(xp, x, kernel_size, stride, padding, dilation)
    n, c, oh, ow, kh, kw = view.shape
    view = view.reshape(n, groups, c // groups, oh, ow, kh, kw)
    o = g.shape[1]
    g = g.reshape(n, groups, o // groups, oh, ow)
    grad = xp.einsum("ngohw,ngchwij->gocij", g, view, optimize=True)
    return grad.reshape(o, c // groups, kh, kw)


def _options(attrs: dict) -> dict:
    return {name: attrs[name] for name in ("stride", "padding", "dilation", "groups")}


def input_grad_options(x: Any, attrs: dict) -> dict:
    """The attributes of conv2d_input_grad for an input like ``x`` of an op with ``attrs``."""
    return {"input_size": x.shape[2:], **_options(attrs)}


def weight_grad_options(weight: Any, attrs: dict) -> dict:
    """The same of conv2d_weight_grad for a ``weight``."""
    return {"kernel_size": weight.shape[2:], "in_float32": weight.dtype == FLOAT32, **_options(attrs)}


_conv2d.grad(
    x=lambda g, _y, _x, weight, _bias, **attrs: conv2d_input_grad(g, weight, **input_grad_options(_x, attrs)),
    weight=lambda g, _y, x, _weight, _bias, **attrs: conv2d_weight_grad(
        g, x, **weight_grad_options(_weight, attrs)
    ),
    bias=lambda g, _y, _x, _weight, _bias, **attrs: sum(g, (0, 2, 3)),
)
conv2d_input_grad.grad(
    g=lambda gg, _y, _g, weight, **attrs: _conv2d(gg, weight, None, **_options(attrs)),
    weight=lambda gg, _y, g, _weight, **attrs: conv2d_weight_grad(
        g, gg, **weight_grad_options(_weight, attrs)
    ),
)
conv2d_weight_grad.grad(
    g=lambda gg, _y, _g, x, **attrs: _conv2d(x, gg, None, **_options(attrs)),
    x=lambda gg, _y, g, _x, **attrs: conv2d_input_grad(g, gg, **input_grad_options(_x, attrs)),
)


@_conv2d.shape
def _(x, weight, bias, *, stride, padding, dilation, groups):
    oh, ow = output_size("conv2d", x.shape, weight.shape[2:], stride, padding, dilation)
    return x.shape[0], weight.shape[0], oh, ow


@conv2d_input_grad.shape
def _(g, weight, *, input_size, stride, padding, dilation, groups):
    return g.shape[0], weight.shape[1] * groups, *input_size


@conv2d_weight_grad.shape
def _(g, x, *, kernel_size, stride, padding, dilation, groups, in_float32):
    shape = g.shape[1], x.shape[1] // groups, *kernel_size
    return Spec(shape, FLOAT32 if in_float32 and is_half(g.dtype) else g.dtype)


# ---- the functions ----------------------------------------------------------------------------------------


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Any:
    """The cross-correlation of ``input`` with ``weight``, plus ``bias``.

    Args:
        input: (N, C, H, W), or (C, H, W) for a single image.
        weight: (O, C / groups, KH, KW).
        bias: (O,), or None.
        stride, padding, dilation: one number, or (vertical, horizontal). ``padding`` is in zeros on each
            side; ``"valid"`` means 0, and ``"same"`` keeps the size (stride 1).
        groups: channels are split into so many groups that do not see one another.

    Returns:
        (N, O, OH, OW) with OH = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, or (O, OH, OW).

    Raises:
        ValueError: shapes or options do not fit; TypeError: dtypes differ.
    """
    return convolve(_conv2d, input, weight, bias, stride, padding, dilation, groups)


def convolve(
    op: Callable, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """``op``, which has the inputs and attributes of the op conv2d, for the arguments of :func:`conv2d`."""
    if input.ndim == 3:
        batch = convolve(op, input.unsqueeze(0), weight, bias, stride, padding, dilation, groups)
        return batch.squeeze(0)
    _check_shapes("conv2d", input, weight, bias, groups)
    if mode.autocast is not None:
        input, weight, bias = _lowered(input, weight, bias, groups)
    else:
        _check_one_dtype(input, weight, bias)
    stride = pair("conv2d", "stride", stride, 1)
    dilation = pair("conv2d", "dilation", dilation, 1)
    if padding == "same":
        input = _made_even(input, weight.shape[2:], dilation)
    padding = _padding(padding, weight.shape[2:], stride, dilation)
    return op(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _lowered(input: Any, weight: Any, bias: Any, groups: int) -> tuple[Any, Any, Any]:
    """The inputs of a convolution as autocast has them: in 16 bits, but for a weight that kernels round."""
    input, bias = cast_inputs(LOWER, (input, bias))
    if is_half(input.dtype) and weight.dtype == FLOAT32 and _weight_is_rounded_by_kernels(input, groups):
        _check_one_dtype(input, None, bias)
        return input, weight, bias
    input, weight = cast_inputs(LOWER, (input, weight))
    _check_one_dtype(input, weight, bias)
    return input, weight, bias


def _weight_is_rounded_by_kernels(input: Any, groups: int) -> bool:
    """Whether all passes run on tensor cores, with a weight of their own making."""
    usual = all(op.kernels.takes_shortcuts for op in (_conv2d, conv2d_input_grad, conv2d_weight_grad))
    on_cpu = input.device.type == "cpu"
    return usual and groups == 1 and not on_cpu and cuda.conv2d_tensor_core.is_supported(input._array)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
) -> Any:
    """The transpose of :func:`conv2d`: each pixel of ``input`` adds its multiple of the kernel to the output.

    What it computes is the gradient that conv2d with the same options has for its input. Where it enlarges
    images, it is also called a deconvolution; see https://arxiv.org/abs/1603.07285.

    Args:
        input: (N, C_in, H, W), or (C_in, H, W) for a single image.
        weight: (C_in, C_out / groups, KH, KW): what conv2d would take from C_out to C_in channels.
        bias: (C_out,), or None.
        stride, padding, dilation: those of the conv2d whose transpose it is; one number, or (vertical,
            horizontal). ``padding`` rows and columns are cut off on each side of the output.
        output_padding: rows and columns added at the bottom and on the right, less than the stride or than
            the dilation. With a stride, images of several sizes are made one size by conv2d: this says to
            which of them to go back.
        groups: channels are split into so many groups that do not see one another.

    Returns:
        (N, C_out, OH, OW) with OH = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1, or
        (C_out, OH, OW).

    Raises:
        ValueError: shapes or options do not fit; TypeError: dtypes differ.
    """
    name = "conv_transpose2d"
    if mode.autocast is not None:
        input, weight, bias = cast_inputs(LOWER, (input, weight, bias))
    if input.ndim == 3:
        options = stride, padding, output_padding, groups, dilation
        return conv_transpose2d(input.unsqueeze(0), weight, bias, *options).squeeze(0)
    _check_shapes(name, input, weight, bias, groups, transposed=True)
    for argument, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{name}: input is {input.dtype}, {argument} is {tensor.dtype}; use .to(dtype)")
    stride = pair(name, "stride", stride, 1)
    padding = pair(name, "padding", padding, 0)
    dilation = pair(name, "dilation", dilation, 1)
    extra = pair(name, "output_padding", output_padding, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(
            f"{name}: output_padding must be less than the stride or the dilation, got {extra} with stride "
            f"{stride} and dilation {dilation}"
        )
    height, width = transposed_size(input.shape, weight.shape[2:], stride, padding, dilation)
    size = height + extra[0], width + extra[1]
    if min(size) < 1:
        raise ValueError(
            f"{name}: the output would have size {size} (input shape {input.shape}, kernel "
            f"{tuple(weight.shape[2:])}, stride {stride}, padding {padding}, dilation {dilation})"
        )
    # With an output padding of a whole stride or more, conv2d would make more pixels than there are here.
    more = extra[0] // stride[0], extra[1] // stride[1]
    if any(more):
        input = pad(input, (0, more[1], 0, more[0]))
    out = conv2d_input_grad(
        input, weight, input_size=size, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def transposed_size(
    shape: tuple[int, ...], kernel: tuple, stride: tuple, padding: tuple, dilation: tuple
) -> tuple[int, ...]:
    """The smallest (H, W) that conv2d with these options takes to the last two dimensions of ``shape``; in
    one dimension, the smallest (L,)."""
    axes = zip(shape[-len(kernel) :], kernel, stride, padding, dilation, strict=True)
    return tuple([(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes])


def _check_shapes(name: str, x: Any, weight: Any, bias: Any, groups: int, transposed: bool = False) -> None:
    bias_shape = None if bias is None else bias.shape
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"{name}: groups must be an integer of at least 1, got {groups!r:.60}")
    _check_sizes(name, x.shape, weight.shape, bias_shape, groups, transposed)


@lru_cache(maxsize=1024, typed=True)  # as the sizes of outputs
def _check_sizes(
    name: str, x: tuple, weight: tuple, bias: tuple | None, groups: int, transposed: bool
) -> None:
    shapes = f"(input shape {x}, weight shape {weight}, groups {groups})"
    if len(x) != 4 or len(weight) != 4:
        raise ValueError(f"{name}: input and weight need 4 dimensions {shapes}")
    if weight[0] % groups:
        side = "input" if transposed else "output"
        raise ValueError(f"{name}: {weight[0]} {side} channels cannot be split into {groups} groups {shapes}")
    channels = weight[1] * groups, weight[0]
    in_channels, out_channels = channels[::-1] if transposed else channels
    if x[1] != in_channels:
        raise ValueError(f"{name}: weight expects {in_channels} input channels, input has {x[1]} {shapes}")
    if bias is not None and bias != (out_channels,):
        raise ValueError(f"{name}: bias must have shape {(out_channels,)}, got {bias}")
    if transposed and 0 in (*x[2:], *weight[2:]):
        raise ValueError(f"{name}: images and kernels must have at least size 1 {shapes}")


def _check_one_dtype(*inputs: Any) -> None:
    """Raise unless the inputs of conv2d, but for those that are None, are of one dtype."""
    for other in inputs[1:]:
        if other is not None and other.dtype is not inputs[0].dtype:
            check_dtypes(_conv2d, inputs, of_all=True)


def _made_even(x: Any, kernel: tuple, dilation: tuple) -> Any:
    """``x`` with the row below and the column on the right that "same" adds more for even kernels."""
    bottom, right = (d * (k - 1) % 2 for d, k in zip(dilation, kernel, strict=True))
    return pad(x, (0, right, 0, bottom)) if bottom or right else x


def _padding(padding: Any, kernel: tuple, stride: tuple, dilation: tuple) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"conv2d: padding 'same' needs stride 1, got stride {stride}")
        vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return vertical // 2, horizontal // 2
    if isinstance(padding, str):
        raise ValueError(f"conv2d: padding is a number, a pair, 'valid' or 'same', got {padding!r}")
    return pair("conv2d", "padding", padding, 0)


# ---- kernels ----------------------------------------------------------------------------------------------


# Of rounding errors, by Winograd's matrices; tests/kernels/test_conv2d_winograd_kernels.py computes it.
AMPLIFICATION = 9.0


def _input_grad_planes(out: Any, g: Any, weight: Any, *options: int) -> None:
    # It multiplies zeros around g too: NaN or infinity in a tap would reach pixels that the tap does not.
    finite = np.isfinite(weight.sum())
    run = cpu.conv2d.input_grad_planes if finite else cpu.conv2d.input_grad_direct
    run(out, g, weight, *options)


_input_grad_planes.__doc__ = cpu.conv2d.input_grad_planes.__doc__


def _run_on_cpu(which: str, rung: str) -> Any:
    name = f"{which}_{rung}"
    return _input_grad_planes if name == "input_grad_planes" else getattr(cpu.conv2d, name)


WITH_RELU: set[Callable] = set()
"""The kernels of conv2d that can be told ``relu=True``, and then store what is left of their sums by ReLU."""


def _register(
    target: Op, device: tuple[str, ...], name: str, run: Any, when: Any = None, **conditions: Any
) -> None:
    threads = (lambda: (get_num_threads(),)) if device == ("cpu",) else tuple

    def kernel(
        out,
        *arrays,
        stride,
        padding,
        dilation,
        groups,
        input_size=None,
        kernel_size=None,
        in_float32=False,
        **fused,
    ):
        run(out, *arrays, *stride, *padding, *dilation, groups, *threads(), **fused)

    kernel.__doc__ = run.__doc__
    target.kernel(*device, name=name, when=when, **conditions)(kernel)
    if target is _conv2d and device != ("cpu",):
        WITH_RELU.add(kernel)


def _register_on_cpu(target: Op, function: str) -> None:
    def register(rung: str, run: Any, when: Any = None, **conditions: Any) -> None:
        _register(target, ("cpu",), rung, run, when, prefer=PREFERS[function].get(rung), **conditions)

    for rung in ("direct", "im2col", "implicit_gemm", "planes"):
        register(rung, _run_on_cpu(function, rung))
    register("depthwise", _run_on_cpu(function, "depthwise"), fits_depthwise)
    winograd = getattr(conv_phases, function)
    register("winograd", winograd, fits_winograd_in_phases, dtypes="f4", amplification=AMPLIFICATION)


def _register_on_cards(target: Op, function: str) -> None:
    def register(rung: str, module: Any, when: Any = None, **conditions: Any) -> None:
        run = getattr(module, f"{function}_tiled" if rung == "tiled" else function)
        _register(target, ("cuda", "sim"), rung, run, when, **conditions)

    target.kernels.decides = on_card.decides
    fits, gemm = on_card.FITS[function], cuda.conv2d_implicit_gemm
    register("direct", cuda.conv2d, dtypes="f4 f8")
    register("tiled", gemm, fits["implicit_gemm"], dtypes="f4 f8")
    register("implicit_gemm", gemm, fits["implicit_gemm"], dtypes="f4 f8")
    register("pipelined", cuda.conv2d_pipelined, fits["pipelined"], dtypes="f4")

    few = on_card.has_few_outputs_of_channel if function == "input_grad" else None
    choice: dict[str, Any] = {"prefer": few, "dtypes": "f4 f8 f2 bf16"}
    register("depthwise", cuda.conv2d_depthwise, fits["depthwise"], **choice)
    register("strips", cuda.conv2d_strips, fits["strips"], **choice)

    choice = {"prefer": PREFERS_WINOGRAD_ON_A_CARD[function], "amplification": AMPLIFICATION}
    register("winograd", cuda.conv2d_winograd, fits_winograd_on_a_card, dtypes="f4", **choice)

    is_weight_grad = function == "weight_grad"
    tensor_core = cuda.conv2d_tensor_core_weight_grad if is_weight_grad else cuda.conv2d_tensor_core
    choice = {"prefer": on_card.prefers_tensor_cores, "layout": "strided", "channels_last": KEPT}
    register("tensor_core", tensor_core, on_card.may_use_tensor_cores, dtypes="f2 bf16 f4", **choice)
    register("pointwise", cuda.conv2d_pointwise, on_card.suits_pointwise, dtypes="f2 bf16 f4", **choice)
    choice["prefer"], dtypes = on_card.prefers_wgmma, "f2 bf16" if is_weight_grad else "f2 bf16 f4"
    register("wgmma", cuda.conv2d_wgmma, on_card.suits_wgmma, dtypes=dtypes, **choice)


for _op, _function in (
    (_conv2d, "forward"),
    (conv2d_input_grad, "input_grad"),
    (conv2d_weight_grad, "weight_grad"),
):
    _register_on_cpu(_op, _function)
    _register_on_cards(_op, _function)
