// Elements picked along one axis, and the adjoint of that: what was picked, added to where it came from.
//
//   take   out[a, j, b] = x[a, indices[a, j, b], b]
//   put    out[a, k, b] = the sum of g[a, j, b] over all j with indices[a, j, b] == k, in the order of j
//
// Shapes: x (take) and out (put) are (outer, size, inner); out (take), g (put) and indices are (outer, n,
// inner), indices 64-bit; all C-contiguous. An index k may also be written k - size. One outside of
// [-size, size) takes NaN, and is left out of sums.
//
// There is one kernel each: an element of the output for a thread, with inner contiguous for neighbours. put
// looks through the n indices of its column, n size reads for n sums, so that each element is written once
// and the additions have an order, where the usual atomics have none. For maxima and the like n is 1. Where n
// is large, the launch code sorts the indices instead, and has embedding.cu add up the segments.
//
// Arithmetic intensity: at most an addition for 12 bytes; bound by memory.

#include "common.cuh"

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void take(T* out, const T* x, const long long* indices, long long elements, long long n,
                     long long size, long long inner) {
    const long long at = global_thread_index();
    if (at >= elements) return;
    long long index = indices[at];
    if (index < 0) index += size;
    const long long column = at / (n * inner) * size * inner + at % inner;
    out[at] = index >= 0 && index < size ? x[column + index * inner] : T(NAN);
}

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void put(T* out, const T* g, const long long* indices, long long elements, long long n,
                    long long size, long long inner) {
    const long long at = global_thread_index();
    if (at >= elements) return;
    const long long index = at / inner % size, column = at / (size * inner) * n * inner + at % inner;
    T sum = 0;
    for (long long j = column; j < column + n * inner; j += inner)
        if (indices[j] == index || indices[j] == index - size) sum += g[j];
    out[at] = sum;
}
