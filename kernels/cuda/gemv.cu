// Products of matrices and vectors: out[..., i] = sum over k of a[..., i, k] * b[..., k].
//
// Shapes: a is (..., M, K), b is (..., K), out is (..., M): a matrix product with N = 1, which is described as
// in matmul.cu. A vector times a matrix is the same product with the matrix transposed. K = 0 gives zeros.
//
//   gemv_rows      the rows of a lie in memory one after the other: a warp, or a block, walks along a row
//   gemv_columns   the columns do: a warp walks along K with 32 rows side by side
//
// Arithmetic intensity: every element of a serves one multiply-add, 0.5 operations a byte in float32, where
// an H200 can do 14 (67 TFLOP/s, 4.8 TB/s). No tile helps, as nothing is used twice but the short vector, which
// stays in the caches. All that counts is to read a once, in whole lines of memory, with enough threads. A
// tiled product would leave 31 of its 32 columns empty.
//
// The order of the additions depends on the shape alone: there are no atomics.

#include "matmul.cuh"
#include "rows.cuh"

// Finds the matrix, the row in it and the vector that belong to element `number` of out.
template <typename T>
__device__ __forceinline__ void select_row(const T*& a, const T*& b, const MatmulShape& shape,
                                           const Batch& batch, long long number) {
    select_batch(a, b, batch, number / shape.M);
    a += number % shape.M * shape.a_row_stride;
}

// A warp for each row, or for a long one a block: neighbouring lanes read neighbouring elements. Each has a
// sum of its own; shuffles add these up.
//
// Grid: x = the elements of out, blockDim.y of them in a block; blockDim = (threads of a row, a multiple of
// 32; rows). More than one warp for a row: one row for the block.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
gemv_rows(T* out, const T* a, const T* b, MatmulShape shape, Batch batch) {
    const long long number = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (number >= shape.batches * shape.M) return;  // a whole warp, in a block that comes to no barrier
    select_row(a, b, shape, batch, number);
    T sum = 0;
#pragma unroll 4
    for (long long k = threadIdx.x; k < shape.K; k += blockDim.x)
        sum += a[k * shape.a_column_stride] * b[k * shape.b_row_stride];
    sum = blockDim.x == WARP ? across_warp<SUM>(sum) : across_block<SUM>(sum);
    if (threadIdx.x == 0) out[number] = sum;
}

// A warp for 32 rows: at each k its lanes read 32 elements of a column, one line of memory. The warps of a
// block share out K among them, and the first one adds up what they have found.
//
// Shared memory: 2 KB (float32) or 4 KB (float64). Grid: x = 32 rows for each block, one matrix after the
// other; blockDim = (32, warps).
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
gemv_columns(T* out, const T* a, const T* b, MatmulShape shape, Batch batch) {
    __shared__ T sums[MAX_WARPS][WARP];
    const int lane = threadIdx.x, warp = threadIdx.y;
    const long long blocks_per_matrix = (shape.M + WARP - 1) / WARP;
    const long long number = blockIdx.x / blocks_per_matrix;
    const long long row = blockIdx.x % blocks_per_matrix * WARP + lane;
    const bool inside = row < shape.M;

    T sum = 0;
    if (inside) {
        select_row(a, b, shape, batch, number * shape.M + row);
#pragma unroll 4
        for (long long k = warp; k < shape.K; k += blockDim.y)
            sum += a[k * shape.a_column_stride] * b[k * shape.b_row_stride];
    }
    sums[warp][lane] = sum;
    __syncthreads();  // the sums of all warps are there
    if (warp > 0 || !inside) return;
    for (int other = 1; other < blockDim.y; other++) sum += sums[other][lane];
    out[number * shape.M + row] = sum;
}
