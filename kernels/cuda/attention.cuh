// What the kernels of attention share: the problem, and who does which part of it.
#pragma once

#include "common.cuh"
#include "tile_order.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// The problem, but for the pointers. Strides are counted in elements: of a batch, a head, a row.
struct AttentionShape {
    long long heads, L, S;
    long long q_stride[3], k_stride[3], v_stride[3];
    int E, V;
    float scale;
    bool is_causal;
    int matrices_together;
};

// Which matrix, and which of its blocks of rows, the block of threads has.
//
// The last queries come first, and the first keys: where is_causal, they see the most, and are seen by the most. The
// blocks of so many `matrices_together` are numbered rows first: all those with the most to do come before any with
// less, and when there are none left to start, those that are at work have little to do. One matrix after the other
// would end with the longest of the last one.
struct Task {
    int matrix;
    long long first_row;

    // One matrix after the other, the last rows first.
    __device__ __forceinline__ Task(long long rows, int rows_of_block) {
        const long long blocks = (rows + rows_of_block - 1) / rows_of_block;
        matrix = blockIdx.x / blocks;
        first_row = (blocks - 1 - blockIdx.x % blocks) * rows_of_block;
    }

    // As above, of rows of queries, or of keys.
    __device__ __forceinline__ Task(const AttentionShape& shape, long long rows, int rows_of_block,
                                    bool are_keys = false) {
        const int blocks = (rows + rows_of_block - 1) / rows_of_block;
        const TilePlace place = tile_place(blockIdx.x, gridDim.x / blocks, blocks, shape.matrices_together);
        matrix = place.row;
        first_row = (long long)(are_keys ? place.column : blocks - 1 - place.column) * rows_of_block;
    }

    template <typename T>
    __device__ __forceinline__ const T* of(const T* x, const long long (&stride)[3], long long heads) const {
        return x + matrix / heads * stride[0] + matrix % heads * stride[1];
    }
};

// How many keys a query sees.
__device__ __forceinline__ long long keys_of(const AttentionShape& shape, long long query) {
    return shape.is_causal && query + 1 < shape.S ? query + 1 : shape.S;
}

// How many of the keys from `first` on a query sees, at most `most`; none if it is negative.
__device__ __forceinline__ int visible(const AttentionShape& shape, long long query, long long first, int most) {
    return at_most(keys_of(shape, query) - first, most);
}

// Whether scores may be multiplied by the scale after the largest was found: their order stays, and infinities.
__device__ __forceinline__ bool keeps_order_of_scores(float scale) { return 1e-30f <= scale && scale <= 1e30f; }

// The online softmax of a row, of which a lane adds up its own columns.
//
// Probabilities are powers of 2 under a reference. It need not be the largest score so far: up to 2^GROWTH they are as
// precise as below 1. So it grows only where a score is larger by more than that, which in most steps none is, and what
// was summed before then needs no factor.
struct RunningRow {
    static constexpr float GROWTH = 8;

    float reference = -INFINITY, sum = 0, of_step;

    // Begins a step whose scores, of which `most` is the largest of all lanes, count `scale` powers of 2.
    // Returns what to multiply with what was summed before.
    __device__ __forceinline__ float begin(float most, float scale) {
        most = __fmul_rn(most, scale);  // rounded, whatever it is subtracted from
        const bool grows = most > reference + GROWTH;
        const float factor = grows ? exp2f(reference - most) : 1;
        if (grows) reference = most;
        sum *= factor;
        of_step = 0;
        return factor;
    }

    // The power under the reference of a score of the step. A NaN comes back in the sum.
    __device__ __forceinline__ float add(float score, float scale) {
        const float subtracted = reference == -INFINITY ? 0.0f : reference;  // no key seen so far: no NaN
        const float power = exp2f(fmaf(score, scale, -subtracted));
        of_step += power;
        return power;
    }

    __device__ __forceinline__ void end() { sum += of_step; }

    // The logarithm of the sum of exponentials, where those of all lanes add up to `total`.
    __device__ __forceinline__ float log_sum(float total) const {
        return reference == -INFINITY ? NAN : reference / LOG2_E + log(total);
    }
};
