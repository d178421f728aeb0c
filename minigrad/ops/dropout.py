"""Dropout; https://jmlr.org/papers/v15/srivastava14a.html.

No mask is kept. Whether an element is dropped depends on a seed, an offset and its place alone
(:mod:`minigrad.kernels.philox`), so the gradient computes the mask again, and it is the same on every device.
The place is that in memory: of images stored channels last, other elements are dropped than in C order.
"""

from __future__ import annotations

from typing import Any

from minigrad.autograd import wrap
from minigrad.dtypes import is_floating
from minigrad.kernels import cpu, cuda, philox
from minigrad.kernels.channels_last import NCHW, NHWC, is_channels_last
from minigrad.kernels.cpu.threads import get_num_threads
from minigrad.op import op
from minigrad.ops.shape import permute
from minigrad.random import default_generator


@op(name="dropout")
def _dropout(xp, x, *, p, seed, offset):
    """``x`` scaled by 1 / (1 - p), or times 0 where the stream (seed, offset) has a number below ``p``."""
    kept = philox.kept(xp, x.size, p, seed, offset).reshape(x.shape)
    return x * (kept.astype(x.dtype) * x.dtype.type(kept_scale(p)))


_dropout.grad(x=lambda g, _y, _x, *, p, seed, offset: _dropout(g, p=p, seed=seed, offset=offset))


def kept_scale(p: float) -> float:
    """The factor of what a dropout keeps."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


def dropout(input: Any, p: float = 0.5, training: bool = True) -> Any:
    """Each element set to 0 with probability ``p``, the others scaled by 1 / (1 - p); only in training."""
    _check("dropout", input, p)
    if not training or p == 0.0:
        return input
    seed, offset = default_generator.next_stream(input.device)
    if is_channels_last(input._array):  # in the order of memory, so that the result lies as the input does
        return permute(_dropout(permute(input, NHWC), p=p, seed=seed, offset=offset), NCHW)
    return _dropout(input, p=p, seed=seed, offset=offset)


def dropout2d(input: Any, p: float = 0.5, training: bool = True) -> Any:
    """As :func:`dropout`, for whole channels of a batch (N, C, H, W) or (N, C, L);
    https://arxiv.org/abs/1411.4280."""
    _check("dropout2d", input, p)
    if input.ndim not in (3, 4):
        raise ValueError(f"dropout2d: expected (N, C, H, W) or (N, C, L), got shape {input.shape}")
    if not training or p == 0.0:
        return input
    channels = (*input.shape[:2], *(1,) * (input.ndim - 2))
    with input.device.active():
        ones = wrap(input.device.xp.ones(channels, input.dtype), input.device)
    return input * dropout(ones, p)


def _check(name: str, input: Any, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: p must be a probability in [0, 1], got {p}")
    if not is_floating(input.dtype):
        raise TypeError(f"{name}: expected a floating dtype, got {input.dtype}")


# ---- kernels ----------------------------------------------------------------------------------------------


@_dropout.kernel("cpu", name="vectorized")
def _(out, x, *, p, seed, offset):
    """The generator and the product in vectors, in stretches that stay in the L1 cache."""
    cpu.random.dropout(out, x, philox.threshold(p), kept_scale(p), seed, offset, get_num_threads())


def _register_cuda(name: str, run: Any) -> None:
    def kernel(out, x, *, p, seed, offset):
        run(out, x, philox.threshold(p), kept_scale(p), seed, offset)

    kernel.__doc__ = run.__doc__
    dtypes = "f4 f8 f2 bf16" if name == "block" else "f4 f8"
    _dropout.kernel("cuda", "sim", name=name, dtypes=dtypes)(kernel)


for _name in ("naive", "block"):
    _register_cuda(_name, getattr(cuda.random, f"dropout_{_name}"))
