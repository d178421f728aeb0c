// Reductions over the rows of a matrix: out[row] = the sum, largest or smallest element of x[row, :].
//
// Shapes: x is (rows, columns), out is (rows), both C-contiguous. The sum of no elements is 0; a NaN in a row
// makes any of its results NaN.
//
//   reduce_naive     the definition: one thread walks one row
//   reduce_tree      + a block for each row: threads side by side read it, then halve in shared memory
//   reduce_shuffle   + values combined between registers: one barrier, where the tree has one for each level
//   reduce_split     + several blocks for each row, where there are too few rows to fill the card
//
// Arithmetic intensity: one addition for each element, 0.25 a byte in float32, however it is done. An H200
// can do 14 (67 TFLOP/s over 4.8 TB/s), so the time is that of reading x once, and all that the rungs improve
// is how much of the memory's bandwidth they ask for. There are no atomics: the order of the additions, and
// so the bits of the result, depend on the shape alone.
//
// Each thread or block makes several partial sums before they meet, so the higher rungs are also the more
// accurate: the error of a sum of n terms grows with n in naive, with n / threads + log(threads) above it.

#include "rows.cuh"

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

// One thread's share of the elements [begin, end) of a row, which blockDim.x threads divide among them. They
// read side by side: a warp reads whole lines of memory.
template <Operation OP, typename T>
__device__ __forceinline__ T own_share(const T* row, long long begin, long long end) {
    T value = neutral<OP, T>();
    for (long long column = begin + threadIdx.x; column < end; column += blockDim.x)
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
    tree[thread] = own_share<OP>(x + row * columns, 0, columns);
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
    T value = own_share<OP>(x + row * columns, 0, columns);
    value = blockDim.x == WARP ? across_warp<OP>(value) : across_block<OP>(value);
    if (threadIdx.x == 0) out[row] = value;
}

// Split: a single row of ten million elements is one block to reduce_shuffle, and one block is one of the
// card's 132 multiprocessors. Here each of a row's `parts` goes to a block of its own, which reduces it to
// partial[row, part]; these are a (rows, parts) matrix, and reduce_shuffle does the rest.
//
// Grid: x = rows * parts blocks, the parts of a row one after the other.
template <typename T, Operation OP>
__global__ void reduce_split(T* partial, const T* x, long long columns, long long parts) {
    const long long row = blockIdx.x / parts, part = blockIdx.x % parts;
    const long long length = (columns + parts - 1) / parts;
    const long long begin = part * length, end = begin + length < columns ? begin + length : columns;
    const T value = across_block<OP>(own_share<OP>(x + row * columns, begin, end));
    if (threadIdx.x == 0) partial[blockIdx.x] = value;
}
