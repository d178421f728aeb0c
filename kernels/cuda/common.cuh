// What several kernels share. Sizes and offsets are 64-bit: a tensor may have more than 2^31 elements.
#pragma once

// This thread's number in a one-dimensional grid.
__device__ __forceinline__ long long global_thread_index() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// floor(a / b) and ceil(a / b) for b > 0; C++'s own division rounds towards zero.
__device__ __forceinline__ int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
__device__ __forceinline__ int ceil_div(int a, int b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }
