"""Convolution, bias and ReLU in one kernel, which applies the last two while the sums are in registers.

On a card ReLU by itself reads and writes the whole output again, in a launch of its own. What is computed are
the same bits; so :class:`minigrad.nn.Sequential` may put this op in the place of a Conv2d and the ReLU behind
it.
"""

from __future__ import annotations

from typing import Any

from minigrad.dispatch import KEPT, Kernel
from minigrad.kernels import cpu, cuda
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import get_op, op
from minigrad.ops.activation import relu_grad
from minigrad.ops.conv import WITH_RELU, convolve

_conv2d = get_op("conv2d")


@op(name="conv2d_relu", promote=None, ops_alone=True)
def _conv2d_relu(xp, x, weight, bias=None, *, stride, padding, dilation, groups):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return xp.maximum(_conv2d.reference(xp, x, weight, bias, **options), 0)


@_conv2d_relu.grad
def _(g, y, x, weight, bias, *, needed=None, **options):
    """That of the convolution, where the output is above 0."""
    wanted = [need or None for need in needed]
    return _conv2d.apply_gradient(relu_grad(g, y), None, (x, weight, bias), options, wanted)


@_conv2d_relu.shape
def _(x, weight, bias, **options):
    return _conv2d._shape_rule(x, weight, bias, **options)


def conv2d_relu(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Any:
    """``relu(conv2d(...))``, bit for bit, with ReLU applied before the sums are stored.

    The arguments and errors are those of :func:`minigrad.nn.functional.conv2d`, and so are the kernels: those
    that ``use_kernel("conv2d", ...)`` selects, or a kernel of one's own, run here too.
    """
    return convolve(_conv2d_relu, input, weight, bias, stride, padding, dilation, groups)


# ---- kernels ----------------------------------------------------------------------------------------------


def _relu_on_cpu(out: Any) -> None:
    cpu.elementwise.relu(out, out, get_num_threads())


def _relu_on_card(out: Any) -> None:
    cuda.elementwise.ACTIVATIONS["relu"](out, out)


def _register(device_type: str, dtypes: str, relu: Any, channels_last: str | None) -> None:
    def kernel_for(*arrays: Any, **options: Any) -> Kernel | None:
        return _conv2d.kernels.choose(device_type, arrays[0].dtype, list(arrays), options)

    def has_kernel(x: Any, *rest: Any, **options: Any) -> bool:
        # In 16 bits not always; where the reference is selected, kernel() runs it.
        return x.itemsize > 2 or kernel_for(x, *rest, **options) is not None

    @_conv2d_relu.kernel(
        device_type,
        name="fused",
        dtypes=dtypes,
        layout="strided",
        when=has_kernel,
        channels_last=channels_last,
    )
    def kernel(out, *arrays, **options):
        """The kernel that conv2d would run, with ReLU in its epilogue, or else in place."""
        xp = cuda.array_module(out)
        chosen = kernel_for(*arrays, **options)
        if chosen is None:
            out[...] = _conv2d_relu.reference(xp, *arrays, **options)
            return
        if chosen.layout == "contiguous":
            arrays = tuple([None if a is None else xp.ascontiguousarray(a) for a in arrays])
        fits = chosen.channels_last == channels_last or out.flags.c_contiguous
        target = out if fits else cuda.workspace(out, out.shape)
        if chosen.run in WITH_RELU:
            chosen.run(target, *arrays, relu=True, **options)
        else:
            chosen.run(target, *arrays, **options)
            relu(target)
        if target is not out:
            out[...] = target


_register("cpu", "f4 f8", _relu_on_cpu, None)
_register("cuda", "f4 f8 f2 bf16", _relu_on_card, KEPT)
_register("sim", "f4 f8 f2 bf16", _relu_on_card, KEPT)
