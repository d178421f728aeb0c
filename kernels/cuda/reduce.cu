// Reductions over the rows of a matrix: out[row] = the sum, largest or smallest element of x[row, :].
//
// Shapes: x is (rows, columns), out is (rows), both C-contiguous. The sum of no elements is 0; a NaN in a row
// makes any of its results NaN.
//
//   reduce_naive       the definition: one thread walks one row
//   reduce_tree        + a block for each row: threads side by side read it, then halve in shared memory
//   reduce_shuffle     + values combined between registers: one barrier, where the tree has one for each level
//   reduce_vectorized  + 16 bytes a load, and several loads on their way before the first is used. From here on x
//                      and out may be of 16 bits: the sums, and what one launch leaves to the next, are float32
//   reduce_split       + several blocks for each row, where there are too few rows to fill the card
//
// and reduce_columns, for sums and extrema over another axis than the last.
//
// Arithmetic intensity: one addition for each element, 0.25 a byte in float32, however it is done. An H200
// can do 14 (67 TFLOP/s over 4.8 TB/s), so the time is that of reading x once, and all that the rungs improve
// is how much of the memory's bandwidth they ask for. There are no atomics: the order of the additions, and
// so the bits of the result, depend on the shape alone.
//
// Each thread or block makes several partial sums before they meet, so the higher rungs are also the more
// accurate: the error of a sum of n terms grows with n in naive, with n / threads + log(threads) above it.

#include "row_vectors.cuh"

// The definition. The 32 threads of a warp read at the same time elements that lie a row apart, from 32 lines
// of memory; of each line, the other elements come from the cache if they are still there.
//
// Grid: x = a thread for each row.
template <typename T, Operation OP>
__global__ void reduce_naive(T* out, const T* x, long long rows, long long columns) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    T value = neutral<OP, T>();
    for (long long column = 0; column < columns; column++)
        value = combine<OP>(value, x[row * columns + column]);
    out[row] = value;
}

// One thread's share of a row, which blockDim.x threads divide among them. They read side by side: a warp reads
// whole lines of memory.
template <Operation OP, typename T>
__device__ __forceinline__ T own_share(const T* row, long long columns) {
    T value = neutral<OP, T>();
    for (long long column = threadIdx.x; column < columns; column += blockDim.x)
        value = combine<OP>(value, row[column]);
    return value;
}

// The tree: the 256 values of a block become 128, 64, ..., 1. Its lower half takes in the upper half, so that
// the threads at work stay side by side, in few warps and in different banks of the shared memory. Each level
// waits for the one before: log2(256) = 8 barriers, and from 32 values on most of them for a single warp.
//
// Grid: x = a block of TREE_THREADS for each row.
constexpr int TREE_THREADS = 256;

template <typename T, Operation OP>
__global__ void __launch_bounds__(TREE_THREADS)
reduce_tree(T* out, const T* x, long long rows, long long columns) {
    __shared__ T tree[TREE_THREADS];
    const int thread = threadIdx.x;
    const long long row = blockIdx.x;
    tree[thread] = own_share<OP>(x + row * columns, columns);
    for (int half = TREE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // the level before is complete
        if (thread < half) tree[thread] = combine<OP>(tree[thread], tree[thread + half]);
    }
    if (thread == 0) out[row] = tree[0];
}

// Shuffles: within a warp, values are combined between registers, in five steps that need no barrier, as the
// warp takes them together. One barrier is left, for the results of the warps to meet. A short row gets one
// warp and no barrier at all, and a block then holds several rows, so that it is not too small to be worth
// its start.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim = (threads of a row, a multiple of 32; rows).
// More than one warp for a row: one row for the block.
template <typename T, Operation OP>
__global__ void __launch_bounds__(MAX_THREADS)
reduce_shuffle(T* out, const T* x, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const T value = across_row<OP>(own_share<OP>(x + row * columns, columns));
    if (threadIdx.x == 0) out[row] = value;
}

// Vectors of 16 bytes, several on their way before the first is used. Each lane of the vectors has a partial value of
// its own, so that additions do not wait for one another either.
template <Operation OP, typename T>
__device__ __forceinline__ Computed<T> own_vectors(const T* row, long long length) {
    using C = Computed<T>;
    constexpr int N = Vector<T>::LENGTH;
    C partial[N];
#pragma unroll
    for (int n = 0; n < N; n++) partial[n] = neutral<OP, C>();
    walk(row, length, neutral<OP, C>(), [&](const RowPart<T, UNROLL>& part, long long, int) {
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
#pragma unroll
            for (int n = 0; n < N; n++) partial[n] = combine<OP>(partial[n], part.vector[k].lane[n]);
    });
#pragma unroll
    for (int n = 1; n < N; n++) partial[0] = combine<OP>(partial[0], partial[n]);
    return partial[0];
}

// What a result is divided by: a sum, if its mean is wanted.
template <Operation OP, typename C>
__device__ __forceinline__ C quotient(C value, double divisor) {
    return OP == SUM ? value / C(divisor) : value;
}

// Grid and block as those of reduce_shuffle; but blockDim.x may also be a lower power of two than 32, for rows so short
// that so many threads read them at once. A warp then has several rows; past the last one it reduces that again.
template <typename Out, typename T, Operation OP>
__global__ void __launch_bounds__(MAX_THREADS)
reduce_vectorized(Out* out, const T* x, long long rows, long long columns, double divisor) {
    const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y, row = min(place, rows - 1);
    const Computed<T> value = across_row<OP>(own_vectors<OP>(x + row * columns, columns));
    if (threadIdx.x == 0 && place < rows) out[row] = Out(quotient<OP>(value, divisor));
}

// Split: a single row of ten million elements is one block to reduce_vectorized, and one block is one of the
// card's 132 multiprocessors. Here each of a row's parts, of `length` elements but for the last, goes to a block
// of its own, which reduces it to partial[row, part]; these are a (rows, parts) matrix, and reduce_vectorized
// does the rest.
//
// Grid: x = rows * parts blocks, the parts of a row one after the other.
template <typename C, typename T, Operation OP>
__global__ void __launch_bounds__(MAX_THREADS)
reduce_split(C* partial, const T* x, long long columns, long long parts, long long length) {
    const long long row = blockIdx.x / parts, begin = blockIdx.x % parts * length;
    const long long rest = columns - begin;
    const long long here = rest < length ? rest : length;
    const C value = across_block<OP>(own_vectors<OP>(x + row * columns + begin, here));
    if (threadIdx.x == 0) partial[blockIdx.x] = value;
}

// ---- down the columns ----
//
// out[o, c] = the sum, largest or smallest element of x[o, :, c]: x is (outer, rows, columns), out is
// (outer, columns), both C-contiguous. The threads side by side take neighbouring columns, a vector each, and
// walk down: a warp reads 512 bytes of a row, UNROLL rows at a time. The threads of a block that stand below
// each other, at rows blockDim.y apart, combine their values in shared memory, in their order. The rows are cut
// into parts for many blocks, and what they leave, partial[o, part, c], is reduced by a second launch of the same
// kernel.
//
// Grid: x = strips of blockDim.x vectors of columns, y = parts of `length` rows, z = outer.
// Block: (a power of two up to 32, so many that there are COLUMN_THREADS). Shared memory: 4 KB, of 16 bits 8 KB.
constexpr int COLUMN_THREADS = 256;

template <typename Out, typename T, Operation OP>
__global__ void __launch_bounds__(COLUMN_THREADS)
reduce_columns(Out* out, const T* x, long long rows, long long columns, long long length, double divisor) {
    using C = Computed<T>;
    constexpr int N = Vector<T>::LENGTH;
    __shared__ Vector<C, N> below[COLUMN_THREADS];
    const long long column = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    const long long begin = blockIdx.y * length, end = begin + length < rows ? begin + length : rows;
    const int here = int(columns - column < N ? columns - column : N);
    const T* from = x + blockIdx.z * rows * columns + column;
    const bool whole = columns % N == 0 && aligned<N>(x);
    Vector<C, N> value;
#pragma unroll
    for (int n = 0; n < N; n++) value.lane[n] = neutral<OP, C>();

    in_batches<UNROLL>(begin + threadIdx.y, here > 0 ? end : begin, blockDim.y, [&](const auto& numbers) {
        constexpr int COUNT = sizeof(numbers) / sizeof(numbers[0]);
        // As they are stored: to convert them here would be to wait for each.
        Vector<T, N> part[COUNT];
        if (whole) {
#pragma unroll
            for (int k = 0; k < COUNT; k++) part[k] = load_vector(from + numbers[k] * columns);
        } else {
#pragma unroll
            for (int k = 0; k < COUNT; k++)
#pragma unroll
                for (int n = 0; n < N; n++)
                    part[k].lane[n] = n < here ? from[numbers[k] * columns + n] : T(neutral<OP, C>());
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++)
#pragma unroll
            for (int n = 0; n < N; n++) value.lane[n] = combine<OP>(value.lane[n], C(part[k].lane[n]));
    });
    below[threadIdx.y * blockDim.x + threadIdx.x] = value;
    __syncthreads();  // all have left their values
    if (threadIdx.y > 0 || here <= 0) return;
    for (int k = 1; k < blockDim.y; k++)
        for (int n = 0; n < N; n++)
            value.lane[n] = combine<OP>(value.lane[n], below[k * blockDim.x + threadIdx.x].lane[n]);
    out += (blockIdx.z * (long long)gridDim.y + blockIdx.y) * columns + column;
    for (int n = 0; n < here; n++) out[n] = Out(quotient<OP>(value.lane[n], divisor));
}
