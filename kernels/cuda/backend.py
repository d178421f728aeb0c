"""Runs kernels on a card through CuPy: the counterpart of ``minigrad.kernels.sim.backend``.

NVRTC compiles each instance of a kernel when it is first launched, and CuPy keeps what it made on disk
(``$CUPY_CACHE_DIR``, by default ``~/.cupy/kernel_cache``; before 14.2 it did not keep all instances of
templates). CuPy adds ``-ftz=true``: on a card, float32 numbers below 1.2e-38 count as zero.
"""

from __future__ import annotations

from typing import Any

from ..errors import KernelCompileError, KernelLaunchError
from ..source import CUDA_DIRECTORY, CudaSource, Signature
from . import cupy
from .guard import explain, last_launched

# CuPy adds the folder of cuda_fp16.h: that of the toolkit, or of the wheel nvidia-cuda-runtime.
OPTIONS = ("-std=c++17", f"-I{CUDA_DIRECTORY}")

# What a block gets of shared memory without asking; more must be asked for, kernel by kernel.
DEFAULT_SHARED_BYTES = 48 * 1024


class CudaBackend:
    """Compiles kernels for the card that their arrays live on, and launches them in its current stream."""

    def load(self, source: CudaSource, signature: Signature, instance: str):
        """A launcher of ``instance``, as :class:`minigrad.kernels.launch.Backend` describes it."""
        cp = cupy()
        module = cp.RawModule(code=source.text, options=OPTIONS, name_expressions=[instance])
        kernels: dict[int, Any] = {}  # by device: each has a module of its own

        def launch(device: Any, grid: tuple, block: tuple, values: list, shared_bytes: int) -> None:
            with device:
                kernel = kernels.get(device.id)
                if kernel is None:
                    kernel = kernels[device.id] = _compiled(cp, module, instance, device.id)
                try:
                    # Short-circuited: asking the driver takes longer than a launch.
                    if (
                        shared_bytes > DEFAULT_SHARED_BYTES
                        and shared_bytes > kernel.max_dynamic_shared_size_bytes
                    ):
                        kernel.max_dynamic_shared_size_bytes = shared_bytes
                    kernel(grid, block, tuple(values), shared_mem=shared_bytes)
                except (cp.cuda.driver.CUDADriverError, cp.cuda.runtime.CUDARuntimeError) as error:
                    explained = explain(error, device.id, launching=instance)
                    if explained is None:
                        where = f"{instance}, grid {grid}, block {block}, shared_bytes {shared_bytes}"
                        why = "; ".join([str(error), *_exceeded(device, kernel, grid, block, shared_bytes)])
                        explained = KernelLaunchError(f"{where}: {why}")
                    raise explained from error
            last_launched[device.id] = instance

        return launch


backend = CudaBackend()


def _compiled(cp: Any, module: Any, instance: str, index: int) -> Any:
    """The kernel ``instance``, compiled for the current device (or loaded from CuPy's cache)."""
    try:
        return module.get_function(instance)
    except cp.cuda.compiler.CompileException as error:
        raise KernelCompileError(
            f"{instance} does not compile for the card:\n{str(error).strip()}"
        ) from error
    except (cp.cuda.driver.CUDADriverError, cp.cuda.runtime.CUDARuntimeError) as error:
        explained = explain(error, index)
        raise explained or KernelLaunchError(f"{instance} cannot be loaded: {error}") from error


def _exceeded(device: Any, kernel: Any, grid: tuple, block: tuple, shared_bytes: int) -> list[str]:
    """The limits of this card, and of the kernel as it was compiled for it, that a launch exceeds."""
    limits = device.attributes
    threads = block[0] * block[1] * block[2]
    checks = [
        ("threads in a block", threads, limits["MaxThreadsPerBlock"], "this card"),
        ("threads in a block", threads, kernel.max_threads_per_block, "this kernel"),
        ("registers in a block", threads * kernel.num_regs, limits["MaxRegistersPerBlock"], "this card"),
        (
            "bytes of shared memory",
            shared_bytes + kernel.shared_size_bytes,
            limits["MaxSharedMemoryPerBlockOptin"],
            "this card",
        ),
        *(
            (f"{what} along {axis.lower()}", size, limits[f"Max{name}Dim{axis}"], "this card")
            for what, name, sizes in (("threads", "Block", block), ("blocks", "Grid", grid))
            for axis, size in zip("XYZ", sizes, strict=True)
        ),
    ]
    return [
        f"{value} {what} exceed the {limit} of {whose}"
        for what, value, limit, whose in checks
        if value > limit
    ]
