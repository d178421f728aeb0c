// Matrix multiplication on tensor cores: out[i, j] = sum over k of a[i, k] * b[j, k], for each of a batch.
//
// Shapes: a is (batches, M, K), b, the right matrix transposed, is (batches, N, K), out is (batches, M, N).
// In a and b the elements along K are neighbours; rows and matrices are multiples of 16 bytes apart (the
// stride of the batch may be 0). out is C-contiguous. K = 0 gives zeros. The sums are float32, and so is out
// for floats; their factors are rounded to TF32, 10 bits of mantissa. __half and __nv_bfloat16 come out as
// they go in.
//
//   matmul_tensor_core   products by mma, operands by ldmatrix, from tiles that cp.async brings ahead
//
// A block makes 128 x 128 elements of out with 8 warps, each 64 x 32 of them. It walks along K in steps of 64
// bytes: 16 floats, or 32 elements of 16 bits. While it multiplies one pair of tiles, the next is on its way
// to the other half of the shared memory.
//
// Arithmetic intensity: a step loads (128 + 128) x 64 bytes for 2 x 128 x 128 x 16 operations (floats) or
// twice as many (16 bits): 32 or 64 a byte. An H200 could do 100 or 200 for each byte of its memory (495
// TFLOP/s in TF32, 989 in 16 bits, over 4.8 TB/s); the rest is left to the L2 cache, which serves the blocks
// that share a row or a column of tiles. From shared memory a warp loads (64 + 32) x 32 bytes for the 2 x 64
// x 32 x 8 operations of an mma step in TF32.
//
// Registers of a thread: 64 sums, 8 of b's fragments and 4 of a's at a time; with all else 128, so that two
// blocks share a multiprocessor's 65536. Shared memory of a block: 2 x (8 + 8) KB.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "async_copy.cuh"
#include "tensor_core.cuh"

constexpr int TILE_ROWS = 128;           // of a and of b: the block makes 128 x 128 elements of out
constexpr int WARP_M = 64, WARP_N = 32;  // the part of a warp
constexpr int WARPS_N = TILE_ROWS / WARP_N;
constexpr int THREADS = 32 * (TILE_ROWS / WARP_M) * WARPS_N;
constexpr int CHUNK_BYTES = 16, CHUNKS = 4;  // a tile's row

// The problem, but for the pointers. Strides are counted in elements.
struct TensorCoreShape {
    long long M, N, K, batches;
    long long a_row_stride, a_batch_stride;
    long long b_row_stride, b_batch_stride;
};

// Where a chunk of a row stands in a tile. ldmatrix reads the same chunk of 8 rows at a time. A row is 64
// bytes, half of the 32 banks: with all chunks in order, every other row would wait for the same banks.
// Instead the chunks of rows 2 r and 2 r + 1 are exchanged (xor) by r mod 4: those of 8 rows fall into 8
// groups of 4 banks.
__device__ __forceinline__ int place_of(int row, int chunk) {
    return row * CHUNKS + (chunk ^ (row / 2 % CHUNKS));
}

// How much of a tile, at most `size`, is inside where `left` remain.
__device__ __forceinline__ int inside(long long left, int size) { return left < size ? int(left) : size; }

// Starts the copies of a tile from x, its first element: of TILE_ROWS rows and CHUNKS chunks, as far as there
// are `rows` rows of `columns` elements. Zeros stand for the rest; they add nothing to the sums.
template <typename T>
__device__ __forceinline__ void start_tile(AsyncCopies& copies, uint4* tile, const T* x, long long row_stride,
                                           int rows, int columns) {
    constexpr int PER_CHUNK = CHUNK_BYTES / sizeof(T);
#pragma unroll
    for (int i = 0; i < TILE_ROWS * CHUNKS / THREADS; i++) {
        const int number = i * THREADS + threadIdx.x, row = number / CHUNKS, chunk = number % CHUNKS;
        const int left = row < rows ? columns - chunk * PER_CHUNK : 0;
        const int valid = left >= PER_CHUNK ? CHUNK_BYTES : left > 0 ? left * int(sizeof(T)) : 0;
        const T* from = valid ? x + row * row_stride + chunk * PER_CHUNK : x;
        copies.copy<CHUNK_BYTES>(&tile[place_of(row, chunk)], from, valid);
    }
}

// c += a b for the fragments of elements of T.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <>
__device__ __forceinline__ void multiply_add<float>(float (&c)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2]) {
    mma_tf32(c, a, b);
}
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const unsigned (&a)[4],
                                                     const unsigned (&b)[2]) {
    mma_f16(c, a, b);
}
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4],
                                                            const unsigned (&b)[2]) {
    mma_bf16(c, a, b);
}

// Four 8 x 8 fragments, rounded to what multiply_add takes.
template <typename T>
__device__ __forceinline__ void load_fragments(unsigned (&out)[4], const uint4* row) {
    ldmatrix(out, row);
    if constexpr (sizeof(T) == 4)
        for (int i = 0; i < 4; i++) out[i] = to_tf32(__uint_as_float(out[i]));
}

// A warp's part of the products of two tiles: sums[m][n] is 16 x 8 elements of out, of row 16 m and column 8
// n.
template <typename T>
__device__ __forceinline__ void multiply_tiles(float (&sums)[WARP_M / 16][WARP_N / 8][4], const uint4* a_tile,
                                               const uint4* b_tile, int warp_row, int warp_column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < CHUNKS; k += 2) {  // an mma takes two chunks of a row
        unsigned b[WARP_N / 8][2];
#pragma unroll
        for (int n = 0; n < WARP_N / 16; n++) {
            unsigned four[4];  // both chunks of 8 columns, and of the next 8
            const int row = warp_column + 16 * n + lane / 16 * 8 + lane % 8;
            load_fragments<T>(four, &b_tile[place_of(row, k + lane / 8 % 2)]);
            b[2 * n][0] = four[0], b[2 * n][1] = four[1];
            b[2 * n + 1][0] = four[2], b[2 * n + 1][1] = four[3];
        }
#pragma unroll
        for (int m = 0; m < WARP_M / 16; m++) {
            unsigned a[4];  // 8 rows and the next 8, then both in the second chunk
            load_fragments<T>(a, &a_tile[place_of(warp_row + 16 * m + lane % 16, k + lane / 16)]);
#pragma unroll
            for (int n = 0; n < WARP_N / 8; n++) multiply_add<T>(sums[m][n], a, b[n]);
        }
    }
}

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
    T left, right;
};

// Writes a warp's sums to out, of which `rows` rows and `columns` columns are left. A lane has pairs of
// neighbours, and stores them as such if all pairs in out are aligned: the 4 lanes of a row then write 32
// bytes of floats.
template <typename T>
__device__ __forceinline__ void store(T* out, const float (&sums)[WARP_M / 16][WARP_N / 8][4], long long rows,
                                      long long columns, long long N) {
    const int lane = threadIdx.x % 32, column = lane % 4 * 2;
    const bool aligned = N % 2 == 0 && size_t(out) % sizeof(Pair<T>) == 0;
#pragma unroll
    for (int m = 0; m < WARP_M / 8; m++) {
        const int row = 8 * m + lane / 4;
        T* to = out + row * N + column;
#pragma unroll
        for (int n = 0; n < WARP_N / 8; n++) {
            if (row >= rows || 8 * n + column >= columns) continue;
            const float* sum = &sums[m / 2][n][m % 2 * 2];
            const Pair<T> pair = {T(sum[0]), T(sum[1])};
            if (aligned) {
                *reinterpret_cast<Pair<T>*>(to + 8 * n) = pair;
            } else {
                to[8 * n] = pair.left;
                if (8 * n + column + 1 < columns) to[8 * n + 1] = pair.right;
            }
        }
    }
}

// Grid: x = all tiles of out, in rows of ceil(N / TILE_ROWS) (x alone may exceed 65535); z = the batch.
template <typename T>
__global__ void __launch_bounds__(THREADS)
matmul_tensor_core(T* out, const T* a, const T* b, TensorCoreShape shape) {
    __shared__ uint4 a_tiles[2][TILE_ROWS * CHUNKS];
    __shared__ uint4 b_tiles[2][TILE_ROWS * CHUNKS];
    constexpr int STEP = CHUNKS * CHUNK_BYTES / sizeof(T);
    const int warp = threadIdx.x / 32;
    const int warp_row = warp / WARPS_N * WARP_M, warp_column = warp % WARPS_N * WARP_N;
    const long long tiles_per_row = (shape.N + TILE_ROWS - 1) / TILE_ROWS;
    const long long row = blockIdx.x / tiles_per_row * TILE_ROWS;
    const long long column = blockIdx.x % tiles_per_row * TILE_ROWS;

    // A grid has at most 65535 blocks along z: a larger batch takes several turns.
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T* a_rows = a + number * shape.a_batch_stride + row * shape.a_row_stride;
        const T* b_rows = b + number * shape.b_batch_stride + column * shape.b_row_stride;
        const int rows = inside(shape.M - row, TILE_ROWS), columns = inside(shape.N - column, TILE_ROWS);
        float sums[WARP_M / 16][WARP_N / 8][4] = {};
        AsyncCopies copies;
        for (long long k0 = -STEP; k0 < shape.K; k0 += STEP) {
            const long long next = k0 + STEP;
            const int stage = k0 / STEP & 1;  // where the tiles of k0 are; the first turn has none
            if (next < shape.K) {
                const int depth = inside(shape.K - next, STEP);
                start_tile(copies, a_tiles[stage ^ 1], a_rows + next, shape.a_row_stride, rows, depth);
                start_tile(copies, b_tiles[stage ^ 1], b_rows + next, shape.b_row_stride, columns, depth);
            }
            copies.commit();  // of nothing, in the last turn
            if (k0 < 0) continue;
            copies.wait<1>();  // for the tiles of k0, while the next are on their way
            __syncthreads();   // for the parts of all threads
            multiply_tiles<T>(sums, a_tiles[stage], b_tiles[stage], warp_row, warp_column);
            __syncthreads();  // all are done with these tiles before they are overwritten
        }
        T* const warp_out = out + (number * shape.M + row + warp_row) * shape.N + column + warp_column;
        store(warp_out, sums, shape.M - row - warp_row, shape.N - column - warp_column, shape.N);
    }
}
