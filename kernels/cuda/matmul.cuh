// What the kernels of matrix multiplication share: how a product is described to them.
#pragma once

// The batch dimensions (those not used have size 1) with the strides of a and b in each.
struct Batch {
    long long size[4];
    long long a_stride[4];
    long long b_stride[4];
};

// The problem, but for the pointers. A stride says how far apart, in elements, two neighbours are.
struct MatmulShape {
    long long M, N, K;
    long long a_row_stride, a_column_stride;
    long long b_row_stride, b_column_stride;
    long long batches;
};

// Moves a and b to the matrices of one product of the batch.
template <typename T>
__device__ void select_batch(const T*& a, const T*& b, const Batch& batch, long long number) {
    for (int dim = 3; dim >= 0; dim--) {
        const long long index = number % batch.size[dim];
        number /= batch.size[dim];
        a += index * batch.a_stride[dim];
        b += index * batch.b_stride[dim];
    }
}
