// Layer norm and group norm, and their gradients for the input: normalisation of the rows of a matrix.
//
//   y = (x - mean) rstd weight + bias      mean and variance of the row, rstd = 1 / sqrt(variance + eps)
//   dx = (a - E[a] - normal E[a normal]) rstd      a = grad weight, normal = (x - mean) rstd, E over the row
//
// Shapes: x, y, grad and dx are (rows, columns), mean and rstd (rows), C-contiguous. For layer norm, weight and
// bias are (columns). For group norm (PER_CHANNEL) a row is a group of one sample: `channels` channels of
// `area` elements each; the rows go through the `groups` of each sample in turn, and weight and bias are
// (groups * channels). Either may be null: 1 and 0. Their gradients are sums over rows: channel_sums.cu.
//
//   ..._naive    the definition: one thread walks one row
//   ..._warp     + a warp for each row: neighbouring lanes read neighbours, and combine by shuffles
//   ..._block    + a block for each row, for rows too long for one warp. Here x, y, grad and dx (T) may be of
//                  16 bits; all else (C) is then float32
//
// The variance is the mean of the squared deviations from the mean, in a second walk; E[x^2] - E[x]^2 would
// lose all digits where the mean is large. That walk also sums the deviations themselves. Their mean is what
// the first mean is off, by the roundings of a long sum, and corrects it and the variance
// (https://doi.org/10.1080/00031305.1983.10483115).
//
// Arithmetic intensity: about 8 operations for an element, for the 8 bytes of reading and writing it once in
// float32: 1 a byte, where an H200 can do 14 (67 TFLOP/s over 4.8 TB/s). The kernels are bound by memory. They
// walk a row three times (dx: twice); a row that fits the caches comes from memory once.

#include "norm.cuh"

// A row of group norm has less than 2^32 elements: a 32-bit division is several times quicker.
template <bool PER_CHANNEL>
__device__ __forceinline__ long long parameter(Layout layout, long long row, long long column) {
    if constexpr (!PER_CHANNEL) return column;
    return row % layout.groups * layout.channels + unsigned(column) / unsigned(layout.area);
}

// The threads that share a row: which elements are this thread's, and the sum over all of them.
struct Alone {
    static __device__ __forceinline__ int first() { return 0; }
    static __device__ __forceinline__ int step() { return 1; }
    template <typename T>
    static __device__ __forceinline__ T sum(T value) {
        return value;
    }
};

struct Warp {
    static __device__ __forceinline__ int first() { return threadIdx.x; }
    static __device__ __forceinline__ int step() { return WARP; }
    template <typename T>
    static __device__ __forceinline__ T sum(T value) {
        return across_warp<SUM>(value);
    }
};

struct Block {
    static __device__ __forceinline__ int first() { return threadIdx.x; }
    static __device__ __forceinline__ int step() { return blockDim.x; }
    template <typename T>
    static __device__ __forceinline__ T sum(T value) {
        __syncthreads();  // all have read the sum before this one
        return across_block<SUM>(value);
    }
};

// One row of y, with its mean and rstd.
template <typename Threads, bool PER_CHANNEL, typename C, typename T>
__device__ __forceinline__ void normalize_row(
    T* y, C* mean, C* rstd, const T* x, const C* weight, const C* bias, long long row, long long columns,
    Layout layout, C eps
) {
    x += row * columns;
    y += row * columns;
    C sum = 0;
    for (long long i = Threads::first(); i < columns; i += Threads::step()) sum += C(x[i]);
    const C about = Threads::sum(sum) / C(columns);

    C deviations = 0, squares = 0;
    for (long long i = Threads::first(); i < columns; i += Threads::step()) {
        const C deviation = C(x[i]) - about;
        deviations += deviation;
        squares += deviation * deviation;
    }
    const C off = Threads::sum(deviations) / C(columns);
    const C variance = Threads::sum(squares) / C(columns) - off * off;
    const C m = about + off, r = 1 / sqrt((variance < 0 ? C(0) : variance) + eps);
    if (Threads::first() == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
    for (long long i = Threads::first(); i < columns; i += Threads::step()) {
        const long long p = parameter<PER_CHANNEL>(layout, row, i);
        y[i] = T((C(x[i]) - m) * r * value_or(weight, p, C(1)) + value_or(bias, p, C(0)));
    }
}

// Grid: x = a thread for each row.
template <typename T, bool PER_CHANNEL>
__global__ void norm_naive(
    T* y, T* mean, T* rstd, const T* x, const T* weight, const T* bias, long long rows, long long columns,
    Layout layout, T eps
) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    normalize_row<Alone, PER_CHANNEL>(y, mean, rstd, x, weight, bias, row, columns, layout, eps);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool PER_CHANNEL>
__global__ void norm_warp(
    T* y, T* mean, T* rstd, const T* x, const T* weight, const T* bias, long long rows, long long columns,
    Layout layout, T eps
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    normalize_row<Warp, PER_CHANNEL>(y, mean, rstd, x, weight, bias, row, columns, layout, eps);
}

// Grid: x = a block for each row; blockDim.x = a multiple of 32.
template <typename C, typename T, bool PER_CHANNEL>
__global__ void __launch_bounds__(MAX_THREADS) norm_block(
    T* y, C* mean, C* rstd, const T* x, const C* weight, const C* bias, long long rows, long long columns,
    Layout layout, C eps
) {
    normalize_row<Block, PER_CHANNEL>(y, mean, rstd, x, weight, bias, blockIdx.x, columns, layout, eps);
}

// ---- the gradient for the input ----
//
// The rungs are those above, with two walks: the two sums, the results.

// One row of dx.
template <typename Threads, bool PER_CHANNEL, typename C, typename T>
__device__ __forceinline__ void gradient_row(
    T* dx, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight, long long row,
    long long columns, Layout layout
) {
    const auto weighted = [&](long long i) {
        return rounded_product(C(grad[i]), value_or(weight, parameter<PER_CHANNEL>(layout, row, i), C(1)));
    };
    const C m = mean[row], r = rstd[row];
    dx += row * columns;
    grad += row * columns;
    x += row * columns;
    C sum = 0, product = 0;
    for (long long i = Threads::first(); i < columns; i += Threads::step()) {
        const C a = weighted(i);
        sum += a;
        product += a * ((C(x[i]) - m) * r);
    }
    sum = Threads::sum(sum) / C(columns);
    product = Threads::sum(product) / C(columns);
    for (long long i = Threads::first(); i < columns; i += Threads::step())
        dx[i] = T((weighted(i) - sum - (C(x[i]) - m) * r * product) * r);
}

// Grid: x = a thread for each row.
template <typename T, bool PER_CHANNEL>
__global__ void norm_grad_naive(
    T* dx, const T* grad, const T* x, const T* mean, const T* rstd, const T* weight, long long rows,
    long long columns, Layout layout
) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    gradient_row<Alone, PER_CHANNEL>(dx, grad, x, mean, rstd, weight, row, columns, layout);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool PER_CHANNEL>
__global__ void norm_grad_warp(
    T* dx, const T* grad, const T* x, const T* mean, const T* rstd, const T* weight, long long rows,
    long long columns, Layout layout
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    gradient_row<Warp, PER_CHANNEL>(dx, grad, x, mean, rstd, weight, row, columns, layout);
}

// Grid: x = a block for each row; blockDim.x = a multiple of 32.
template <typename C, typename T, bool PER_CHANNEL>
__global__ void __launch_bounds__(MAX_THREADS) norm_grad_block(
    T* dx, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight, long long rows,
    long long columns, Layout layout
) {
    gradient_row<Block, PER_CHANNEL>(dx, grad, x, mean, rstd, weight, blockIdx.x, columns, layout);
}
