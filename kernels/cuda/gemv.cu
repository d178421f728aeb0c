// Products of matrices and vectors: out[..., i] = sum over k of a[..., i, k] * b[..., k], plus a bias, where there is
// one. Sums of 16-bit elements are float32.
//
// Shapes: a is (..., M, K), b is (..., K), out is (..., M): a matrix product with N = 1, which is described
// as in matmul.cu. A vector times a matrix is the same product with the matrix transposed. K = 0 gives zeros.
//
//   gemv_rows      the rows of a lie in memory one after the other: a warp, or a block, walks along a row
//   gemv_columns   the columns do: the threads of a block stand side by side along 32 rows, and share out K
//
// Both come for any strides, and, WIDE, with vectors of 16 bytes for arrays that are made of such.
//
// Arithmetic intensity: every element of a serves one multiply-add, 0.5 operations a byte in float32, 1 in 16 bits,
// where an H200 can do 14 (67 TFLOP/s, 4.8 TB/s). No tile helps, as nothing is used twice but the short vector,
// which stays in the caches. All that counts is to read a once, in whole lines of memory, with enough bytes
// on their way at a time: 4.8 TB/s over a latency of some 600 ns are 3 MB, 22 KB for each of 132
// multiprocessors. A tiled product would leave 31 of its 32 columns empty.
//
// A product of few rows and a long K has too few threads for that: K is cut into parts (split_k.cu). The
// order of the additions depends on the shape alone: there are no atomics.

#include "matmul.cuh"
#include "rows.cuh"
#include "vector.cuh"

// Finds the matrix, the row in it and the vector that belong to element `number` of out.
template <typename T>
__device__ __forceinline__ void select_row(const T*& a, const T*& b, const MatmulShape& shape,
                                           const Batch& batch, long long number) {
    const long long matrix = number < shape.M ? 0 : number / shape.M;
    if (matrix != 0) select_batch(a, b, batch, matrix);  // its divisions would take longer than a small sum
    a += (number - matrix * shape.M) * shape.a_row_stride;
}

// The bias of the row of out that element `number` is, or 0. It may be one for all rows.
template <typename C, typename T>
__device__ __forceinline__ C bias_of(const T* bias, bool of_all, const MatmulShape& shape, long long number) {
    return bias ? C(bias[of_all ? 0 : number % shape.M]) : C(0);
}

// Loads of a, and of b, that a thread has on their way: 64 KB of a multiprocessor. The kernels say how many blocks run
// there at a time, for nvcc to give their threads the registers; left to itself it saves them, and has each load wait
// for the one before.
constexpr int AT_ONCE = 4;

// A warp for each row, or for a long one a block: neighbouring lanes read neighbouring elements. Each has a
// sum of its own; shuffles add these up.
//
// Grid: x = the elements of out, blockDim.y of them in a block; y = the parts of K; blockDim = (threads of a
// row, a multiple of 32; rows). More than one warp for a row: one row for the block. WIDE: K is a multiple of
// a vector, and along it a and b are contiguous. Out: T, or the type of the sums for parts of K.
constexpr int ROW_THREADS = 256;

template <typename T, typename Out, bool WIDE>
__global__ void __launch_bounds__(ROW_THREADS, 4)
gemv_rows(Out* out, const T* a, const T* b, MatmulShape shape, Batch batch, const Out* bias, bool of_all) {
    using C = Computed<T>;
    constexpr int VECTOR = WIDTH_OF<T, WIDE>;
    const long long number = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (number >= shape.batches * shape.M) return;  // a whole warp, in a block that comes to no barrier
    const long long K = select_part(a, b, shape);
    out += number_of_part(shape, 0) * shape.M;
    select_row(a, b, shape, batch, number);
    const long long a_stride = WIDE ? 1 : shape.a_column_stride;
    const long long b_stride = WIDE ? 1 : shape.b_row_stride;
    C sum = 0;
    in_batches<AT_ONCE>(threadIdx.x * VECTOR, K, blockDim.x * VECTOR, [&](const auto& places) {
        constexpr int COUNT = sizeof(places) / sizeof(places[0]);
        Vector<T, VECTOR> x[COUNT], y[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            x[j] = load_vector<VECTOR>(a + places[j] * a_stride);
            y[j] = load_vector<VECTOR>(b + places[j] * b_stride);
        }
#pragma unroll
        for (int j = 0; j < COUNT; j++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sum += C(x[j].lane[i]) * C(y[j].lane[i]);
    });
    sum = across_row<SUM>(sum);
    if (threadIdx.x == 0) out[number] = Out(sum + bias_of<C>(bias, of_all, shape, number));
}

// A block for 32 rows, of which every thread has VECTOR: at each k, 32 / VECTOR threads side by side read 32
// elements of a column, one line of memory. The other threads do the same for other k. In the end they add up
// what they have found: those of a warp by shuffles, the warps by way of shared memory.
//
// Shared memory: 4 KB, or 8 KB in float64. Grid: x = 32 rows for each block, one matrix after the other; y = the
// parts of K. WIDE: M is a multiple of a vector, and along it a is contiguous.
constexpr int COLUMN_THREADS = 1024;

template <typename T, typename Out, bool WIDE>
__global__ void __launch_bounds__(COLUMN_THREADS, 1)
gemv_columns(Out* out, const T* a, const T* b, MatmulShape shape, Batch batch, const Out* bias, bool of_all) {
    using C = Computed<T>;
    constexpr int VECTOR = WIDTH_OF<T, WIDE>, LANES = WARP / VECTOR;  // that read one line
    __shared__ C sums[COLUMN_THREADS / WARP][WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % LANES, first = lane * VECTOR;
    const unsigned strips = (shape.M + WARP - 1) / WARP, number = blockIdx.x / strips;  // no more than there are blocks
    const long long row = (long long)(blockIdx.x % strips) * WARP;

    C sum[VECTOR] = {};
    if (row + first < shape.M) {
        if (number != 0) select_batch(a, b, batch, number);
        a += (row + first) * shape.a_row_stride;
        const long long K = select_part(a, b, shape);
        in_batches<AT_ONCE>(threadIdx.x / LANES, K, blockDim.x / LANES, [&](const auto& places) {
            constexpr int COUNT = sizeof(places) / sizeof(places[0]);
            Vector<T, VECTOR> column[COUNT];
            T factor[COUNT];
#pragma unroll
            for (int j = 0; j < COUNT; j++) {
                column[j] = load_vector<VECTOR>(a + places[j] * shape.a_column_stride);
                factor[j] = b[places[j] * shape.b_row_stride];
            }
#pragma unroll
            for (int j = 0; j < COUNT; j++)
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sum[i] += C(column[j].lane[i]) * C(factor[j]);
        });
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        for (int distance = LANES; distance < WARP; distance *= 2)
            sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], distance);
        if (threadIdx.x % WARP < LANES) sums[warp][first + i] = sum[i];
    }
    __syncthreads();  // the sums of all warps are there
    if (warp > 0 || row + threadIdx.x >= shape.M) return;
    C total = 0;
    for (int other = 0; other < blockDim.x / WARP; other++) total += sums[other][threadIdx.x];
    total += bias_of<C>(bias, of_all, shape, row + threadIdx.x);
    out[number_of_part(shape, number) * shape.M + row + threadIdx.x] = Out(total);
}
