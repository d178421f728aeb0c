// Sums and means of losses, found where the losses of the elements are not written.
//
//   loss_sum     the sum of loss(x[i], target[i]), divided by `divisor`:
//                ABSOLUTE |x - t|;  SQUARED (x - t)^2;  LOGISTIC log(1 + exp(x)) - x t, of logits x
//   class_mean   the sum of the losses of rows, divided by how many of the rows have a target that counts
//
// Shapes: x and target are (n,), contiguous; target may be null, for zeros. As in reduce.cu: vectors of 16 bytes, several on their way at a time,
// and a block for each part of `length` elements, whose results another launch adds up. The order of the additions
// depends on n alone.
//
// Arithmetic intensity: 3 operations (absolute, squared) to some 30 (logistic) for the 8 bytes of an element in
// float32, where an H200 can do 14 a byte (67 TFLOP/s, 4.8 TB/s): bound by memory.

#include "row_vectors.cuh"

enum Loss { ABSOLUTE, SQUARED, LOGISTIC };

template <Loss LOSS, typename T>
__device__ __forceinline__ T loss_of(T x, T target) {
    if constexpr (LOSS == ABSOLUTE) return fabs(x - target);
    if constexpr (LOSS == SQUARED) return (x - target) * (x - target);
    return fmax(x, T(0)) + log1p(exp(-fabs(x))) - x * target;  // exp of what is not positive cannot overflow
}

// Grid: x = the parts of n. out (parts,).
template <typename T, Loss LOSS>
__global__ void __launch_bounds__(MAX_THREADS)
loss_sum(T* out, const T* x, const T* target, long long n, long long length, T divisor) {
    constexpr int N = Vector<T>::LENGTH;
    const long long begin = blockIdx.x * length, rest = n - begin;
    T sum[N] = {};  // one for each lane of the vectors: additions do not wait for one another
    walk(x + begin, rest < length ? rest : length, T(0), [&](auto& part, long long first, int here) {
        RowPart<T, UNROLL> targets{};
        if (target) targets.load(target + begin + first, here, T(0));
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (part.start(k) + i < here)
                    sum[i] += loss_of<LOSS>(part.vector[k].lane[i], targets.vector[k].lane[i]);
    });
#pragma unroll
    for (int i = 1; i < N; i++) sum[0] += sum[i];
    sum[0] = across_block<SUM>(sum[0]);
    if (threadIdx.x == 0) out[blockIdx.x] = sum[0] / divisor;
}

// What a mean over classes needs between or before the kernels of cross_entropy.cu: out[i], for each i < copies, is
// the sum of the values, divided by the number of targets (rows,) other than ignore_index; without targets, not
// divided. The values are the losses of the rows, or the gradient of their mean.
//
// Grid: one block, so that there is one launch: rows are few beside the logits, of which each has many.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) class_mean(
    T* out, const T* values, const long long* target, long long count, long long rows, long long copies,
    long long ignore_index
) {
    T sum = 0;
    long long counted = 0;
#pragma unroll 4
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += values[i];
    sum = across_block<SUM>(sum);
    if (target) {
#pragma unroll 4
        for (long long i = threadIdx.x; i < rows; i += blockDim.x) counted += target[i] != ignore_index;
        sum /= T(across_block<SUM>(counted));
    }
    for (long long i = threadIdx.x; i < copies; i += blockDim.x) out[i] = sum;
}
