// Matrix multiplication: out[..., i, j] = sum over k of a[..., i, k] * b[..., k, j].
//
// Shapes: a is (..., M, K), b is (..., K, N), out is (..., M, N). The leading dimensions, the batch, are those
// of out. a and b have any strides, counted in elements: a transposed matrix or a broadcast batch is read
// where it lies. out is C-contiguous. K = 0 gives zeros.
//
//   matmul_naive   the definition: one thread for each element of out
//   matmul_tiled   + tiles of a and b in shared memory, each element loaded once for 32 threads
//
// A product makes 2 M N K floating-point operations. What bounds a kernel is how many of them it makes for
// each byte that it asks of the memory, its arithmetic intensity. In float32, naive loads 8 bytes for 2
// operations: 0.25 a byte, less what the caches catch. Tiled with T = 32 loads 2 T^2 elements for 2 T^3
// operations: T / 4 = 8 a byte. An H200 can do about 14 for each byte that its memory delivers (67 TFLOP/s
// and 4.8 TB/s), so the memory is no longer far from keeping up; what bounds tiled is that every
// multiply-add still takes two loads, now from shared memory. The next rung would hold a small tile of out
// in the registers of each thread.

// The batch dimensions (those not used have size 1) with the strides of a and b in each.
struct Batch {
    long long size[4];
    long long a_stride[4];
    long long b_stride[4];
};

// The problem, but for the pointers. A stride says how far apart, in elements, two neighbours are.
struct MatmulShape {
    long long M, N, K;
    long long a_row_stride, a_column_stride;
    long long b_row_stride, b_column_stride;
    long long batches;
};

// Moves a and b to the matrices of one product of the batch.
template <typename T>
__device__ void select_batch(const T*& a, const T*& b, const Batch& batch, long long number) {
    for (int dim = 3; dim >= 0; dim--) {
        const long long index = number % batch.size[dim];
        number /= batch.size[dim];
        a += index * batch.a_stride[dim];
        b += index * batch.b_stride[dim];
    }
}

// The definition: each thread makes one element of out from a row of a and a column of b.
//
// The threads of a warp stand side by side in a row of out: they read the same element of a (one load, sent
// to all) and neighbouring elements of b (one wide load, if b's rows are contiguous).
//
// Grid: x = all blocks of out, in rows of ceil(N / blockDim.x) (x alone may exceed 65535); z = the batch.
template <typename T>
__global__ void matmul_naive(T* out, const T* a, const T* b, MatmulShape shape, Batch batch) {
    const long long blocks_per_row = (shape.N + blockDim.x - 1) / blockDim.x;
    const long long row = blockIdx.x / blocks_per_row * blockDim.y + threadIdx.y;
    const long long column = blockIdx.x % blocks_per_row * blockDim.x + threadIdx.x;
    if (row >= shape.M || column >= shape.N) return;

    // A grid has at most 65535 blocks along z: a larger batch takes several turns.
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T *a_row = a, *b_column = b;
        select_batch(a_row, b_column, batch, number);
        a_row += row * shape.a_row_stride;
        b_column += column * shape.b_column_stride;
        T sum = 0;
        for (long long k = 0; k < shape.K; k++)
            sum += a_row[k * shape.a_column_stride] * b_column[k * shape.b_row_stride];
        out[(number * shape.M + row) * shape.N + column] = sum;
    }
}

// Tiles: a block makes a 32 x 32 tile of out, walking along K in steps of 32. In each step its 1024 threads
// load one element each of a tile of a and a tile of b into shared memory, and then every loaded element
// serves 32 threads.
//
// Shared memory: 2 tiles of 4 KB (float32) or 8 KB (float64). Its 32 banks each serve one thread of a warp
// at a time: the warp reads one element of a_tile (sent to all) and one row of b_tile (32 banks), so none
// waits. Elements beyond the edges of a and b are loaded as zeros, which add nothing to the sums.
//
// Grid: as for matmul_naive, with blocks of TILE x TILE threads.
constexpr int TILE = 32;

template <typename T>
__global__ void __launch_bounds__(TILE * TILE)
matmul_tiled(T* out, const T* a, const T* b, MatmulShape shape, Batch batch) {
    __shared__ T a_tile[TILE][TILE];
    __shared__ T b_tile[TILE][TILE];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const long long tiles_per_row = (shape.N + TILE - 1) / TILE;
    const long long row = blockIdx.x / tiles_per_row * TILE + ty;
    const long long column = blockIdx.x % tiles_per_row * TILE + tx;

    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T *a_row = a, *b_column = b;
        select_batch(a_row, b_column, batch, number);
        a_row += row * shape.a_row_stride;
        b_column += column * shape.b_column_stride;

        T sum = 0;
        for (long long k0 = 0; k0 < shape.K; k0 += TILE) {
            const bool in_a = row < shape.M && k0 + tx < shape.K;
            const bool in_b = column < shape.N && k0 + ty < shape.K;
            a_tile[ty][tx] = in_a ? a_row[(k0 + tx) * shape.a_column_stride] : T(0);
            b_tile[ty][tx] = in_b ? b_column[(k0 + ty) * shape.b_row_stride] : T(0);
            __syncthreads();  // the tiles are complete before anyone reads them
            for (int k = 0; k < TILE; k++) sum += a_tile[ty][k] * b_tile[k][tx];
            __syncthreads();  // everyone is done with the tiles before they are overwritten
        }
        if (row < shape.M && column < shape.N) out[(number * shape.M + row) * shape.N + column] = sum;
    }
}
