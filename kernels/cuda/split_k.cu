// The second pass of a matrix product whose K was cut into parts: out[i] = sum over part of partial[part, i].
//
// Shapes: partial is (parts, size), out is (size), both C-contiguous; size is that of the product.
//
// A product of 64 x 64 from K = 100000 is a single tile: one block, and one of a card's 132 multiprocessors
// at work. Split-K makes a batch of products of it, each with its part of K and a block of its own, and adds
// them up here. That costs `parts` writes and reads of out, little against the operands when a part of K is
// long, and takes no atomics: the order of the additions, and so the bits of out, depend on the shape alone.
// It is the more accurate as well, for K terms are added in runs of K / parts.
//
// Arithmetic intensity: one addition for 4 bytes. Neighbouring threads read neighbours.

#include "common.cuh"

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void split_k_sum(T* out, const T* partial, long long size, long long parts) {
    const long long number = global_thread_index();
    if (number >= size) return;
    T sum = 0;
#pragma unroll 4
    for (long long part = 0; part < parts; part++) sum += partial[part * size + number];
    out[number] = sum;
}
