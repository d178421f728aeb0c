// What threads do together that share a row of a matrix: each folds its own elements into one value, and
// then they combine their values in registers.
//
// Every combination is the same for (a, b) as for (b, a), bit for bit, and the order in which values meet
// depends on the size of the block alone: a result is the same in every run and in every thread.
#pragma once

#include "common.cuh"

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xFFFFFFFF;
constexpr int MAX_THREADS = 512;  // of a block that shares a row: leaves each thread up to 128 registers
constexpr int MAX_WARPS = MAX_THREADS / WARP;

// The fewest blocks at a time of kernels with large parts of a row, or 0: compiled for the GeForce cards of Blackwell
// they are kept to 64 registers in float32, and spill, unless nvcc is told that one block is enough. Otherwise it
// does well by itself.
template <typename C>
#if __CUDA_ARCH__ >= 1200 && !defined(MINIGRAD_SIM)
constexpr int FEWEST_BLOCKS = sizeof(C) == 4 ? 1 : 0;
#else
constexpr int FEWEST_BLOCKS = 0;
#endif

enum Operation { SUM, MAX, MIN };

// What changes nothing when combined; the result for a row without elements.
template <Operation OP, typename T>
__device__ __forceinline__ T neutral() {
    if constexpr (OP == SUM) return T(0);
    return OP == MAX ? -T(INFINITY) : T(INFINITY);
}

// The extrema are NaN if either operand is: a NaN among the elements is never lost.
template <Operation OP, typename T>
__device__ __forceinline__ T combine(T a, T b) {
    if constexpr (OP == SUM)
        return a + b;
    else if constexpr (OP == MAX)
        return b > a || isnan(b) ? b : a;
    else
        return b < a || isnan(b) ? b : a;
}

#if __CUDA_ARCH__ >= 800 && !defined(MINIGRAD_SIM)
// The same in one instruction.
template <>
__device__ __forceinline__ float combine<MAX>(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}
template <>
__device__ __forceinline__ float combine<MIN>(float a, float b) {
    float smaller;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
    return smaller;
}
#endif

// The values of a warp combined, in each of its threads; or those of each part of the warp, `lanes` side by side, a
// power of two. With every step the lanes hold the result of twice as many: of 2, 4, ..., 32. A shuffle reads another
// lane's register, with no memory between and no barrier.
template <Operation OP, typename T>
__device__ __forceinline__ T across_warp(T value, int lanes = WARP) {
    for (int distance = lanes / 2; distance > 0; distance /= 2)
        value = combine<OP>(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The sums of COUNT values over the lanes of a warp, or of one of its parts of 2 * DISTANCE lanes; both are powers of
// two. Of a part's lanes, each gets the sums of its share of the values, in their order: where there are as many or
// more, the first elements of `value`; where there are fewer values, lanes side by side get the same one, which is
// returned, too. With each exchange a lane keeps half of its values, and gives the others to a lane that keeps those:
// 31 shuffles for 32 values, where 32 sums by across_warp would take 160.
template <int COUNT, int DISTANCE = WARP / 2, typename T>
__device__ __forceinline__ T scattered_sums(T* value) {
    if constexpr (DISTANCE == 0) {
        return value[0];
    } else if constexpr (COUNT == 1) {
        value[0] += __shfl_xor_sync(ALL_LANES, value[0], DISTANCE);
        return scattered_sums<1, DISTANCE / 2>(value);
    } else {
        const bool upper = threadIdx.x & DISTANCE;
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            const T kept = upper ? value[COUNT / 2 + i] : value[i];
            const T given = upper ? value[i] : value[COUNT / 2 + i];
            value[i] = kept + __shfl_xor_sync(ALL_LANES, given, DISTANCE);
        }
        return scattered_sums<COUNT / 2, DISTANCE / 2>(value);
    }
}

// The values of a block's threads combined, in each of them: first within the warps, then the results of
// the warps by way of shared memory. Blocks of one dimension and whole warps; once in a kernel.
template <Operation OP, typename T>
__device__ __forceinline__ T across_block(T value) {
    __shared__ T of_warp[WARP];  // a block has at most 32 warps
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    value = across_warp<OP>(value);
    if (lane == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();  // all warps have left their values
    return across_warp<OP>(lane < warps ? of_warp[lane] : neutral<OP, T>());
}

// The values of the threads of a row combined, where blockDim.x threads share one: a warp or, as above, a part of it,
// of which a block then has several; or a whole block.
template <Operation OP, typename T>
__device__ __forceinline__ T across_row(T value) {
    return blockDim.x <= WARP ? across_warp<OP>(value, blockDim.x) : across_block<OP>(value);
}

// Two values of each thread summed over the threads that share a row: a warp or, if it is wider, the block.
// From call to call `turn` is 0 and 1 in turns, so that one barrier is enough: when a warp comes to leave its
// sums, all have read those that stood there.
template <typename T>
__device__ __forceinline__ void sum_over_row(T& a, T& b, int turn) {
    __shared__ T of_warp[2][2][MAX_WARPS];
    a = across_warp<SUM>(a);
    b = across_warp<SUM>(b);
    if (blockDim.x == WARP) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) {
        of_warp[turn][0][warp] = a;
        of_warp[turn][1][warp] = b;
    }
    __syncthreads();  // all warps have left theirs
    const bool there = lane < blockDim.x / WARP;
    a = across_warp<SUM>(there ? of_warp[turn][0][lane] : T(0));
    b = across_warp<SUM>(there ? of_warp[turn][1][lane] : T(0));
}
