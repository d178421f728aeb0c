// Whether all indices are in range, without a word to the host: the kernels that follow use them meanwhile.
//
//   look_for_wrong   wrong[0] = one of the indices that are neither in [0, size) nor `ignored`; left as it is
//                    where there is none
//   replace_wrong    and right = the indices, with `ignored` for the wrong ones
//   look_outside     wrong[0] = the number of one of the elements of x that are not in [low, high]
//
// Shapes: indices are (n,), of any integer type, and so is x, of any floating one; right is (n,), 64-bit; wrong is
// (1,), in memory of the host that the card can write to.
//
// Arithmetic intensity: two comparisons for an index; one read of them. To wrong nothing is written but for
// mistakes, and of several any one is right.

#include "common.cuh"

// Whether `index` is fine. If not, it is left in `wrong`.
__device__ __forceinline__ bool is_right(
    unsigned long long* wrong, long long index, long long size, long long ignored
) {
    const bool right = (index >= 0 && index < size) || index == ignored;
    if (!right) atomicExch(wrong, (unsigned long long)index);
    return right;
}

// Grid: x = a thread for each index.
template <typename T>
__global__ void look_for_wrong(
    unsigned long long* wrong, const T* indices, long long n, long long size, long long ignored
) {
    const long long i = global_thread_index();
    if (i < n) is_right(wrong, (long long)indices[i], size, ignored);
}

// Grid: x = a thread for each index.
template <typename T>
__global__ void replace_wrong(
    unsigned long long* wrong, long long* right, const T* indices, long long n, long long size,
    long long ignored
) {
    const long long i = global_thread_index();
    if (i >= n) return;
    const long long index = (long long)indices[i];
    right[i] = is_right(wrong, index, size, ignored) ? index : ignored;
}

// Grid: x = a thread for each element.
template <typename T>
__global__ void look_outside(unsigned long long* wrong, const T* x, long long n, float low, float high) {
    const long long i = global_thread_index();
    if (i >= n) return;
    const auto element = Computed<T>(x[i]);
    if (!(element >= low && element <= high)) atomicExch(wrong, (unsigned long long)i);  // NaN is in no range
}
