// The second pass of a matrix product whose K was cut into parts, or of a convolution: out[i] = sum over part of
// partial[part, i], plus the bias of its column or channel, where there is one, and through ReLU, where that is wanted.
//
// Shapes: partial is (parts, size), out is (size), bias (channels), all C-contiguous; size is that of the product. In
// out a channel has `plane` elements side by side, 1 for the columns of a matrix. partial is float32 for an out of 16
// bits.
//
// A product of 64 x 64 from K = 100000 is a single tile: one block, and one of a card's 132 multiprocessors
// at work. Split-K makes products of their own of parts of K, each with blocks of its own, and adds them up
// here. That costs `parts` writes and reads of out, little against the operands when a part of K is
// long, and takes no atomics: the order of the additions, and so the bits of out, depend on the shape alone.
// It is the more accurate as well, for K terms are added in runs of K / parts.
//
// Arithmetic intensity: one addition for 4 bytes. Neighbouring threads read neighbours.

#include "common.cuh"

// Threads along x have an element of out each; those along y share out its parts, and add up what they have
// found in a tree: half of them takes over what the other half has, then half of these, and so on.
//
// Shared memory: 1 KB (float32) or 2 KB (float64). Grid: x = the elements of out; blockDim = SUM_THREADS in
// all, of which a power of two along y.
constexpr int SUM_THREADS = 256;

template <typename Out, typename T>
__global__ void __launch_bounds__(SUM_THREADS)
split_k_sum(Out* out, const T* partial, const Out* bias, bool relu, long long size, long long parts,
            long long channels, long long plane) {
    __shared__ T sums[SUM_THREADS];
    const long long number = global_thread_index();
    T sum = 0;
    if (number < size) {
#pragma unroll 4
        for (long long part = threadIdx.y; part < parts; part += blockDim.y) sum += partial[part * size + number];
    }
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        T* mine = sums + threadIdx.y % half * blockDim.x + threadIdx.x;
        if (threadIdx.y >= half && threadIdx.y < 2 * half) *mine = sum;
        __syncthreads();  // the sums of the upper half are there
        if (threadIdx.y < half) sum += *mine;
        __syncthreads();  // and have been read
    }
    if (threadIdx.y > 0 || number >= size) return;
    if (bias) sum += T(bias[number / plane % channels]);
    out[number] = Out(relu_if(relu, sum));
}
