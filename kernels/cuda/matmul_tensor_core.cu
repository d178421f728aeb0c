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
// A block makes 128 x 128 elements of out with 4 warps, each 64 x 64 of them. It walks along K in steps of 64
// bytes: 16 floats, or 32 elements of 16 bits. STAGES pairs of tiles lie in shared memory: while the block
// multiplies one, the next are on their way. One barrier a step is enough: behind it everybody's part of this
// step's tiles is there, and everybody is done with those of the step before, whose place is filled next.
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
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "async_copy.cuh"
#include "tensor_core.cuh"
#include "tile_order.cuh"

constexpr int TILE_M = 128, TILE_N = 128;  // what a block makes of out
constexpr int WARP_M = 64, WARP_N = 64;    // the part of a warp
constexpr int WARPS_N = TILE_N / WARP_N;
constexpr int THREADS = 32 * (TILE_M / WARP_M) * WARPS_N;
constexpr int CHUNK_BYTES = 16, CHUNKS = 4;  // a tile's row
constexpr int STAGES = 3;                    // pairs of tiles in shared memory
constexpr int GROUP = 16;                    // rows of tiles that are made one column after another
constexpr int MIN_BLOCKS = 2;                // of a multiprocessor

// The problem, but for the pointers. Strides are counted in elements.
struct TensorCoreShape {
    long long M, N, K, batches;
    long long a_row_stride, a_batch_stride;
    long long b_row_stride, b_batch_stride;
};

// Where a chunk of a row stands in a tile. ldmatrix reads the same chunk of 8 rows at a time. A row is 64
// bytes, half of the 32 banks: with all chunks in order, every other row would wait for the same banks.
// Instead the chunks of rows 2 r and 2 r + 1, which share a line of 128 bytes, are exchanged (xor) by r mod
// 4: those of 8 rows fall into 8 groups of 4 banks.
__device__ __forceinline__ int place_of(int row, int chunk) {
    constexpr int ROWS_PER_LINE = 128 / (CHUNKS * CHUNK_BYTES);
    return row * CHUNKS + (chunk ^ (row / ROWS_PER_LINE % CHUNKS));
}

// How much of a tile, at most `size`, is inside where `left` remain.
__device__ __forceinline__ int inside(long long left, int size) { return left < size ? int(left) : size; }

// Brings a thread's part of the tiles of one operand: a chunk of every LOADED_ROWS-th row.
template <int ROWS, typename T>
struct Loader {
    static constexpr int PER_CHUNK = CHUNK_BYTES / sizeof(T), LOADED_ROWS = THREADS / CHUNKS;
    static_assert(LOADED_ROWS % 8 == 0, "the chunks of a thread's rows are exchanged alike");

    const T* from;   // the thread's chunk in its first row
    long long step;  // from one of its rows to the next
    int rows;        // that remain from its first row on

    // x is the first element of a tile whose first `rows` rows are inside.
    __device__ __forceinline__ Loader(const T* x, long long row_stride, int rows)
        : from(x + threadIdx.x / CHUNKS * row_stride + threadIdx.x % CHUNKS * PER_CHUNK),
          step(LOADED_ROWS * row_stride),
          rows(rows - int(threadIdx.x / CHUNKS)) {}

    // Starts the copies of the next tile, of which `valid` bytes of the thread's chunks are inside. Zeros
    // stand for the rest, which is not read; they add nothing to the sums.
    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, int valid) {
        uint4* const to = &tile[place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS)];
        const T* row = from;
#pragma unroll
        for (int i = 0; i < ROWS / LOADED_ROWS; i++, row += step)
            copies.copy<CHUNK_BYTES>(to + i * LOADED_ROWS * CHUNKS, row, i * LOADED_ROWS < rows ? valid : 0);
        from += CHUNKS * PER_CHUNK;
    }
};

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

// The fragments of a warp's rows of b for one mma step: from chunk k on, two chunks of 8 columns of out in
// each.
template <typename T>
struct Columns {
    unsigned fragments[WARP_N / 8][2];

    __device__ __forceinline__ void load(const uint4* b_tile, int k) {
        const int lane = threadIdx.x % 32;
        const int row = threadIdx.x / 32 % WARPS_N * WARP_N + lane / 16 * 8 + lane % 8;
#pragma unroll
        for (int n = 0; n < WARP_N / 8; n += 2) {
            unsigned four[4];  // of 8 columns, and of the next 8
            load_fragments<T>(four, &b_tile[place_of(row, k + lane / 8 % 2) + 8 * n * CHUNKS]);
            fragments[n][0] = four[0], fragments[n][1] = four[1];
            fragments[n + 1][0] = four[2], fragments[n + 1][1] = four[3];
        }
    }
};

// Fragment m of a warp's rows of a: 8 rows and the next 8, then both in the second chunk.
template <typename T>
__device__ __forceinline__ void load_rows(unsigned (&fragment)[4], const uint4* a_tile, int m, int k) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 / WARPS_N * WARP_M + lane % 16;
    load_fragments<T>(fragment, &a_tile[place_of(row, k + lane / 16) + 16 * m * CHUNKS]);
}

// Grid: x = all tiles of out (x alone may exceed 65535); z = the batch.
template <typename T>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matmul_tensor_core(T* out, const T* a, const T* b, TensorCoreShape shape) {
    extern __shared__ uint4 tiles[];
    uint4* const a_tiles = tiles;
    uint4* const b_tiles = tiles + STAGES * TILE_M * CHUNKS;
    constexpr int STEP = CHUNKS * CHUNK_BYTES / sizeof(T);
    static_assert(CHUNKS % 4 == 0, "the fragments of a tile's first step are always the same ones");
    const int warp = threadIdx.x / 32;
    const int warp_row = warp / WARPS_N * WARP_M, warp_column = warp % WARPS_N * WARP_N;
    const TilePlace place = tile_place(int(blockIdx.x), int((shape.M + TILE_M - 1) / TILE_M),
                                       int((shape.N + TILE_N - 1) / TILE_N), GROUP);
    const long long row = (long long)place.row * TILE_M, column = (long long)place.column * TILE_N;
    const int rows = inside(shape.M - row, TILE_M), columns = inside(shape.N - column, TILE_N);

    // A grid has at most 65535 blocks along z: a larger batch takes several turns.
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T* a_rows = a + number * shape.a_batch_stride + row * shape.a_row_stride;
        const T* b_rows = b + number * shape.b_batch_stride + column * shape.b_row_stride;
        float sums[WARP_M / 16][WARP_N / 8][4] = {};
        AsyncCopies copies;
        Loader<TILE_M, T> a_loader(a_rows, shape.a_row_stride, rows);
        Loader<TILE_N, T> b_loader(b_rows, shape.b_row_stride, columns);
        long long left = (shape.K - threadIdx.x % CHUNKS * (CHUNK_BYTES / int(sizeof(T)))) * int(sizeof(T));
        const auto start = [&](int stage) {  // from K on, copies of zeros
            const int valid = left < 0 ? 0 : inside(left, CHUNK_BYTES);
            a_loader.start(copies, a_tiles + stage * TILE_M * CHUNKS, valid);
            b_loader.start(copies, b_tiles + stage * TILE_N * CHUNKS, valid);
            copies.commit();
            left -= CHUNKS * CHUNK_BYTES;
        };
        const auto arrive = [&] {
            copies.wait<STAGES - 2>();  // for the next step's tiles, while those after it are on their way
            __syncthreads();            // for the parts of all threads; all are done with the tiles before
        };
        // Of this mma step; what the next one takes is loaded meanwhile, of a into the same registers.
        Columns<T> b_fragments[2];
        unsigned a_fragments[WARP_M / 16][4];
        int stage = 0, next = STAGES - 1;
        for (int i = 0; i < STAGES - 1; i++) start(i);
        arrive();
        b_fragments[0].load(b_tiles, 0);
#pragma unroll
        for (int m = 0; m < WARP_M / 16; m++) load_rows<T>(a_fragments[m], a_tiles, m, 0);
        for (long long k0 = 0; k0 < shape.K; k0 += STEP) {
            start(next);
            next = stage;
#pragma unroll
            for (int k = 0; k < CHUNKS; k += 2) {
                if (k + 2 == CHUNKS) {
                    stage = stage + 1 == STAGES ? 0 : stage + 1;
                    arrive();
                }
                const int k_next = (k + 2) % CHUNKS;
                b_fragments[(k / 2 + 1) % 2].load(b_tiles + stage * TILE_N * CHUNKS, k_next);
#pragma unroll
                for (int m = 0; m < WARP_M / 16; m++) {
#pragma unroll
                    for (int n = 0; n < WARP_N / 8; n++)
                        multiply_add<T>(sums[m][n], a_fragments[m], b_fragments[k / 2 % 2].fragments[n]);
                    load_rows<T>(a_fragments[m], a_tiles + stage * TILE_M * CHUNKS, m, k_next);
                }
            }
        }
        copies.wait<0>();  // for the zeros
        __syncthreads();   // the tiles of the next turn take their places
        T* const warp_out = out + (number * shape.M + row + warp_row) * shape.N + column + warp_column;
#pragma unroll
        for (int m = 0; m < WARP_M / 16; m++)
            store_fragments(warp_out + 16 * m * shape.N, sums[m], shape.M - row - warp_row - 16 * m,
                            shape.N - column - warp_column, shape.N);
    }
}
