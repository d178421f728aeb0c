"""Automatic mixed precision: matrix products in 16 bits, sensitive ops in float32.

Inside ``with autocast(device_type):`` the ops of that type of device convert their floating inputs first,
each by a policy of its own (https://arxiv.org/abs/1710.03740; the lists are PyTorch's for CUDA):

- *lower*: products of matrices, convolutions, attention and recurrent layers run in the 16-bit dtype;
- *float32*: powers, exponentials and logarithms, sums, softmax, norms and losses run in float32;
- all others run in the dtype of their inputs, the widest where these differ.

Parameters stay float32: a conversion is an op like others, whose gradient goes back to float32. float64 is
never converted. The walk back computes in the dtypes of the forward pass, inside of a context or not.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np

from minigrad.devices import KINDS
from minigrad.dtypes import FLOAT16, FLOAT32, bfloat16, is_floating, is_half, to_dtype
from minigrad.graph import Variable, mode
from minigrad.recording import recorder

__all__ = ["autocast", "get_autocast_dtype", "is_autocast_enabled"]

LOWER, WIDER = "lower", "float32"

POLICIES = {
    **dict.fromkeys(("matmul", "linear", "lstm", "rnn", "gru"), LOWER),
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "log2", "log10", "pow"), WIDER),
    **dict.fromkeys(("tan", "asin", "acos", "sinh", "cosh"), WIDER),
    **dict.fromkeys(("sum", "sum_of_squares", "prod", "cumsum", "softmax", "log_softmax"), WIDER),
    **dict.fromkeys(("layer_norm", "group_norm"), WIDER),
    **dict.fromkeys(("cross_entropy", "nll_loss", "l1_loss", "mse_loss", "huber_loss"), WIDER),
    **dict.fromkeys(("binary_cross_entropy_with_logits", "weighted_logits_loss"), WIDER),
    **dict.fromkeys(("kl_div", "kl_div_of_logs"), WIDER),
}
"""By the op's name. Convolutions, and functions that are composed of ops, convert their inputs themselves."""


class _State(NamedTuple):
    """What holds inside a context: the 16-bit dtype by the type of device, and the converted parameters.

    ``cache`` is None where nothing is to be kept; contexts inside of one another share it. Its keys are
    (the id of a parameter, a dtype), its values (the parameter, when it was written to, what it became, and
    the step that was being captured, or None).
    """

    dtypes: dict[str, np.dtype]
    cache: dict[tuple[int, np.dtype], tuple[Variable, int, Variable, Any]] | None


class autocast(contextlib.ContextDecorator):
    """Context manager and decorator: run ops in the precision that suits them. PyTorch's ``torch.autocast``.

    ::

        with mg.autocast("cuda", mg.bfloat16):
            loss = criterion(model(x), target)
        loss.backward()

    Args:
        device_type: ``"cpu"``, ``"cuda"`` or ``"sim"``: ops on other devices stay as they are.
        dtype: bfloat16 or float16, whose small range needs a :class:`minigrad.amp.GradScaler`; by default
            bfloat16 on ``cpu``, float16 on ``cuda`` and ``sim``.
        enabled: False switches it off inside.
        cache_enabled: convert a parameter once, not at each use, until the outermost context ends or the
            parameter is written to. By default as it is outside, where it is on.

    Raises:
        ValueError: there is no such type of device; TypeError: ``dtype`` is neither of the two.
        ImportError: bfloat16 needs the package ml_dtypes.
    """

    def __init__(
        self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ):
        _check_device_type("autocast", device_type)
        self.device_type = device_type
        self.enabled = bool(enabled)
        self.cache_enabled = cache_enabled
        self.dtype = None
        if self.enabled:
            self.dtype = _default_dtype(device_type) if dtype is None else to_dtype(dtype)
            if not is_half(self.dtype):
                raise TypeError(f"autocast: dtype must be bfloat16 or float16, got {self.dtype}")
        self._before: list[_State | None] = []

    def _recreate_cm(self) -> autocast:
        # For each call of a decorated function: threads share none.
        return autocast(self.device_type, self.dtype, self.enabled, self.cache_enabled)

    def __enter__(self) -> autocast:
        before = mode.autocast
        self._before.append(before)
        dtypes = {} if before is None else dict(before.dtypes)
        if self.dtype is None:
            dtypes.pop(self.device_type, None)
        else:
            dtypes[self.device_type] = self.dtype
        cache = {} if before is None else before.cache
        if self.cache_enabled is not None:
            cache = (cache or {}) if self.cache_enabled else None
        mode.autocast = _State(dtypes, cache) if dtypes else None
        return self

    def __exit__(self, *exc: object) -> None:
        mode.autocast = self._before.pop()


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether ops of this thread on this type of device run under :class:`autocast`."""
    _check_device_type("is_autocast_enabled", device_type)
    return mode.autocast is not None and device_type in mode.autocast.dtypes


def get_autocast_dtype(device_type: str) -> np.dtype:
    """The 16-bit dtype of :class:`autocast`, here and now; outside of it the default one."""
    _check_device_type("get_autocast_dtype", device_type)
    if is_autocast_enabled(device_type):
        return mode.autocast.dtypes[device_type]
    return _default_dtype(device_type)


def _default_dtype(device_type: str) -> np.dtype:
    return bfloat16() if device_type == "cpu" else FLOAT16


def _check_device_type(name: str, device_type: Any) -> None:
    if device_type not in KINDS:
        raise ValueError(f"{name}: device_type is one of {', '.join(KINDS)}, got {device_type!r}")


# ---- for ops, and for functions that are composed of ops --------------------------------------------------


def cast_inputs(policy: str, args: tuple) -> tuple:
    """``args`` with the floating tensors among them converted as ``policy`` has it, where autocast is on."""
    low = None
    for arg in args:  # not next(), which would take a generator, at each call of an op
        if isinstance(arg, Variable):
            low = mode.autocast.dtypes.get(arg.device.type)
            break
    if low is None:
        return args
    dtype = low if policy == LOWER else FLOAT32
    return tuple([_converted(a, dtype) if _is_to_convert(a, dtype) else a for a in args])


def _is_to_convert(arg: Any, dtype: np.dtype) -> bool:
    if not isinstance(arg, Variable):
        return False
    own = arg._array.dtype
    return own is not dtype and own != dtype and is_floating(own) and own.itemsize <= FLOAT32.itemsize


def _converted(tensor: Any, dtype: np.dtype) -> Any:
    """``tensor`` in another dtype; a parameter's conversion is kept."""
    cache = mode.autocast.cache
    if cache is None or dtype == FLOAT32 or not (tensor.requires_grad and tensor._node is None):
        return tensor.to(dtype)
    written = 0 if tensor._written is None else tensor._written[0]
    key = id(tensor), dtype
    found = cache.get(key)
    # What was made under no_grad has no graph, and would keep gradients from the parameter; what was made
    # before a step is captured is no part of that step, and would not follow the parameter.
    step = recorder.current
    if found is None or found[1] != written or found[2].requires_grad != mode.grad or found[3] is not step:
        found = cache[key] = tensor, written, tensor.to(dtype), step
    return found[2]


def in_float32(function: Any, *args: Any, policy: str | None = None, **options: Any) -> Any:
    """``function(*args, **options)`` with tensors of 16 bits among the ``args`` as float32.

    What comes out is rounded to the dtype of the first; but under autocast not if ``policy`` is float32.
    """
    first: Any = args[0]
    result = function(*map(wide, args), **options)
    if policy == WIDER and is_autocast_enabled(first.device.type):
        return result
    return result.to(first.dtype)


def wide(arg: Any) -> Any:
    """A tensor of 16 bits as float32; anything else as it is."""
    is_narrow = isinstance(arg, Variable) and is_half(arg.dtype)
    return arg.to(FLOAT32) if is_narrow else arg
