// What the kernels of attention share: the problem, and who does which part of it.
#pragma once

constexpr float LOG2_E = 1.4426950408889634f;

// The problem, but for the pointers. Strides are counted in elements: of a batch, a head, a row.
struct AttentionShape {
    long long heads, L, S;
    long long q_stride[3], k_stride[3], v_stride[3];
    int E, V;
    float scale;
    bool is_causal;
};

// Which matrix, and which of its blocks of rows, the block of threads has. The last rows come first: where
// is_causal, they see the most keys.
struct Task {
    long long matrix, first_row;

    __device__ __forceinline__ Task(long long rows, int rows_of_block) {
        const long long blocks = (rows + rows_of_block - 1) / rows_of_block;
        matrix = blockIdx.x / blocks;
        first_row = (blocks - 1 - blockIdx.x % blocks) * rows_of_block;
    }

    template <typename T>
    __device__ __forceinline__ const T* of(const T* x, const long long (&stride)[3], long long heads) const {
        return x + matrix / heads * stride[0] + matrix % heads * stride[1];
    }
};
