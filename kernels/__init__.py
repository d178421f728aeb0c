"""The kernels: arrays in, arrays out. They know nothing of tensors, graphs or gradients.

- :mod:`minigrad.kernels.cpu`: Cython, on NumPy arrays;
- :mod:`minigrad.kernels.cuda`: CUDA, on CuPy arrays, or on NumPy arrays through the simulator,
  :mod:`minigrad.kernels.sim`.

``minigrad.kernels.list()`` shows them as the dispatcher knows them: by op, device, dtype and rung.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Load a part when it is first touched: the simulator and the launch layer are not always needed."""
    if name in ("cpu", "cuda", "launch", "sim"):
        return import_module(f"{__name__}.{name}")
    if name == "cython_module":
        return import_module(f"{__name__}.cython_source").cython_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
