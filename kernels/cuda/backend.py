"""Runs kernels on a card through CuPy: the counterpart of ``minigrad.kernels.sim.backend``.

NVRTC compiles each instance of a kernel when it is first launched, and CuPy keeps what it made on disk
(``$CUPY_CACHE_DIR``, by default ``~/.cupy/kernel_cache``). CuPy adds ``-ftz=true``: on a card, float32
numbers below 1.2e-38 count as zero.
"""

from __future__ import annotations

from typing import Any

from ..errors import KernelCompileError, KernelLaunchError
from ..source import CUDA_DIRECTORY, CudaSource, Signature
from . import cupy

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
                    kernel = kernels[device.id] = _compiled(cp, module, instance)
                try:
                    # Short-circuited: asking the driver takes longer than a launch.
                    if (
                        shared_bytes > DEFAULT_SHARED_BYTES
                        and shared_bytes > kernel.max_dynamic_shared_size_bytes
                    ):
                        kernel.max_dynamic_shared_size_bytes = shared_bytes
                    kernel(grid, block, tuple(values), shared_mem=shared_bytes)
                except cp.cuda.driver.CUDADriverError as error:
                    where = f"{instance}, grid {grid}, block {block}, shared_bytes {shared_bytes}"
                    raise KernelLaunchError(f"{where}: {error}") from error

        return launch


backend = CudaBackend()


def _compiled(cp: Any, module: Any, instance: str) -> Any:
    """The kernel ``instance``, compiled for the current device (or loaded from CuPy's cache)."""
    try:
        return module.get_function(instance)
    except cp.cuda.compiler.CompileException as error:
        raise KernelCompileError(
            f"{instance} does not compile for the card:\n{str(error).strip()}"
        ) from error
