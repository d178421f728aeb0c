// What more than a sum takes, of the rows of a matrix (rows, columns), C-contiguous, in one launch.
//
//   squares          out[row] = the sum of (x - m)^2, over `divisor`: m the row's mean (CENTRED: a variance) or 0
//   extremum_grad    out[row, i] = grad[row] / n where x[row, i] is y[row], the row's extremum, which n elements are
//   arg_extremum     out[row] = the number of the row's first largest (MAX) or smallest element; of its first NaN
//
// The first keeps a row in registers between its mean and its squares, and reads it once, as softmax_registers
// does. The second reads it twice, the second time from the caches if it is not too long. A block has several rows
// that a warp is enough for, or one.
//
// Arithmetic intensity: at most 4 operations for the 4 bytes of an element in float32, where an H200 can do 14 a
// byte (67 TFLOP/s, 4.8 TB/s): bound by memory. The order of the additions depends on the shape alone.
//
// The arrays may be of 16 bits; they are computed with in float32.

#include "row_vectors.cuh"

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
// Vectors for the whole row: blockDim.x * HELD * 16 bytes.
template <typename T, bool CENTRED>
__global__ void __launch_bounds__(MOST_THREADS<T>)
squares(T* out, const T* x, long long rows, int columns, double divisor) {
    using C = Computed<T>;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    RowPart<T, HELD<T>> part;
    part.load(x + row * columns, columns, C(0));
    C mean = 0, sum = 0;
    if constexpr (CENTRED) {
        part.each([&](C element, int) { mean += element; });
        mean = across_row<SUM>(mean) / columns;
        if (blockDim.x > WARP) __syncthreads();  // all have read the sums of the warps; others take their place
    }
    part.each([&](C element, int i) {
        if (i < columns) sum += (element - mean) * (element - mean);
    });
    sum = across_row<SUM>(sum);
    if (threadIdx.x == 0) out[row] = T(sum / C(divisor));
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
extremum_grad(T* out, const T* grad, const T* y, const T* x, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    out += row * columns;
    x += row * columns;
    using C = Computed<T>;
    const C extremum = C(y[row]);
    C count = 0;
    walk(x, columns, C(0), [&](auto& part, long long, int here) {
        part.each([&](C element, int i) { count += i < here && element == extremum; });
    });
    const C share = C(grad[row]) / across_row<SUM>(count), nothing = C(0) * share;  // NaN, where y is
    walk(x, columns, C(0), [&](auto& part, long long begin, int here) {
        part.each([&](C& element, int) { element = element == extremum ? share : nothing; });
        part.store(out + begin, here);
    });
}

// An element and its number in the row.
template <typename T>
struct Found {
    T value;
    long long index;

    // Take `other` in place of this, if it is further out, or as far and before it.
    template <Operation OP>
    __device__ __forceinline__ void take(T other, long long at) {
        const bool further = OP == MAX ? other > value : other < value;
        const bool same = other == value || (isnan(other) && isnan(value));
        if (further || (isnan(other) && !isnan(value)) || (same && at < index)) {
            value = other;
            index = at;
        }
    }

    template <Operation OP>
    __device__ __forceinline__ void take_across_warp() {
        for (int distance = WARP / 2; distance > 0; distance /= 2) {
            const T other = __shfl_xor_sync(ALL_LANES, value, distance);
            take<OP>(other, __shfl_xor_sync(ALL_LANES, index, distance));
        }
    }
};

// Grid and block as above. columns > 0.
template <typename T, Operation OP>
__global__ void __launch_bounds__(MAX_THREADS)
arg_extremum(long long* out, const T* x, long long rows, long long columns) {
    using C = Computed<T>;
    __shared__ Found<C> of_warp[MAX_WARPS];
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    Found<C> found{neutral<OP, C>(), columns};
    walk(x + row * columns, columns, neutral<OP, C>(), [&](auto& part, long long begin, int here) {
        part.each([&](C element, int i) {
            if (i < here) found.template take<OP>(element, begin + i);
        });
    });
    found.template take_across_warp<OP>();
    if (blockDim.x > WARP) {
        if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = found;
        __syncthreads();  // all warps have left what they found
        if (threadIdx.x > 0) return;
        for (int warp = 1; warp < blockDim.x / WARP; warp++)
            found.template take<OP>(of_warp[warp].value, of_warp[warp].index);
    }
    if (threadIdx.x == 0) out[row] = found.index;
}
