// What the kernels of matrix multiplication share: how a product is described to them.
#pragma once

#include "common.cuh"

// The batch dimensions (those not used have size 1) with the strides of a and b in each.
struct Batch {
    long long size[4];
    long long a_stride[4];
    long long b_stride[4];
};

// The problem, but for the pointers. A stride says how far apart, in elements, two neighbours are. K may be
// cut into parts, of `part` terms each and a last one of what is left, which are products of their own.
struct MatmulShape {
    long long M, N, K;
    long long a_row_stride, a_column_stride;
    long long b_row_stride, b_column_stride;
    long long batches;
    long long part;
};

// Moves a and b to part blockIdx.y of K, and tells how long it is.
template <typename T>
__device__ __forceinline__ long long select_part(const T*& a, const T*& b, const MatmulShape& shape) {
    const long long begin = blockIdx.y * shape.part, left = shape.K - begin;
    a += begin * shape.a_column_stride;
    b += begin * shape.b_row_stride;
    return left < shape.part ? left : shape.part;
}

// Where the output of this part of product `number` stands in out: behind all products of the parts before.
__device__ __forceinline__ long long number_of_part(const MatmulShape& shape, long long number) {
    return blockIdx.y * shape.batches + number;
}

// Moves a and b to the matrices of one product of the batch.
template <typename T>
__device__ void select_batch(const T*& a, const T*& b, const Batch& batch, long long number) {
    for (int dim = 3; dim >= 0; dim--) {
        const long long rest = dim > 0 ? number / batch.size[dim] : 0;  // the outermost index is what is left
        const long long index = number - rest * batch.size[dim];
        a += index * batch.a_stride[dim];
        b += index * batch.b_stride[dim];
        number = rest;
    }
}

// In which direction the elements of each matrix are neighbours in memory: along k, or along its other axis.
struct Layout {
    bool a_along_k, b_along_k;
};
