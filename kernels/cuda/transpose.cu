// Transposed copies: out[c, r] = x[r, c], for each of a batch of matrices.
//
// Shapes: x is (batches, rows, columns), out is (batches, columns, out_columns), as many as rows, or up to the next
// multiple of 64 more, which become zeros. In both the elements of a row are neighbours; from row to row, and from
// matrix to matrix, it is as many elements as `shape` says.
//
//   transpose   tiles of 64 x 64 by way of shared memory
//
// A copy element by element reads runs of neighbours but writes each of them to another row, a sector of 32
// bytes for 4. Here a block reads a tile row by row, and writes its columns as rows: both ways runs of 64
// neighbours. No arithmetic: the floor is a copy's, each byte read once and written once.
//
// A tile's rows are one element longer than they have to be: the elements of a column fall into different
// banks. Grid: x = all tiles of a matrix (x alone may exceed 65535); z = the batch.
//
// A thread asks for all of its 16 elements before it puts down the first. With 4 blocks that is in 16 bits 32 KB on
// their way to a multiprocessor; an H200 needs some 22 KB there (gemv.cu).

constexpr int TILE = 64, ROWS_AT_ONCE = 4, OWN = TILE / ROWS_AT_ONCE, RESIDENT_BLOCKS = 4;

// The problem, but for the pointers. Strides are counted in elements.
struct TransposeShape {
    long long rows, columns, batches, out_columns;
    long long x_row_stride, x_batch_stride;
    long long out_row_stride, out_batch_stride;
};

template <typename T>
__global__ void __launch_bounds__(TILE * ROWS_AT_ONCE, RESIDENT_BLOCKS)
transpose(T* out, const T* x, TransposeShape shape) {
    __shared__ T tile[TILE][TILE + 1];
    const int lane = threadIdx.x % TILE, first = threadIdx.x / TILE;
    const long long tiles_per_row = (shape.columns + TILE - 1) / TILE;
    const long long row = blockIdx.x / tiles_per_row * TILE, column = blockIdx.x % tiles_per_row * TILE;
    const int rows = int(min(shape.rows - row, (long long)TILE)) - first;  // from the thread's first one on
    const int columns = int(min(shape.columns - column, (long long)TILE));
    const bool is_stored = lane < shape.out_columns - row;
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T* from = x + number * shape.x_batch_stride + (row + first) * shape.x_row_stride + column + lane;
        T* to = out + number * shape.out_batch_stride + (column + first) * shape.out_row_stride + row + lane;
        T own[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++, from += ROWS_AT_ONCE * shape.x_row_stride)
            if (i * ROWS_AT_ONCE < rows && lane < columns) own[i] = *from;
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (i * ROWS_AT_ONCE < rows && lane < columns) tile[first + i * ROWS_AT_ONCE][lane] = own[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TILE; i += ROWS_AT_ONCE, to += ROWS_AT_ONCE * shape.out_row_stride)
            if (i < columns - first && is_stored) *to = lane < rows + first ? tile[lane][first + i] : T(0);
        __syncthreads();  // the next matrix of the batch takes this tile's place
    }
}
