// The second pass of the gradient for the weight, whose sums over the pixels were cut into parts.
#pragma once

constexpr int PART_THREADS = 8;

// out (weights / run, taps, run) = the sum over all parts of partial (parts, taps, weights): a run of 1 is for
// weights (O, C, taps), one of C for channels last. Each of the PART_THREADS threads in a column of the block adds
// every PART_THREADS-th part, and the first their sums: always in the same order.
//
// Grid: x = 32 elements in memory order of partial, for each block of 32 x PART_THREADS.
template <typename T>
__device__ __forceinline__ void add_taps(T* out, const float* partial, long long weights, int taps, int parts,
                                         int run = 1) {
    __shared__ float of_thread[PART_THREADS][32];
    const long long element = (long long)blockIdx.x * 32 + threadIdx.x, elements = weights * taps;
    float sum = 0;
    if (element < elements) {
#pragma unroll 4
        for (int part = threadIdx.y; part < parts; part += PART_THREADS)
            sum += partial[part * elements + element];
    }
    of_thread[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all have left theirs
    if (threadIdx.y > 0 || element >= elements) return;
    for (int other = 1; other < PART_THREADS; other++) sum += of_thread[other][threadIdx.x];
    const long long weight = element % weights, tap = element / weights;
    out[(weight / run * taps + tap) * run + weight % run] = T(sum);
}
