"""Which kernels compute layer, group and batch norm, on the processor and on cards."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from minigrad.dispatch import KEPT
from minigrad.kernels import cpu, cuda
from minigrad.kernels.channels_last import is_channels_last, nhwc
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.kernels.source import computed_dtype
from minigrad.op import Op, get_op
from minigrad.ops.batch_norm_inference import batch_norm_inference, batch_norm_weight_grad
from minigrad.ops.norm import batch_norm_grad, group_norm_grad, grouped_shape, layer_norm_grad
from minigrad.ops.reduce import count

HALVES = "f4 f8 f2 bf16"
"""What the CUDA kernels above the first rungs take."""

# A row of more columns than this is long enough for the block rung to beat one warp.
WARP_COLUMNS = 1024


def _for_kernels(x: Any, *parameters: Any) -> list:
    """What stands for rows or channels of ``x`` as CUDA kernels take it: float32 beside 16 bits."""
    dtype = computed_dtype(x.dtype)
    return [p if p is None or p.dtype is dtype or p.dtype == dtype else p.astype(dtype) for p in parameters]


def _written_by_kernels(run: Callable, outs: tuple) -> None:
    """``run((dx, dweight, dbias))`` on outputs as kernels take them, dx as it is; then fill ``outs``."""
    dx, *sums = outs
    dtype = computed_dtype(dx.dtype)
    if sums[0].dtype == sums[1].dtype == dtype:  # nearly always
        run(outs)
        return
    wide = [s if s.dtype == dtype else cuda.workspace(s, s.shape, dtype) for s in sums]
    run((dx, *wide))
    for own, computed in zip(sums, wide, strict=True):
        if own.dtype != dtype:
            own[...] = computed


def _has_elements(x: Any, *rest: Any, **options: Any) -> bool:
    return x.size > 0


def _of_alike(when: Callable) -> Callable:
    """The condition of a gradient's kernel: that of the forward pass, and that ``g`` is like ``x``."""
    return lambda g, x, *rest, **options: g.dtype == x.dtype and when(x, *rest, **options)


def _register_cpu(forward: Op, backward: Op, shape_of: Any) -> None:
    """Register the CPU kernels, which see ``x`` as ``shape_of(x, axes, parameters)``."""
    run, run_grad = getattr(cpu.norm, forward.name), getattr(cpu.norm, backward.name)

    @forward.kernel("cpu", name="fused", when=_has_elements)
    def _(outs, x, weight, bias, *, axes, parameters, eps, running=None):
        """One walk for the statistics, one for the result."""
        shape = shape_of(x, axes, parameters)
        y, mean, rstd = outs
        run(y.reshape(shape), mean, rstd, x.reshape(shape), weight, bias, eps, get_num_threads())
        if running is not None:
            running.move(mean, rstd, eps)

    @backward.kernel("cpu", name="fused", when=_has_elements)
    def _(outs, g, x, mean, rstd, weight, *, axes, parameters):
        """One walk for the sums, one for the gradient of x."""
        shape = shape_of(x, axes, parameters)
        dx, dweight, dbias = outs
        g, x = g.reshape(shape), x.reshape(shape)
        run_grad(dx.reshape(shape), dweight, dbias, g, x, mean, rstd, weight, get_num_threads())


def _register_rows(forward: Op, backward: Op, shape_of: Any) -> None:
    """Register the CUDA kernels of layer or group norm, which see ``x`` as ``shape_of`` has it."""
    run, run_grad = getattr(cuda.norm, forward.name), getattr(cuda.norm, backward.name)

    def columns(x, axes, parameters):
        return count(shape_of(x, axes, parameters), axes)

    def is_filled(x, *rest, axes, parameters, **options):
        return x.size > 0 and columns(x, axes, parameters) < cuda.norm.MAX_COLUMNS

    def has_long_rows(x, *rest, axes, parameters, **options):
        return x.size > 0 and WARP_COLUMNS < columns(x, axes, parameters) < cuda.norm.MAX_COLUMNS

    def fits_registers(x, *rest, axes, parameters, **options):
        return x.size > 0 and columns(x, axes, parameters) <= cuda.norm_registers.MAX_COLUMNS

    def register(name, when, run, run_grad, summary):
        def kernel(outs, x, weight, bias, *, axes, parameters, eps):
            y, *statistics = outs
            shape = shape_of(x, axes, parameters)
            inputs = _shaped(x, shape), *_for_kernels(x, weight, bias)
            run((_shaped(y, shape), *statistics), *inputs, eps)

        def grad_kernel(outs, g, x, mean, rstd, weight, *, axes, parameters):
            dx, *sums = outs
            shape = shape_of(x, axes, parameters)
            inputs = _shaped(g, shape), _shaped(x, shape), *_for_kernels(x, mean, rstd, weight)
            _written_by_kernels(lambda outs: run_grad(outs, *inputs), (_shaped(dx, shape), *sums))

        kernel.__doc__ = grad_kernel.__doc__ = summary
        dtypes = HALVES if name in ("block", "registers") else "f4 f8"
        forward.kernel("cuda", "sim", name=name, dtypes=dtypes, when=when)(kernel)
        backward.kernel("cuda", "sim", name=name, dtypes=dtypes, when=_of_alike(when))(grad_kernel)

    for rung, when, summary in (
        ("naive", is_filled, "One thread for each row: the definition."),
        ("warp", is_filled, "One warp for each row: loads are coalesced, sums combined by shuffles."),
        ("block", has_long_rows, "One block for each row, for rows too long for one warp."),
    ):
        register(rung, when, partial(run, rung), partial(run_grad, rung), summary)
    in_registers = getattr(cuda.norm_registers, forward.name), getattr(cuda.norm_registers, backward.name)
    summary = "A row is read once, 16 bytes a load, and kept in registers; its gradients in one walk."
    register("registers", fits_registers, *in_registers, summary)


def _shaped(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` in this shape: to see it as a view takes a microsecond."""
    return x if x.shape == shape else x.reshape(shape)


def _as_matrix(x: Any, axes: tuple[int, ...], _parameters: Any) -> tuple[int, int]:
    columns = count(x.shape, axes)
    return x.size // columns, columns


def _as_it_is(x: Any, _axes: Any, _parameters: Any) -> tuple[int, ...]:
    return x.shape


def _as_groups(x: Any, _axes: Any, parameters: tuple[int, ...]) -> tuple[int, ...]:
    return grouped_shape(x.shape, parameters)


def _as_planes(x: Any, _axes: Any = None, _parameters: Any = None) -> tuple[int, int, int]:
    """The shape (N, C, ...) of ``x`` as (N, C, area)."""
    samples, channels = x.shape[:2]
    return samples, channels, math.prod(x.shape[2:])


def _planes(x: Any) -> Any:
    """``x`` (samples, C, ...); where channels come last, its pixels are the samples: (N * H * W, C)."""
    return nhwc(x).reshape(-1, x.shape[1]) if is_channels_last(x) else x


def _as_given(x: Any) -> Any:
    return x


def _decides(x: Any, *_: Any, axes: Any, parameters: Any, **__: Any) -> tuple:
    """What the conditions of the CUDA kernels look at."""
    return x.shape, x.strides, axes, parameters, cuda.card_of(x)


for _op in (layer_norm_grad, group_norm_grad, batch_norm_grad):
    get_op(_op.name.removesuffix("_grad")).kernels.decides = _decides
    _op.kernels.decides = lambda g, x, *rest, **options: (x.dtype, *_decides(x, **options))

_register_cpu(get_op("layer_norm"), layer_norm_grad, _as_matrix)
_register_cpu(get_op("group_norm"), group_norm_grad, _as_groups)
_register_cpu(get_op("batch_norm"), batch_norm_grad, _as_planes)
_register_rows(get_op("layer_norm"), layer_norm_grad, _as_it_is)
_register_rows(get_op("group_norm"), group_norm_grad, _as_groups)


def _fits_clusters(arrays: int) -> Callable:
    """The condition that clusters of blocks can hold the channels of so many arrays like ``x``."""
    return lambda x, *rest, **options: (
        x.size > 0 and not is_channels_last(x) and cuda.batch_norm_cluster.takes(x, arrays)
    )


def _fits_registers(arrays: int) -> Callable:
    """The condition that blocks can hold the columns of so many arrays like ``x``, of rows of features."""
    return lambda x, *rest, **options: (
        x.size > 0 and cuda.batch_norm_registers.takes(_planes(x).shape, x.dtype.itemsize, arrays)
    )


def _register_channels(
    rung: str,
    module: Any,
    when: Callable = _has_elements,
    when_grad: Callable = _has_elements,
    **options: Any,
) -> None:
    run = getattr(module, f"batch_norm_{rung}")
    run_grad = getattr(module, f"batch_norm_grad_{rung}")
    seen = _planes if "channels_last" in options else _as_given

    def kernel(outs, x, weight, bias, *, axes, parameters, eps, running):
        y, mean, rstd = outs
        run((seen(y), mean, rstd), seen(x), *_for_kernels(x, weight, bias), eps, running)

    def grad_kernel(outs, g, x, mean, rstd, weight, *, axes, parameters):
        dx, dweight, dbias = outs
        inputs = seen(g), seen(x), *_for_kernels(x, mean, rstd, weight)
        _written_by_kernels(lambda outs: run_grad(outs, *inputs), (seen(dx), dweight, dbias))

    kernel.__doc__, grad_kernel.__doc__ = run.__doc__, run_grad.__doc__
    for target, registered, condition in (
        (get_op("batch_norm"), kernel, when),
        (batch_norm_grad, grad_kernel, _of_alike(when_grad)),
    ):
        target.kernel("cuda", "sim", name=rung, when=condition, **options)(registered)


_register_channels("naive", cuda.batch_norm, dtypes="f4 f8", channels_last=KEPT)
_register_channels("split", cuda.batch_norm, dtypes=HALVES, channels_last=KEPT)
_register_channels("cluster", cuda.batch_norm_cluster, _fits_clusters(1), _fits_clusters(2), dtypes=HALVES)
_register_channels(
    "registers",
    cuda.batch_norm_registers,
    _fits_registers(1),
    _fits_registers(2),
    dtypes=HALVES,
    channels_last=KEPT,
)


@batch_norm_inference.kernel("cpu", name="fused", when=_has_elements)
def _(y, x, mean, var, weight, bias, *, eps):
    """One walk over the input, with a scale and a shift for each channel."""
    y, x = (a.reshape(_as_planes(x)) for a in (y, x))
    cpu.norm.batch_norm_inference(y, x, mean, var, weight, bias, eps, get_num_threads())


@batch_norm_weight_grad.kernel("cpu", name="fused", when=_has_elements)
def _(out, g, x, mean):
    """One walk over the gradient and the input, with a sum for each channel."""
    g, x = (a.reshape(_as_planes(x)) for a in (g, x))
    cpu.norm.batch_norm_grad(None, out, None, g, x, mean, None, None, get_num_threads())


@batch_norm_inference.kernel(
    "cuda", "sim", name="fused", dtypes=HALVES, when=_has_elements, channels_last=KEPT
)
def _(y, x, mean, var, weight, bias, *, eps):
    """One elementwise kernel."""
    given = _for_kernels(x, mean, var, weight, bias)
    cuda.batch_norm.batch_norm_inference(_planes(y), _planes(x), *given, eps)


@batch_norm_weight_grad.kernel(
    "cuda", "sim", name="split", dtypes=HALVES, when=_of_alike(_has_elements), channels_last=KEPT
)
def _(out, g, x, mean):
    """Several blocks for each channel; a second launch adds their sums."""
    cuda.batch_norm.batch_norm_weight_grad(out, _planes(g), _planes(x), *_for_kernels(x, mean))
