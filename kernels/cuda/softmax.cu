// Softmax over the rows of a matrix, its logarithm, and the gradients of both.
//
//   softmax      out = exp(x - m) / s          m the row's largest element, s = sum(exp(x - m)):
//   log_softmax  out = (x - m) - log(s)        no exponential overflows, and s is at least 1
//
// Shapes: all arrays are (rows, columns), C-contiguous. Of each kernel there are two, for softmax and
// (LOGARITHM) for log_softmax. An element of -infinity has probability 0. A row with a NaN or +infinity, or
// of nothing but -infinity, becomes NaN: it has no softmax.
//
//   ..._naive    the definition: one thread walks one row
//   ..._warp     + a warp for each row: neighbouring lanes read neighbours, and combine by shuffles
//   ..._block    + a block for each row, and m and s found together, in one walk instead of two
//
// Arithmetic intensity: about 30 operations for an element, most of them in its two exponentials, for the 8
// bytes of reading and writing it once in float32: 4 a byte, where an H200 can do 14 (67 TFLOP/s, 4.8 TB/s).
// The kernels are bound by memory. They read a row three times, or twice with _block; a row that fits the
// caches comes from memory once. So what counts is that loads are coalesced and that there are many of them
// at a time. The next rung would keep the row in registers between its walks.

#include "normalizer.cuh"

// What an element is divided by, or, as a logarithm, what is taken from it: once for a row.
template <bool LOGARITHM, typename T>
__device__ __forceinline__ T divisor(T s) {
    if constexpr (LOGARITHM) return log(s);
    return s;
}

// An element of the result, in a row with the largest element m.
template <bool LOGARITHM, typename T>
__device__ __forceinline__ T normalized(T x, T m, T by) {
    if constexpr (LOGARITHM) return (x - m) - by;
    return exp(x - m) / by;
}

// The definition, in three walks along the row: its largest element, the sum, the results. The threads of a
// warp read elements that lie a row apart: each load touches 32 lines of memory.
//
// Grid: x = a thread for each row.
template <typename T, bool LOGARITHM>
__global__ void softmax_naive(T* out, const T* x, long long rows, long long columns) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    out += row * columns;
    x += row * columns;

    T m = -T(INFINITY), s = 0;
    for (long long i = 0; i < columns; i++) m = combine<MAX>(m, x[i]);
    for (long long i = 0; i < columns; i++) s += exp(x[i] - m);
    const T by = divisor<LOGARITHM>(s);
    for (long long i = 0; i < columns; i++) out[i] = normalized<LOGARITHM>(x[i], m, by);
}

// The same three walks by the 32 lanes of a warp, side by side: a load of the warp is one to two whole lines
// of memory. Each lane has a largest element and a sum of its own; shuffles make them the row's, between
// registers, with no shared memory and no barrier. A short row is still in the L1 cache when read again.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool LOGARITHM>
__global__ void softmax_warp(T* out, const T* x, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    out += row * columns;
    x += row * columns;

    T m = -T(INFINITY), s = 0;
    for (long long i = threadIdx.x; i < columns; i += WARP) m = combine<MAX>(m, x[i]);
    m = across_warp<MAX>(m);
    for (long long i = threadIdx.x; i < columns; i += WARP) s += exp(x[i] - m);
    const T by = divisor<LOGARITHM>(across_warp<SUM>(s));
    for (long long i = threadIdx.x; i < columns; i += WARP) out[i] = normalized<LOGARITHM>(x[i], m, by);
}

// A block for each row, for rows so long that a lane would do a hundred elements one after the other. The
// online normaliser leaves two walks, one to read and one to read and write, with a single barrier between
// them, and still takes one exponential for an element in each.
//
// Grid: x = a block for each row; blockDim.x = a multiple of 32.
template <typename T, bool LOGARITHM>
__global__ void __launch_bounds__(MAX_THREADS)
softmax_block(T* out, const T* x, long long rows, long long columns) {
    out += blockIdx.x * columns;
    x += blockIdx.x * columns;

    Normalizer<T> row;
    for (long long i = threadIdx.x; i < columns; i += blockDim.x) row.add(x[i]);
    row.add_across_block();
    const T by = divisor<LOGARITHM>(row.sum());
    for (long long i = threadIdx.x; i < columns; i += blockDim.x)
        out[i] = normalized<LOGARITHM>(x[i], row.m, by);
}

// ---- gradients ----
//
//   softmax      out = (grad - sum(grad y)) y          y the output of softmax
//   log_softmax  out = grad - exp(y) sum(grad)         y the output of log_softmax
//
// Two walks: the sum, the results. The rungs are those above, with one sum to combine. For an element in
// float32 they read 8 bytes, the second time from the caches if the row is not too long, and write 4, for 4
// operations and at most one exponential: they are bound by memory even more than softmax is.

// What an element adds to the row's sum.
template <bool LOGARITHM, typename T>
__device__ __forceinline__ T summand(T grad, T y) {
    return LOGARITHM ? grad : grad * y;
}

template <bool LOGARITHM, typename T>
__device__ __forceinline__ T gradient(T grad, T y, T sum) {
    if constexpr (LOGARITHM) return grad - exp(y) * sum;
    return (grad - sum) * y;
}

// Grid: x = a thread for each row.
template <typename T, bool LOGARITHM>
__global__ void softmax_grad_naive(T* out, const T* grad, const T* y, long long rows, long long columns) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    const long long begin = row * columns, end = begin + columns;
    T sum = 0;
    for (long long i = begin; i < end; i++) sum += summand<LOGARITHM>(grad[i], y[i]);
    for (long long i = begin; i < end; i++) out[i] = gradient<LOGARITHM>(grad[i], y[i], sum);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool LOGARITHM>
__global__ void softmax_grad_warp(T* out, const T* grad, const T* y, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    const long long begin = row * columns + threadIdx.x, end = (row + 1) * columns;
    T sum = 0;
    for (long long i = begin; i < end; i += WARP) sum += summand<LOGARITHM>(grad[i], y[i]);
    sum = across_warp<SUM>(sum);
    for (long long i = begin; i < end; i += WARP) out[i] = gradient<LOGARITHM>(grad[i], y[i], sum);
}

// Grid: x = a block for each row; blockDim.x = a multiple of 32.
template <typename T, bool LOGARITHM>
__global__ void __launch_bounds__(MAX_THREADS)
softmax_grad_block(T* out, const T* grad, const T* y, long long rows, long long columns) {
    const long long begin = blockIdx.x * columns + threadIdx.x, end = (blockIdx.x + 1) * columns;
    T sum = 0;
    for (long long i = begin; i < end; i += blockDim.x) sum += summand<LOGARITHM>(grad[i], y[i]);
    sum = across_block<SUM>(sum);
    for (long long i = begin; i < end; i += blockDim.x) out[i] = gradient<LOGARITHM>(grad[i], y[i], sum);
}
