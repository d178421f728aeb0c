// Rows of a matrix by their numbers: gathered, as an embedding does it, and summed, which is its gradient.
//
//   gather   out[i, :] = weight[indices[i], :]
//   sum      out[row, :] = the sum of g[i, :] over all i with indices[i] == row, in the order of i
//
// Shapes: weight (gather) and out (sum) are (rows, columns); out (gather) and g (sum) are (n, columns);
// indices are (n,), 64-bit. All are C-contiguous. An index outside of [0, rows) gathers NaN, and is left out
// of sums.
//
//   gather_naive    a thread for each element
//   gather_vector   + 16 bytes a load, and two of them on their way, where rows are made of such
//   sum_naive       the definition: a thread for each element of out looks through all indices
//   sum_sorted      + the indices sorted before, so that what belongs to a row stands together: its segment
//   sum_chunks      + long segments cut into chunks, each for a block of its own, which leaves a partial sum
//   sum_segments      and these added up; short segments at once; 16 bytes and several rows of g at a time
//
// The usual gradient of an embedding adds to out with atomics, in whatever order threads arrive, and rounds
// differently each time. Here every element of out is written once, by one thread, from sums whose order
// depends on the indices alone: the same bits in every run.
//
// Of 16 bits are the arrays of the gather, and of the last two rungs, whose sums are float32 (C).
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

// Rows that are made of whole vectors of 16 bytes, in arrays that begin at a multiple of 16. Threads side by
// side copy a row, two vectors at a time.
//
// Grid: x = the rows of out, blockDim.y of them in a block; blockDim.x threads walk along a row.
template <typename T>
__global__ void gather_vector(T* out, const T* weight, const long long* indices, long long n, long long rows,
                              long long columns) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    const long long i = (long long)blockIdx.x * blockDim.y + threadIdx.y, step = blockDim.x * LENGTH;
    if (i >= n) return;
    const long long row = indices[i];
    const bool known = row >= 0 && row < rows;
    const auto load = [&](long long column) {
        Vector<T> vector;
        for (int k = 0; k < LENGTH; k++) vector.lane[k] = T(NAN);
        return known ? load_vector(weight + row * columns + column) : vector;
    };
    out += i * columns;
    long long column = threadIdx.x * LENGTH;
    for (; column + step < columns; column += 2 * step) {
        const Vector<T> first = load(column), second = load(column + step);
        store_vector(out + column, first);
        store_vector(out + column + step, second);
    }
    if (column < columns) store_vector(out + column, load(column));
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

// What belongs to a row: g[order[k], :] for k from starts[row] to starts[row + 1], in that order. Threads
// side by side do columns side by side. A long segment is walked by a single thread for each column.
//
// Grid: x = a thread for each element of out.
template <typename T>
__global__ void sum_sorted(T* out, const T* g, const long long* order, const long long* starts,
                           long long rows, long long columns) {
    const long long at = global_thread_index();
    if (at >= rows * columns) return;
    const long long row = at / columns, column = at % columns;
    T sum = 0;
    for (long long k = starts[row]; k < starts[row + 1]; k++) sum += g[order[k] * columns + column];
    out[at] = sum;
}

// The sum of the vectors at from(k) for k in [begin, end), in that order; IN_FLIGHT of them are loaded before
// the first is added.
constexpr int IN_FLIGHT = 4;

template <int W, typename C, typename From>
__device__ __forceinline__ Vector<C, W> sum_of(Vector<C, W> sum, long long begin, long long end, From from) {
    using Terms = decltype(load_vector<W>(from(begin)));
    const auto add = [&](const Terms& term) {
#pragma unroll
        for (int i = 0; i < W; i++) sum.lane[i] += C(term.lane[i]);
    };
    long long k = begin;
    for (; k + IN_FLIGHT <= end; k += IN_FLIGHT) {
        Terms terms[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) terms[i] = load_vector<W>(from(k + i));
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) add(terms[i]);
    }
    for (; k < end; k++) add(load_vector<W>(from(k)));
    return sum;
}

// Few words of a text make up most of it, so some segments are long. Those of more than `chunk` positions are
// cut where the positions are multiples of it. A chunk of the positions touches at most two of them: one that
// it begins in, and one that begins inside of it and goes on behind. Their sums there go to partial[chunk, 0]
// and partial[chunk, 1]. A thread has a vector of columns (WIDE), where rows are made of such, or one.
//
// Grid: x = the chunks, y = the columns or vectors, blockDim.x of them in a block. partial is (chunks, 2,
// columns).
template <typename T, typename C, bool WIDE>
__global__ void sum_chunks(C* partial, const T* g, const long long* order, const long long* sorted,
                           const long long* starts, long long n, long long rows, long long columns,
                           long long chunk) {
    constexpr int W = WIDTH_OF<T, WIDE>;
    const long long begin = blockIdx.x * chunk, end = begin + chunk < n ? begin + chunk : n;
    const long long column = ((long long)blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (column >= columns) return;
    const long long first = sorted[begin], last = sorted[end - 1];  // rows, or `rows` for what is left out
    const auto is_long = [&](long long row) { return row < rows && starts[row + 1] - starts[row] > chunk; };
    const auto from = [&](long long k) { return g + order[k] * columns + column; };
    partial += blockIdx.x * 2 * columns + column;
    if (is_long(first)) {
        const long long stop = starts[first + 1] < end ? starts[first + 1] : end;
        store_vector(partial, sum_of<W>(Vector<C, W>{}, begin, stop, from));
    }
    if (last != first && is_long(last))
        store_vector(partial + columns, sum_of<W>(Vector<C, W>{}, starts[last], end, from));
}

// Grid: x = the rows of out, blockDim.y of them in a block; blockDim.x threads walk along the columns.
template <typename T, typename C, bool WIDE>
__global__ void sum_segments(T* out, const C* partial, const T* g, const long long* order,
                             const long long* starts, long long rows, long long columns, long long chunk) {
    constexpr int W = WIDTH_OF<T, WIDE>;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const long long begin = starts[row], end = starts[row + 1];
    const long long first = begin / chunk, chunks = (end + chunk - 1) / chunk;
    const bool inside = begin > first * chunk;  // the segment begins inside of its first chunk
    for (long long column = threadIdx.x * W; column < columns; column += blockDim.x * W) {
        Vector<C, W> sum{};
        if (end - begin > chunk) {
            sum = load_vector<W>(partial + (2 * first + inside) * columns + column);
            sum = sum_of<W>(sum, first + 1, chunks, [&](long long k) { return partial + 2 * k * columns + column; });
        } else {
            sum = sum_of<W>(sum, begin, end, [&](long long k) { return g + order[k] * columns + column; });
        }
        store_vector(out + row * columns + column, converted<T>(sum));
    }
}
