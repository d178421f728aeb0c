// Rows of a matrix by their numbers: gathered, as an embedding does it, and summed, which is its gradient.
//
//   gather   out[i, :] = weight[indices[i], :]
//   sum      out[row, :] = the sum of g[i, :] over all i with indices[i] == row, in the order of i
//
// Shapes: weight (gather) and out (sum) are (rows, columns); out (gather) and g (sum) are (n, columns); indices
// are (n,), 64-bit. All are C-contiguous. An index outside of [0, rows) gathers NaN, and is left out of sums.
//
//   gather_naive    a thread for each element
//   gather_vector   + 16 bytes for each thread, where rows are made of such
//   sum_naive       the definition: a thread for each element of out looks through all indices
//   sum_sorted      + the indices sorted before, so that what belongs to a row stands together: its segment
//   sum_block       + a block for each row: the threads of a block share a long segment
//
// The usual gradient of an embedding adds to out with atomics, in whatever order threads arrive, and rounds
// differently each time. Here every element of out is written once, by one thread, from sums whose order
// depends on the indices alone: the same bits in every run.
//
// Arithmetic intensity: at most one addition for 4 bytes read. All are bound by memory, and the rungs change
// how much of it is asked for at a time. Naive sums read n indices for every element of out.

#include "common.cuh"
#include "vector.cuh"

// ---- gather ----

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void gather_naive(T* out, const T* weight, const long long* indices, long long n, long long rows,
                             long long columns) {
    const long long at = global_thread_index();
    if (at >= n * columns) return;
    const long long row = indices[at / columns];
    out[at] = row >= 0 && row < rows ? weight[row * columns + at % columns] : T(NAN);
}

// Rows that are made of whole vectors of 16 bytes, in arrays that begin at a multiple of 16.
//
// Grid: x = a thread for each vector of out.
template <typename T>
__global__ void gather_vector(T* out, const T* weight, const long long* indices, long long n, long long rows,
                              long long columns) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    const long long at = global_thread_index(), vectors = columns / LENGTH;
    if (at >= n * vectors) return;
    const long long row = indices[at / vectors];
    Vector<T> vector;
    for (int k = 0; k < LENGTH; k++) vector.lane[k] = T(NAN);
    if (row >= 0 && row < rows) vector = load_vector(weight + row * columns + at % vectors * LENGTH);
    store_vector(out + at * LENGTH, vector);
}

// ---- sum ----

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void sum_naive(T* out, const T* g, const long long* indices, long long n, long long rows,
                          long long columns) {
    const long long at = global_thread_index();
    if (at >= rows * columns) return;
    const long long row = at / columns, column = at % columns;
    T sum = 0;
    for (long long i = 0; i < n; i++)
        if (indices[i] == row) sum += g[i * columns + column];
    out[at] = sum;
}

// What belongs to a row: g[order[k], :] for k from starts[row] to starts[row + 1], in that order. One thread's
// share of one column, of every step-th from begin on.
template <typename T>
__device__ __forceinline__ T segment_sum(const T* g, const long long* order, long long begin, long long end,
                                         int step, long long columns, long long column) {
    T sum = 0;
    for (long long k = begin; k < end; k += step) sum += g[order[k] * columns + column];
    return sum;
}

// Threads side by side do columns side by side. A long segment is walked by a single thread for each column.
//
// Grid: x = a thread for each element of out.
template <typename T>
__global__ void sum_sorted(T* out, const T* g, const long long* order, const long long* starts, long long rows,
                           long long columns) {
    const long long at = global_thread_index();
    if (at >= rows * columns) return;
    const long long row = at / columns;
    out[at] = segment_sum(g, order, starts[row], starts[row + 1], 1, columns, at % columns);
}

// Few words of a text make up most of it, so some segments are long. All of a block's threads then share one:
// blockDim.y of them take the rows of a column in turn, and their sums are halved in shared memory, like the
// tree of reduce.cu. In a short segment every thread has columns of its own, as in sum_sorted.
//
// Grid: x = a block for each row of out; blockDim = (neighbouring columns, walkers): both powers of two, their
// product BLOCK.
constexpr int BLOCK = 256;
constexpr int LONG = 32;  // rows of a segment from which on it is shared

template <typename T>
__global__ void __launch_bounds__(BLOCK)
sum_block(T* out, const T* g, const long long* order, const long long* starts, long long columns) {
    __shared__ T sums[BLOCK];
    const long long begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    out += blockIdx.x * columns;

    if (end - begin < LONG) {
        for (long long column = thread; column < columns; column += BLOCK)
            out[column] = segment_sum(g, order, begin, end, 1, columns, column);
        return;
    }
    for (long long first = 0; first < columns; first += blockDim.x) {
        const long long column = first + threadIdx.x;
        T sum = 0;
        if (column < columns)
            sum = segment_sum(g, order, begin + threadIdx.y, end, blockDim.y, columns, column);
        sums[thread] = sum;
        for (int half = blockDim.y / 2; half > 0; half /= 2) {
            __syncthreads();  // the level before is complete
            if (threadIdx.y < half) sums[thread] += sums[thread + half * blockDim.x];
        }
        if (threadIdx.y == 0 && column < columns) out[column] = sums[thread];
        __syncthreads();  // before the next columns' sums take their place
    }
}
