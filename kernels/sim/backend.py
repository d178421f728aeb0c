"""Runs kernels on the simulator: the counterpart of ``minigrad.kernels.cuda.backend``."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

from .. import sim
from ..errors import KernelAccessError, KernelLaunchError
from ..source import CudaSource, Signature
from .build import load_kernel, load_runtime
from .checked import Checks, GuardedArrays, with_source_lines
from .translate import translate

# Fewer simulated threads than this are done before a second worker has started.
SERIAL_THREADS = 4096

BAD_ACCESS = 2  # what sim_launch returns then; 1 is any other failure


class SimulatorBackend:
    """Compiles kernels as C++ and runs them on the CPU; arrays are NumPy's."""

    def load(self, source: CudaSource, signature: Signature, instance: str):
        """A launcher of ``instance``, as :class:`minigrad.kernels.launch.Backend` describes it."""
        code = translate(source, instance)
        library = cache(lambda checked: load_kernel(code, instance, checked))
        library(sim.get_checks())
        run = runtime()
        name = instance.encode()

        def launch(device: Any, grid: tuple, block: tuple, values: list, shared_bytes: int) -> None:
            checked = sim.get_checks()
            kernel = library(checked)
            guarded = GuardedArrays(values, signature.parameters) if checked else None
            arguments = b"".join(map(_pack, guarded.values if guarded else values, signature.parameters))
            checks = ctypes.byref(guarded.describe(len(arguments))) if guarded else None
            entry = ctypes.cast(kernel.sim_entry, ctypes.c_void_p)
            sizes = (ctypes.c_uint * 6)(*grid, *block)
            workers = sim.get_num_threads() if math.prod(sizes) >= SERIAL_THREADS else 1
            error = ctypes.create_string_buffer(4096)
            order = sim.get_seed()
            status = run(
                name, entry, arguments, sizes, shared_bytes, order, workers, checks, error, len(error)
            )
            if status:
                message = with_source_lines(error.value.decode(errors="replace"), Path(kernel._name))
                raise (KernelAccessError if status == BAD_ACCESS else KernelLaunchError)(message)
            if guarded:
                guarded.copy_back()

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
        ctypes.POINTER(Checks),
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return function
