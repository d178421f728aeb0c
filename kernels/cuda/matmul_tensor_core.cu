// Matrix multiplication on tensor cores: out[i, j] = sum over k of a[i, k] * b[j, k], plus bias[j] where there is
// one, for each of a batch.
//
// Shapes: a is (batches, M, K), b, the right matrix transposed, is (batches, N, K), out is (batches, M, N), bias (N).
// In each of a and b either the elements along K are neighbours or, in 16 bits, those along M or N. Their number is
// a multiple of 16 bytes, or zeros follow up to there; rows, lines and matrices are multiples of 16 bytes apart (the
// stride of the batch may be 0). out is C-contiguous. K = 0 gives zeros. The sums are float32, and so is out for
// floats; their factors are rounded to TF32, 10 bits of mantissa. __half and __nv_bfloat16 come out as they go in. K
// may be cut into parts: partial is (parts, batches, M, N), for split_k.cu to add up.
//
//   matmul_tensor_core   products by mma, operands by ldmatrix, from tiles that cp.async brings ahead
//
// A block makes 256 x 192 (in 16 bits) or 256 x 128 elements of out with 8 warps, each 64 x 96 or 64 x 64 of them, or
// 128 x 128 or 64 x 128 with 4, in the loop of tensor_core_tiles.cuh: in steps of 64 bytes along K.
//
// Arithmetic intensity: a step loads (256 + 192) x 64 bytes for 2 x 256 x 192 x 16 operations (floats) or twice as
// many (16 bits): 55 or 110 a byte. An H200 could do 100 or 200 for each byte of its memory (495 TFLOP/s in TF32, 989
// in 16 bits, over 4.8 TB/s); the rest is left to the L2 cache, which the order of the tiles (tile_order.cuh) helps.
// That one has its limit, too: with 128 x 128 alone, 64 a byte, an H200 made 360 TFLOP/s in bfloat16, which took 5.6
// TB/s from it, and with 256 x 128, 85 a byte, 424, or 5.0 TB/s; matmul_wgmma.cu made 668 of 5.2 TB/s
// (benchmarks/results/2026-11-26-h200-wgmma.txt). At the 659 that mma.sync could make there, one in 6 cycles, 256 x 192
// would take 6.0.
// From shared memory a warp of 64 x 96 loads (64 + 96) x 32 bytes for the 48 mma of a step of 16 bits along K: 38
// operations a byte. Eight of them take 40 x 8 of the 288 x 2 cycles in which tensor cores make one in 6, and the
// copies write for 112: three quarters in all. With 64 x 64 it is nine tenths.
//
// Registers of a thread: 192 sums, 16 of a's fragments and 16 of b's, or 128 sums, 32 and 16; with addresses up to 255,
// so that 8 warps share a multiprocessor's 65536; with 64 x 128 64 sums and up to 168, for 12 warps. Shared memory of a
// block: 3 x (16 + 12), 3 x (16 + 8), 3 x (8 + 8) or 4 x (4 + 8) KB.
//
// Products of few tiles leave multiprocessors idle: 768 x 768 has 36 of 128 x 128, for 132. So there are tiles of half
// that size, and the blocks share out K. A block that is alone on a multiprocessor waits for memory: with three pairs
// of tiles a copy had a step and a half, and on an H200 a step of 128 x 128 took 0.45 us, its products half of that
// (512 and 1024 cubed in benchmarks/results/2026-11-27-h200.md). Hence as many pairs as fit 48 KB, of which cards with
// 100 KB of shared memory (compute capability 8.6, 8.9, 12.0) still have room for two. By the cycles between
// instructions, a step of 64 x 128 takes a warp 210 for 32 mma in 16 bits, 301 in TF32.
#include "tensor_core_copiers.cuh"
#include "tile_order.cuh"

constexpr int GROUP_ROWS = 2048;  // of out, whose tiles are made one column after another
constexpr int FEWEST_PAIRS = 3;   // of tiles, of a block
constexpr int RING = 48 * 1024 / CHUNK_BYTES;  // chunks of its pairs, where that makes more of them

template <int TILE_M>
constexpr int BLOCK = TILE_M < 128 ? 128 : TILE_M;  // threads
template <int TILE_M>
constexpr int TOGETHER = TILE_M < 128 ? 3 : 256 / TILE_M;  // blocks of a multiprocessor
template <int TILE_M, int TILE_N>
constexpr int IN_RING = RING / ((TILE_M + TILE_N) * CHUNKS);
template <int TILE_M, int TILE_N>
constexpr int PAIRS = IN_RING<TILE_M, TILE_N> > FEWEST_PAIRS ? IN_RING<TILE_M, TILE_N> : FEWEST_PAIRS;

// The problem, but for the pointers. Strides are counted in elements: from a row to the next, or from a line.
struct TensorCoreShape {
    long long M, N, K, batches;
    long long a_row_stride, a_batch_stride;
    long long b_row_stride, b_batch_stride;
    long long part;  // of K, a multiple of a step, if there are several
    int parts;
};

// What a block makes: a tile, of which product of the batch, from where on along K, and which of all products that is,
// those of every part being products of their own.
struct Task {
    TilePlace place;
    long long batch, first_k, number;
};

// Adds to each column of a group of a warp's tile its bias; `bias` is that of the group's first column.
template <typename T, typename Tiling>
__device__ __forceinline__ void add_bias(typename Tiling::Sums& sums, int first, const T* bias, long long columns) {
#pragma unroll
    for (int n = 0; n < GROUP; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = 8 * n + threadIdx.x % 4 * 2 + i;
            const float addend = column < columns ? float(bias[column]) : 0.0f;
#pragma unroll
            for (int m = 0; m < Tiling::WARP_M / 16; m++) {
                sums[m][first + n][i] += addend;
                sums[m][first + n][2 + i] += addend;
            }
        }
}

// Stores a warp's sums, plus the bias, unless it is null, to the product that begins at `out`.
template <typename Tiling, typename Out, typename T>
__device__ __forceinline__ void store(Out* out, typename Tiling::Sums& sums, const T* bias, const TilePlace& place,
                                      const TensorCoreShape& shape) {
    const long long row = (long long)place.row * Tiling::TILE_M + Tiling::warp_row();
    const long long column = (long long)place.column * Tiling::TILE_N + Tiling::warp_column();
    Out* const warp_out = out + row * shape.N + column;
#pragma unroll
    for (int group = 0; group < Tiling::GROUPS; group++) {
        const int right = group * Tiling::GROUPS_APART;
        const long long columns = shape.N - column - right;
        if (bias) add_bias<T, Tiling>(sums, GROUP * group, bias + column + right, columns);
#pragma unroll
        for (int m = 0; m < Tiling::WARP_M / 16; m++)
            store_fragments<GROUP>(warp_out + 16 * m * shape.N + right, &sums[m][GROUP * group],
                                   shape.M - row - 16 * m, columns, shape.N);
    }
}

// Grid: x = all tiles of out (x alone may exceed 65535); y x z = the batch, as often as there are parts, which only
// tiles of up to 128 rows can have. bias may be null. partial is not used where there is one part, out and bias where
// there are several.
template <typename T, int TILE_M, int TILE_N, bool A_ALONG_M, bool B_ALONG_N>
__global__ void __launch_bounds__(BLOCK<TILE_M>, TOGETHER<TILE_M>)
matmul_tensor_core(T* out, float* partial, const T* a, const T* b, const T* bias, TensorCoreShape shape) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N, PAIRS<TILE_M, TILE_N>>;
    using Left = MatrixCopier<T, TILE_M, A_ALONG_M, Tiling::THREADS>;
    using Right = MatrixCopier<T, TILE_N, B_ALONG_N, Tiling::THREADS>;
    static_assert(Tiling::THREADS == BLOCK<TILE_M>, "which the launch bounds say");
    constexpr bool IN_PARTS = TILE_M <= 128;
    extern __shared__ __align__(128) uint4 tiles[];
    const long long number = (long long)blockIdx.y * gridDim.z + blockIdx.z;
    if (number >= (IN_PARTS ? shape.parts : 1) * shape.batches) return;
    __shared__ Task task;  // not in registers, all of which the product takes
    if (threadIdx.x == 0) {
        const long long part = IN_PARTS && shape.parts > 1 ? number / shape.batches : 0;
        task = {tile_place(int(blockIdx.x), int((shape.M + TILE_M - 1) / TILE_M),
                           int((shape.N + TILE_N - 1) / TILE_N), GROUP_ROWS / TILE_M),
                number - part * shape.batches, part * shape.part, number};
    }
    __syncthreads();  // it is known

    const long long first_row = (long long)task.place.row * TILE_M;
    const long long first_column = (long long)task.place.column * TILE_N;
    a += task.batch * shape.a_batch_stride;
    b += task.batch * shape.b_batch_stride;
    long long K = shape.K;
    if constexpr (IN_PARTS) {
        a += task.first_k * (A_ALONG_M ? shape.a_row_stride : 1);
        b += task.first_k * (B_ALONG_N ? shape.b_row_stride : 1);
        K -= task.first_k;
        if (shape.parts > 1 && K > shape.part) K = shape.part;
    }
    Left left(a, shape.a_row_stride, first_row, shape.M, K);
    Right right(b, shape.b_row_stride, first_column, shape.N, K);
    typename Tiling::Sums sums = {};
    AsyncCopies copies;
    multiply_tiles<T, Tiling, typename Left::Tile, typename Right::Tile>(
        sums, tiles, int((K + STEP<T> - 1) / STEP<T>), copies, [&](uint4* a_tile, uint4* b_tile, Part part) {
            left.start(copies, a_tile, part);
            right.start(copies, b_tile, part);
        });
    const long long at = task.number * shape.M * shape.N;
    if constexpr (IN_PARTS)
        if (shape.parts > 1) return store<Tiling>(partial + at, sums, (const float*)nullptr, task.place, shape);
    store<Tiling>(out + at, sums, bias, task.place, shape);
}
