// Whether all indices are in range, without a word to the host: the kernels that follow use them meanwhile.
//
//   wrong[0] = one of the indices that are neither in [0, size) nor `ignored`; left as it is where there is none
//
// Shapes: indices are (n,), of any integer type; wrong is (1,), in memory of the host that the card can write to.
//
// Arithmetic intensity: two comparisons for an index; one read of them. Nothing is written but for mistakes, and
// of several any one is right.

#include "common.cuh"

// Grid: x = a thread for each index.
template <typename T>
__global__ void look_for_wrong(
    unsigned long long* wrong, const T* indices, long long n, long long size, long long ignored
) {
    const long long i = global_thread_index();
    if (i >= n) return;
    const long long index = (long long)indices[i];
    if ((index < 0 || index >= size) && index != ignored) atomicExch(wrong, (unsigned long long)index);
}
