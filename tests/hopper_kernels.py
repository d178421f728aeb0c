"""Small kernels for compute capability 9.0, launched on the simulator, and what is said of their mistakes."""

import numpy as np
import pytest
from simulated import normal, zeros

from minigrad.kernels.cuda import tensor_map
from minigrad.kernels.errors import KernelAccessError, KernelLaunchError
from minigrad.kernels.launch import CudaKernel, strided
from minigrad.kernels.source import CudaSource

BOX_BYTES = 8192


def launch(body, out, *arrays, block=128, grid=1, cluster=1, before="", shared_bytes=49 * 1024):
    """Launch a kernel ``k`` of ``out`` and of arrays with their tensor maps: x and x_map, y and y_map. It has
    boxes in shared memory, and barriers: full, for one arrival, and empty, for 128."""
    names = ["x", "y"][: len(arrays)]
    parameters = "".join(
        f", const {'float' if a.dtype == np.float32 else 'unsigned short'}* {name}, "
        f"const __grid_constant__ TensorMap {name}_map"
        for name, a in zip(names, arrays, strict=True)
    )
    code = f"""
        #include <cuda_bf16.h>
        #include <cuda_fp16.h>
        #include "hopper.cuh"
        struct Box {{ unsigned char bytes[BOX_BYTES]; }};
        {before}
        __global__ void __launch_bounds__({block}) __cluster_dims__({cluster}, 1, 1)
        k(float* out, const __grid_constant__ TensorMap out_map{parameters}) {{
            extern __shared__ __align__(1024) unsigned char dynamic[];
            __shared__ Barrier full, empty;
            Box* boxes = reinterpret_cast<Box*>(dynamic);
            const int t = threadIdx.x;
            if (t == 0) {{
                full.init(1);
                empty.init(128);
                fence_barrier_init();
            }}
            sync_cluster();
            {body}
        }}"""
    maps = [tensor_map.describe(a if a.ndim > 2 else a[None], as_tf32=a.itemsize == 4) for a in arrays]
    args = [out, tensor_map.describe(out[None])]
    for array, its_map in zip(arrays, maps, strict=True):
        args += [strided(array), its_map]
    CudaKernel(CudaSource(code, "sm_90a"), "k").launch(grid, block, args, shared_bytes)
    return out


def message(*args, error=KernelAccessError, **options):
    with pytest.raises(KernelLaunchError) as caught:
        launch(*args, **options)
    assert type(caught.value) is error, caught.value
    return str(caught.value)


def aligned(array):
    """A copy that starts at a multiple of 16 bytes."""
    memory = np.empty(array.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def tf32(x):
    """Float32 numbers rounded to 10 bits of mantissa."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


LOAD = """
    if (t == 0) {
        full.arrive_and_expect(BOX_BYTES);
        load_box(boxes, x_map, %d, %d, 0, full);
    }
"""
READ = """
    for (int i = t; i < 64 * 32; i += 128) {
        const int row = i / 32, chunk = i % 32 / 4;
        out[i] = reinterpret_cast<float*>(boxes)[row * 32 + (chunk ^ row % 8) * 4 + i % 4];
    }
"""
X = aligned(normal(70, 44, dtype=np.float32))


def out():
    return aligned(zeros(64, 32))
