// Matrix multiplication on tensor cores: out[i, j] = sum over k of a[i, k] * b[j, k], plus bias[j] where there is
// one, for each of a batch.
//
// Shapes: a is (batches, M, K), b, the right matrix transposed, is (batches, N, K), out is (batches, M, N), bias (N).
// In a and b the elements along K are neighbours; rows and matrices are multiples of 16 bytes apart (the
// stride of the batch may be 0). out is C-contiguous. K = 0 gives zeros. The sums are float32, and so is out
// for floats; their factors are rounded to TF32, 10 bits of mantissa. __half and __nv_bfloat16 come out as
// they go in.
//
//   matmul_tensor_core   products by mma, operands by ldmatrix, from tiles that cp.async brings ahead
//
// A block makes 128 x 128 elements of out with 4 warps, each 64 x 64 of them, in the loop of
// tensor_core_tiles.cuh: in steps of 64 bytes along K.
//
// Arithmetic intensity: a step loads (128 + 128) x 64 bytes for 2 x 128 x 128 x 16 operations (floats) or
// twice as many (16 bits): 32 or 64 a byte. An H200 could do 100 or 200 for each byte of its memory (495
// TFLOP/s in TF32, 989 in 16 bits, over 4.8 TB/s); the rest is left to the L2 cache, which the order of the
// tiles (tile_order.cuh) helps. From shared memory a warp loads (64 + 64) x 32 bytes for the 2 x 64 x 64 x 16
// operations of an mma step in 16 bits: 32 a byte, where the tensor cores could do 4096 in the cycle that
// brings 128 bytes. With 64 x 32 for a warp it would be 21, and shared memory the limit.
//
// Registers of a thread: 128 sums, 16 of b's fragments and 4 of a's at a time; with the next ones' about 240,
// so that two blocks share a multiprocessor's 65536. Shared memory of a block: 3 x (8 + 8) KB.
#include "tensor_core_copiers.cuh"
#include "tile_order.cuh"

using Tiling = TensorCoreTiling<128, 128>;  // what a block makes of out
constexpr int GROUP = 16;                   // rows of tiles that are made one column after another
constexpr int MIN_BLOCKS = 2;               // of a multiprocessor

// The problem, but for the pointers. Strides are counted in elements.
struct TensorCoreShape {
    long long M, N, K, batches;
    long long a_row_stride, a_batch_stride;
    long long b_row_stride, b_batch_stride;
};

// Adds to each column of a warp's tile its bias; `bias` is that of the tile's first column.
template <typename T>
__device__ __forceinline__ void add_bias(Tiling::Sums& sums, const T* bias, long long columns) {
#pragma unroll
    for (int n = 0; n < Tiling::WARP_N / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = 8 * n + threadIdx.x % 4 * 2 + i;
            const float addend = column < columns ? float(bias[column]) : 0.0f;
#pragma unroll
            for (int m = 0; m < Tiling::WARP_M / 16; m++) {
                sums[m][n][i] += addend;
                sums[m][n][2 + i] += addend;
            }
        }
}

// Grid: x = all tiles of out (x alone may exceed 65535); z = the batch. bias may be null.
template <typename T>
__global__ void __launch_bounds__(Tiling::THREADS, MIN_BLOCKS)
matmul_tensor_core(T* out, const T* a, const T* b, const T* bias, TensorCoreShape shape) {
    extern __shared__ uint4 tiles[];
    constexpr int TILE_M = Tiling::TILE_M, TILE_N = Tiling::TILE_N;
    const int warp_row = Tiling::warp_row(), warp_column = Tiling::warp_column();
    const TilePlace place = tile_place(int(blockIdx.x), int((shape.M + TILE_M - 1) / TILE_M),
                                       int((shape.N + TILE_N - 1) / TILE_N), GROUP);
    const long long row = (long long)place.row * TILE_M, column = (long long)place.column * TILE_N;
    const int rows = inside(shape.M - row, TILE_M), columns = inside(shape.N - column, TILE_N);

    // A grid has at most 65535 blocks along z: a larger batch takes several turns.
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T* a_rows = a + number * shape.a_batch_stride + row * shape.a_row_stride;
        const T* b_rows = b + number * shape.b_batch_stride + column * shape.b_row_stride;
        Tiling::Sums sums = {};
        AsyncCopies copies;
        RowCopier<T, TILE_M> a_copier(a_rows, shape.a_row_stride, rows);
        RowCopier<T, TILE_N> b_copier(b_rows, shape.b_row_stride, columns);
        long long left = (shape.K - threadIdx.x % CHUNKS * PER_CHUNK<T>) * int(sizeof(T));
        const auto start = [&](uint4* a_tile, uint4* b_tile) {  // from K on, copies of zeros
            const int valid = left < 0 ? 0 : inside(left, CHUNK_BYTES);
            a_copier.start(copies, a_tile, valid);
            b_copier.start(copies, b_tile, valid);
            left -= CHUNKS * CHUNK_BYTES;
        };
        multiply_tiles<T, Tiling, AlongK<T, TILE_M>, AlongK<T, TILE_N>>(
            sums, tiles, (shape.K + STEP<T> - 1) / STEP<T>, copies, start);
        const long long first_column = column + warp_column;
        if (bias) add_bias(sums, bias + first_column, shape.N - first_column);
        T* const warp_out = out + (number * shape.M + row + warp_row) * shape.N + first_column;
#pragma unroll
        for (int m = 0; m < Tiling::WARP_M / 16; m++)
            store_fragments(warp_out + 16 * m * shape.N, sums[m], shape.M - row - warp_row - 16 * m,
                            shape.N - first_column, shape.N);
    }
}
