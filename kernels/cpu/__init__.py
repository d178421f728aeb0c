"""The CPU kernels: arrays in, arrays out.

Every ``kernels/cpu/NAME.pyx`` is compiled once for each instruction-set level. The highest level that is
built and that this processor runs is chosen here, when the package is imported; the environment variable
``MINIGRAD_ISA`` (``x86_64_v3``, or ``v3`` for short) chooses another. The kernels of the level in use are
attributes of this module, ``cpu.matmul``, ``cpu.conv2d`` and so on, each loaded when it is first touched.
"""

import os
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES

from .threads import limited_spinning

MODULES = (
    "attention",
    "conv2d",
    "conv2d_winograd",
    "cumsum",
    "elementwise",
    "embedding",
    "loss",
    "lstm",
    "matmul",
    "norm",
    "optim",
    "peak",
    "pool2d",
    "random",
    "reduce",
    "softmax",
)
"""The extension modules that every level has."""

LEVELS = ("baseline", "x86_64_v2", "x86_64_v3", "x86_64_v4")
"""The levels that setup.py can build, lowest first."""

_HOW_TO_BUILD = "build them with `pip install -e .` in the source tree, or install a wheel"


def kernel_module(name, level=None):
    """The extension module ``name`` (one of ``MODULES``), of ``level`` or of the level in use.

    Loading a level that the host cannot run ends the process at its first foreign instruction: take
    ``level`` from ``available_levels()``.
    """
    path = f"{__name__}.{level or isa}.{name}"
    try:
        with limited_spinning():
            return import_module(path)
    except ModuleNotFoundError as error:
        raise ImportError(f"the CPU kernels are incomplete: {path} is missing; {_HOW_TO_BUILD}") from error


def available_levels():
    """The levels that are built and that this processor runs, lowest first (a tuple of str)."""
    return _available


def _host_levels():
    try:
        from minigrad.kernels.cpu.cpuid import host_levels
    except ModuleNotFoundError as error:
        raise ImportError(f"minigrad's CPU kernels are not built; {_HOW_TO_BUILD}") from error
    return host_levels()


def _is_built(level):
    folder = os.path.join(os.path.dirname(__file__), level)
    return os.path.isdir(folder) and any(
        entry.endswith(suffix) for entry in os.listdir(folder) for suffix in EXTENSION_SUFFIXES
    )


def _find_available_levels():
    host = _host_levels()
    built = [level for level in LEVELS if _is_built(level)]
    available = tuple(level for level in built if level in host)
    if not built:
        raise ImportError(f"minigrad's CPU kernels are not built; {_HOW_TO_BUILD}")
    if not available:
        raise ImportError(
            f"minigrad's CPU kernels are built for {', '.join(built)}, but this processor runs "
            f"{', '.join(host) or 'none of the levels'}; {_HOW_TO_BUILD}"
        )
    return available


def _choose_level(requested, available):
    """The level that the value of ``MINIGRAD_ISA`` asks for; the highest one if it is unset or empty."""
    if not requested:
        return available[-1]
    name = requested.strip().lower().replace("-", "_")
    if not name.startswith("x86_64_") and f"x86_64_{name}" in LEVELS:
        name = f"x86_64_{name}"
    if name in available:
        return name
    reason = "cannot be used on this machine" if name in LEVELS else "is not an instruction-set level"
    raise ValueError(f"MINIGRAD_ISA={requested!r} {reason}; possible values: {', '.join(available)}")


_available = _find_available_levels()

isa = _choose_level(os.environ.get("MINIGRAD_ISA"), _available)
"""The instruction-set level in use, such as ``"x86_64_v3"``."""


def __getattr__(name):
    if name in MODULES:
        module = globals()[name] = kernel_module(name)
        return module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
