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

// The scores of keys that a query does not see become -infinity. `query` is that of the lane's first row.
template <int N>
__device__ __forceinline__ void hide(float (&scores)[N][4], const AttentionShape& shape, long long query,
                                     long long first_key) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int end = visible(shape, query + 8 * half, first_key, 8 * N);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (column_of(n, i) >= end) scores[n][2 * half + i] = -INFINITY;
    }
}

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

// The power of 2 of a query's lse, and sum(g * out).
struct alignas(8) OfQuery {
    float log_sum, inner;
};

// Those of a query; 0 where there is none.
__device__ __forceinline__ OfQuery of_query(const float* lse, const float* row_sums, long long query,
                                            long long queries) {
    return query < queries ? OfQuery{lse[query] * LOG2_E, row_sums[query]} : OfQuery{0, 0};
}

// Multiplies each of a lane's two rows by its factor.
template <int N>
__device__ __forceinline__ void scale_rows(float (&rows)[N][4], const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) rows[n][i] *= factor[i / 2];
}

// The same, but for nothing where no row of the warp has a factor but 1.
template <int N>
__device__ __forceinline__ void rescale_rows(float (&rows)[N][4], const float (&factor)[2]) {
    if (__any_sync(ALL_LANES, factor[0] != 1 || factor[1] != 1)) scale_rows(rows, factor);
}

// The online softmax of a lane's two rows.
struct RunningSoftmax {
    RunningRow rows[2];

    // Begins a step, whose scores count `scale` powers of 2. `factor` is what to multiply with what was summed before,
    // each row.
    template <int N>
    __device__ __forceinline__ void begin(const float (&scores)[N][4], float (&factor)[2], float scale) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            factor[half] = rows[half].begin(most, scale);
        }
    }

    // Turns scores of the step, a fragment of them, into powers under the reference.
    __device__ __forceinline__ void add(float (&scores)[4], float scale) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[i] = rows[i / 2].add(scores[i], scale);
    }

    // All scores of a step.
    template <int N>
    __device__ __forceinline__ void add_step(float (&scores)[N][4], float (&factor)[2], float scale) {
        begin(scores, factor, scale);
#pragma unroll
        for (int n = 0; n < N; n++) add(scores[n], scale);
        end();
    }

    __device__ __forceinline__ void end() { rows[0].end(), rows[1].end(); }

    // The sum of all columns.
    __device__ __forceinline__ float total(int half) const {
        const float one = rows[half].sum, two = one + __shfl_xor_sync(ALL_LANES, one, 1);
        return two + __shfl_xor_sync(ALL_LANES, two, 2);
    }
};
