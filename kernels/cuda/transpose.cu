// Transposed copies: out[c, r] = x[r, c], for each of a batch of matrices.
//
// Shapes: x is (batches, rows, columns), out is (batches, columns, rows). In both the elements of a row are
// neighbours; from row to row, and from matrix to matrix, it is as many elements as `shape` says.
//
//   transpose   tiles of 64 x 64 by way of shared memory
//
// A copy element by element reads runs of neighbours but writes each of them to another row, a sector of 32
// bytes for 4. Here a block reads a tile row by row, and writes its columns as rows: both ways runs of 64
// neighbours. No arithmetic: the floor is a copy's, each byte read once and written once.
//
// A tile's rows are one element longer than they have to be: the elements of a column fall into different
// banks. Grid: x = all tiles of a matrix (x alone may exceed 65535); z = the batch.

constexpr int TILE = 64, ROWS_AT_ONCE = 4;

// The problem, but for the pointers. Strides are counted in elements.
struct TransposeShape {
    long long rows, columns, batches;
    long long x_row_stride, x_batch_stride;
    long long out_row_stride, out_batch_stride;
};

template <typename T>
__global__ void __launch_bounds__(TILE * ROWS_AT_ONCE)
transpose(T* out, const T* x, TransposeShape shape) {
    __shared__ T tile[TILE][TILE + 1];
    const int lane = threadIdx.x % TILE, first = threadIdx.x / TILE;
    const long long tiles_per_row = (shape.columns + TILE - 1) / TILE;
    const long long row = blockIdx.x / tiles_per_row * TILE, column = blockIdx.x % tiles_per_row * TILE;
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T* const from = x + number * shape.x_batch_stride + row * shape.x_row_stride + column;
        T* const to = out + number * shape.out_batch_stride + column * shape.out_row_stride + row;
#pragma unroll
        for (int i = first; i < TILE; i += ROWS_AT_ONCE)
            if (row + i < shape.rows && column + lane < shape.columns)
                tile[i][lane] = from[i * shape.x_row_stride + lane];
        __syncthreads();
#pragma unroll
        for (int i = first; i < TILE; i += ROWS_AT_ONCE)
            if (column + i < shape.columns && row + lane < shape.rows)
                to[i * shape.out_row_stride + lane] = tile[lane][i];
        __syncthreads();  // the next matrix of the batch takes this tile's place
    }
}
