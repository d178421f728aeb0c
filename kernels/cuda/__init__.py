"""The CUDA kernels: ``.cu`` files, with a Python module of the same name that launches each.

The modules (``matmul``, ``conv2d``, ...) take CuPy arrays, and then run on a card, or NumPy arrays, and then
run on the simulator (``minigrad.kernels.sim``). CuPy is imported, and a card looked for, only when
one is asked for.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from .memory import unused as unused
from .memory import workspace as workspace
from .memory import workspaces as workspaces

MODULES = (
    "attention",
    "attention_tensor_core",
    "attention_wgmma",
    "attention_wgmma_grad",
    "batch_norm",
    "batch_norm_cluster",
    "batch_norm_registers",
    "cast",
    "channel_sums",
    "conv2d",
    "conv2d_depthwise",
    "conv2d_implicit_gemm",
    "conv2d_merge_groups",
    "conv2d_parts",
    "conv2d_pipelined",
    "conv2d_pointwise",
    "conv2d_strips",
    "conv2d_tensor_core",
    "conv2d_tensor_core_weight_grad",
    "conv2d_wgmma",
    "conv2d_winograd",
    "cross_entropy",
    "cumsum",
    "elementwise",
    "embedding",
    "gather",
    "gemv",
    "index_check",
    "live",
    "loss",
    "matmul",
    "matmul_skinny",
    "matmul_warp_tile",
    "matmul_tensor_core",
    "matmul_wgmma",
    "nll_loss",
    "norm",
    "norm_registers",
    "optim",
    "optim_many",
    "pool2d",
    "pool2d_channels_last",
    "pool2d_rolling",
    "pool2d_rows",
    "pool2d_tiled",
    "pool2d_vectorized",
    "random",
    "recurrent",
    "recurrent_cluster",
    "recurrent_sequence",
    "reduce",
    "resample",
    "row_statistics",
    "segments",
    "softmax",
    "split_k",
    "transpose",
    "unscale",
)
"""The modules that launch kernels; each is loaded when it is first touched."""

INSTALL = 'pip install "minigrad[cuda13]" (or "minigrad[cuda12]" for a driver of CUDA 12)'


def is_available() -> bool:
    """Whether kernels can run on a card: CuPy can be imported, and finds a driver and a device."""
    return not why_unavailable()


@cache
def why_unavailable() -> str:
    """In one sentence, what is missing to run kernels on a card; empty if nothing is."""
    try:
        module = cupy()
    except ImportError as error:
        return str(error)
    try:
        count = module.cuda.runtime.getDeviceCount()
        module.cuda.nvrtc.getVersion()  # without the compiler CuPy finds a card, but computes nothing
    except Exception as error:  # whatever the driver says, the answer is that there is none to use
        return f"CuPy is installed, but CUDA cannot be used: {_first_line(error)}"
    return "" if count > 0 else "CuPy is installed, but there is no CUDA device"


def cupy() -> Any:
    """The module CuPy. Raises ImportError that says how to install it."""
    loaded = sys.modules.get("cupy")  # to import it again takes ten times as long
    if loaded is not None:
        return loaded
    try:
        return import_module("cupy")
    except ImportError as error:
        reason = (
            "is not installed" if isinstance(error, ModuleNotFoundError) else f"fails: {_first_line(error)}"
        )
        raise ImportError(
            f"kernels on a CUDA card need CuPy, which {reason}; install it with {INSTALL}"
        ) from error


def array_module(array: Any) -> Any:
    """NumPy or CuPy, whichever ``array`` is of."""
    return np if isinstance(array, np.ndarray) else cupy()


def card_of(array: Any) -> int | None:
    """The number of the card that ``array`` is on; None on the simulator, and of what is no array yet."""
    return getattr(getattr(array, "data", None), "device_id", None)


def compute_capability(array: Any) -> int:
    """Of the card that ``array`` is on, 90 for an H200, or of the one that the simulator stands in for."""
    if isinstance(array, np.ndarray):
        from ..sim import get_architecture

        return int(get_architecture().removeprefix("sm_").removesuffix("a"))
    return _compute_capability(array.data.device_id)


@cache
def _compute_capability(card: int) -> int:
    return int(cupy().cuda.Device(card).compute_capability)


def attribute(array: Any, name: str) -> int:
    """What CUDA says of the card that a CuPy array is on: ``"MultiProcessorCount"`` and the like."""
    return _attribute(array.data.device_id, name)


@cache
def _attribute(card: int, name: str) -> int:
    return cupy().cuda.Device(card).attributes[name]


def most_shared_bytes(array: Any) -> int:
    """The most shared memory that a block can have on the card that ``array`` is on, or on the one that the
    simulator stands in for."""
    if isinstance(array, np.ndarray):
        from ..sim import architectures, get_architecture

        return architectures.SHARED_BYTES[get_architecture()]
    return attribute(array, "MaxSharedMemoryPerBlockOptin")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
