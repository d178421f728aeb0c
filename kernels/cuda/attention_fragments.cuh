// What the kernels of attention in 16 bits share: a warp has whole rows of the scores, 16 at a time, spread over its
// lanes as fragments (tensor_core.cuh), so that their softmax stays within four lanes. Element i of a lane's fragment n
// is in row i / 2 of the lane's two, 8 apart, and in column_of(n, i % 2).
#pragma once

#include "attention.cuh"
#include "rows.cuh"
#include "tensor_core.cuh"

constexpr int FRAGMENT = 16;  // rows

// The fragments of 16-bit elements: two floats as a register of one, and c += a b.
template <typename T>
struct Fragments;

template <>
struct Fragments<__half> {
    static __device__ __forceinline__ unsigned pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<const unsigned*>(&pair);
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        mma_f16(c, a, b);
    }
};

template <>
struct Fragments<__nv_bfloat16> {
    static __device__ __forceinline__ unsigned pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const unsigned*>(&pair);
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        mma_bf16(c, a, b);
    }
};

// The k-th 16 columns of p, rounded, as a left factor.
template <typename T, int N>
__device__ __forceinline__ void pack_left(unsigned (&a)[4], const float (&p)[N][4], int k) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = Fragments<T>::pack(p[2 * k + i / 2][i % 2 * 2], p[2 * k + i / 2][i % 2 * 2 + 1]);
}

__device__ __forceinline__ int column_of(int n, int i) { return 8 * n + threadIdx.x % 4 * 2 + i; }

__device__ __forceinline__ int at_most(long long n, int most) { return n < most ? int(n) : most; }

// How many of the keys from `first` on a query sees, at most `most`.
__device__ __forceinline__ int visible(const AttentionShape& shape, long long query, long long first, int most) {
    long long end = shape.S;
    if (shape.is_causal && query + 1 < end) end = query + 1;
    return end < first ? 0 : at_most(end - first, most);
}

// Multiplies each of a lane's two rows by its factor.
template <int N>
__device__ __forceinline__ void scale_rows(float (&rows)[N][4], const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) rows[n][i] *= factor[i / 2];
}

// The online softmax of a lane's two rows. A lane adds up its own columns. The largest score counts in powers of 2.
struct RunningSoftmax {
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    // Turns scores, which count `scale` powers of 2, into powers under the new largest score. `factor` is what to
    // multiply with what was summed before, each row. A NaN among the scores comes back in the sum.
    template <int N>
    __device__ __forceinline__ void add(float (&scores)[N][4], float (&factor)[2], float scale = 1) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            most = fmaxf(largest[half], __fmul_rn(most, scale));  // rounded, whatever it is subtracted from
            const float reference = most == -INFINITY ? 0.0f : most;  // no key seen so far: not exp(NaN)
            factor[half] = exp2f(largest[half] - reference);
            float total = 0;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++)
                    total += scores[n][i] = exp2f(fmaf(scores[n][i], scale, -reference));
            sum[half] = sum[half] * factor[half] + total;
            largest[half] = most;
        }
    }

    // The sum of all columns.
    __device__ __forceinline__ float total(int half) const {
        const float two = sum[half] + __shfl_xor_sync(ALL_LANES, sum[half], 1);
        return two + __shfl_xor_sync(ALL_LANES, two, 2);
    }
};
