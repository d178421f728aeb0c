// The second pass of gradients of a convolution for its weight, whose sums were cut into parts: these are added up,
// rounded once, and stored. (split_k.cu does it for images.)
//
// A layer of few results and long sums has too few tiles to fill a card: 8 images of 512 x 7 x 7 to as many channels
// are 32 tiles of 64 x 128, for 132 multiprocessors, and each sums up 4608 products. Of the weight's gradient, which
// sums over all pixels, that holds nearly always. So the first pass cuts the sums into parts, for blocks of their own,
// which write what they have, in float32, to arrays of their own. No atomics: the order of the additions, and so the
// bits of the result, depend on the shapes alone.
//
// Arithmetic intensity: one addition for 4 bytes. Neighbouring threads read neighbours.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.cuh"

// out (weights / run, taps, run) = the sum over all parts of partial (parts, taps, weights): a run of 1 is for
// weights (O, C, taps), one of C for channels last.

constexpr int PART_THREADS = 8;

// Of many parts. Each of the PART_THREADS threads in a column of the block adds every PART_THREADS-th part, and the
// first their sums: always in the same order.
//
// Grid: x = 32 elements in memory order of partial, for each block of 32 x PART_THREADS.
template <typename T>
__global__ void __launch_bounds__(32 * PART_THREADS)
conv2d_add_taps(T* out, const float* partial, long long weights, int taps, int parts, int run) {
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

constexpr int THREADS = 256, OWN = 8;

// Of less parts than PART_THREADS, which are those of many weights: 9.4 MB for 512 x 512 of 3 x 3. What costs are then
// single elements, written to sectors of their own, and divisions. So a thread makes OWN elements in memory order of
// out, to which it comes by additions, and reads all of a part at once. Taps, of which neighbours are apart in
// partial, come 32 bytes at a time, and from the L1 cache for the weights beside this one.
//
// Grid: x = THREADS * OWN elements of out.
template <typename T>
__global__ void __launch_bounds__(THREADS)
conv2d_add_few_taps(T* out, const float* partial, long long weights, int taps, int parts, int run) {
    const long long first = (long long)blockIdx.x * (THREADS * OWN) + threadIdx.x, elements = weights * taps;
    const Position step(THREADS, taps, run);
    Position at(first, taps, run);
    long long from[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        from[i] = at.y * weights + at.plane * run + at.x;
        at.advance(step, taps, run);
    }
    float sums[OWN] = {};
#pragma unroll 1  // the loads of one part are enough at a time
    for (int part = 0; part < parts; part++, partial += elements) {
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (first + i * THREADS < elements) sums[i] += partial[from[i]];
    }
#pragma unroll
    for (int i = 0; i < OWN; i++)
        if (first + i * THREADS < elements) out[first + i * THREADS] = T(sums[i]);
}
