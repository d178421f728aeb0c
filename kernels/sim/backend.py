"""Runs kernels on the simulator: the counterpart of ``minigrad.kernels.cuda.backend``."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

from .. import sim
from ..errors import KernelLaunchError
from ..source import CudaSource, Signature
from .build import load_kernel, load_runtime
from .translate import translate

# Fewer simulated threads than this are done before a second worker has started.
SERIAL_THREADS = 4096


class SimulatorBackend:
    """Compiles kernels as C++ and runs them on the CPU; arrays are NumPy's."""

    def load(self, source: CudaSource, signature: Signature, instance: str):
        """A launcher of ``instance``, as :class:`minigrad.kernels.launch.Backend` describes it."""
        library = load_kernel(translate(source, instance), instance)
        entry = ctypes.cast(library.sim_entry, ctypes.c_void_p)
        run = runtime()
        name = instance.encode()

        def launch(device: Any, grid: tuple, block: tuple, values: list, shared_bytes: int) -> None:
            arguments = b"".join(map(_pack, values, signature.parameters))
            sizes = (ctypes.c_uint * 6)(*grid, *block)
            workers = sim.get_num_threads() if math.prod(sizes) >= SERIAL_THREADS else 1
            error = ctypes.create_string_buffer(4096)
            if run(name, entry, arguments, sizes, shared_bytes, sim.get_seed(), workers, error, len(error)):
                raise KernelLaunchError(error.value.decode(errors="replace"))

        return launch


backend = SimulatorBackend()


def _pack(value, parameter) -> bytes:
    """One argument as its bytes, padded to a multiple of 16 (``sim::take`` in cuda_sim.h reads them)."""
    if not parameter.is_pointer:
        data = value.tobytes()
    else:
        data = (0 if value is None else value.ctypes.data).to_bytes(8, "little")
    return data.ljust(-(-len(data) // 16) * 16, b"\0")


@cache
def runtime():
    """The C function ``sim_launch`` of runtime.cpp."""
    function = load_runtime().sim_launch
    function.restype = ctypes.c_int
    function.argtypes = [
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_size_t,
        ctypes.c_uint64,
        ctypes.c_uint,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return function
