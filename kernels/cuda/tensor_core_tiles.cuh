// The main loop of matrix products on tensor cores: a tile of a product for a block of 4 or 8 warps, a part of it
// for each, in float32. The kernels that use it bring what starts the copies of the factors' tiles.
//
// A block walks along K in steps of CHUNKS chunks of 16 bytes: 16 floats, or 32 elements of 16 bits. STAGES
// pairs of tiles lie in shared memory: while the block multiplies one, the next are on their way. One barrier
// a step is enough, before the step's last products, whose fragments are in registers by then: behind it
// everybody's part of the next step's tiles is there, and everybody has read this step's, whose place the copies
// fill that start next. All loads and copies stand between products: a tensor core takes 6 to 8 cycles for an
// mma, in which a warp can issue as many other instructions.
//
// A tile of a factor has SIDE rows or columns of the product, and lies in one of two ways:
//
//   AlongK    a line for each row of the product: a step along K, 64 bytes
//   AcrossK   a line for each k of the step: SIDE elements. In 16 bits ldmatrix transposes them on their way
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "async_copy.cuh"
#include "tensor_core.cuh"

constexpr int CHUNK_BYTES = 16, CHUNKS = 4;  // a step along K
constexpr int STAGES = 3;                    // pairs of tiles in shared memory

template <typename T>
constexpr int PER_CHUNK = CHUNK_BYTES / sizeof(T);
template <typename T>
constexpr int STEP = CHUNKS * PER_CHUNK<T>;  // along K

// How a block is divided: two warps side by side, but 4 where a tile has 32 rows.
template <int TILE_M_, int TILE_N_>
struct TensorCoreTiling {
    static constexpr int TILE_M = TILE_M_, TILE_N = TILE_N_, WARPS = TILE_M * TILE_N > 128 * 128 ? 8 : 4;
    static constexpr int WARPS_N = TILE_M == 32 ? WARPS : 2, WARPS_M = WARPS / WARPS_N;
    static constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int A_CHUNKS = TILE_M * CHUNKS, B_CHUNKS = TILE_N * CHUNKS;  // of a tile
    static constexpr int TILES = STAGES * (A_CHUNKS + B_CHUNKS);
    using Sums = float[WARP_M / 16][WARP_N / 8][4];  // of a thread

    // Where this thread's warp stands in the block's tile.
    __device__ static __forceinline__ int warp_row() { return threadIdx.x / 32 / WARPS_N * WARP_M; }
    __device__ static __forceinline__ int warp_column() { return threadIdx.x / 32 % WARPS_N * WARP_N; }
};

// How much of a tile, at most `size`, is inside where `left` remain.
__device__ __forceinline__ int inside(long long left, int size) { return left < size ? int(left) : size; }

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

// ---- how a tile lies ----
//
// load_rows gives the fragment of 16 rows of the left factor, from `row` on, and two chunks along K, from
// chunk k on. load_columns gives those of 2 x 8 columns of the right one: of 8 columns both chunks, then of
// the next 8. Rounded to what multiply_add takes.

template <typename T, int SIDE>
struct AlongK {
    // Where a chunk of a line stands. ldmatrix reads the same chunk of 8 lines at a time. A line is 64 bytes,
    // half of the 32 banks: with all chunks in order, every other line would wait for the same banks. Instead
    // the chunks of lines 2 r and 2 r + 1, which share 128 bytes, are exchanged (xor) by r mod 4: those of 8
    // lines fall into 8 groups of 4 banks.
    __device__ static __forceinline__ int place_of(int row, int chunk) {
        constexpr int ROWS_PER_LINE = 128 / (CHUNKS * CHUNK_BYTES);
        return row * CHUNKS + (chunk ^ (row / ROWS_PER_LINE % CHUNKS));
    }

    // `row` is a multiple of 8: its chunks are exchanged as those of row 0.
    __device__ static __forceinline__ void load_rows(unsigned (&fragment)[4], const uint4* tile, int row, int k) {
        const int lane = threadIdx.x % 32;
        load(fragment, &tile[row * CHUNKS + place_of(lane % 16, k + lane / 16)]);
    }

    __device__ static __forceinline__ void load_columns(unsigned (&fragments)[4], const uint4* tile, int column,
                                                        int k) {
        const int lane = threadIdx.x % 32;
        load(fragments, &tile[column * CHUNKS + place_of(lane / 16 * 8 + lane % 8, k + lane / 8 % 2)]);
    }

  private:
    __device__ static __forceinline__ void load(unsigned (&out)[4], const uint4* line) {
        ldmatrix(out, line);
        if constexpr (sizeof(T) == 4)
            for (int i = 0; i < 4; i++) out[i] = to_tf32(__uint_as_float(out[i]));
    }
};

template <typename T, int SIDE>
struct AcrossK {
    static constexpr int LINE = SIDE / PER_CHUNK<T>;  // chunks

    // Where a chunk of the line of k stands. In 16 bits ldmatrix reads the same chunk of 8 lines at a time. Of
    // floats a warp reads 8 neighbours, two chunks, of 4 lines. Either way the xor keeps the lines apart, which
    // are whole multiples of 32 banks, or, of 32 elements of 16 bits, half of them: see AlongK.
    __device__ static __forceinline__ int place_of(int k, int chunk) {
        return k * LINE + (chunk ^ (sizeof(T) == 4 ? k % 4 * 2 : LINE == 4 ? k / 2 % 4 : k % 8));
    }

    __device__ static __forceinline__ void load_rows(unsigned (&fragment)[4], const uint4* tile, int row, int k) {
        const int lane = threadIdx.x % 32;
        if constexpr (sizeof(T) == 2) {
            const int line = k * PER_CHUNK<T> + lane / 16 * 8 + lane % 8;
            ldmatrix_trans(fragment, &tile[place_of(line, row / PER_CHUNK<T> + lane / 8 % 2)]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) fragment[i] = element(tile, k + i / 2, row + i % 2 * 8);
        }
    }

    __device__ static __forceinline__ void load_columns(unsigned (&fragments)[4], const uint4* tile, int column,
                                                        int k) {
        const int lane = threadIdx.x % 32;
        if constexpr (sizeof(T) == 2) {
            const int line = k * PER_CHUNK<T> + lane % 16;
            ldmatrix_trans(fragments, &tile[place_of(line, column / PER_CHUNK<T> + lane / 16)]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) fragments[i] = element(tile, k + i % 2, column + i / 2 * 8);
        }
    }

  private:
    // Of the 8 x 4 floats from `side` and chunk k of the step on, the one that mma gives to this lane.
    __device__ static __forceinline__ unsigned element(const uint4* tile, int k, int side) {
        const int lane = threadIdx.x % 32, at = side + lane / 4;
        const float* chunk = reinterpret_cast<const float*>(&tile[place_of(4 * k + lane % 4, at / 4)]);
        return to_tf32(chunk[at % 4]);
    }
};

// ---- the loop ----

// The fragments of a warp's columns for one mma step.
template <typename B, int WARP_N>
struct Columns {
    unsigned fragments[WARP_N / 8][2];

    __device__ __forceinline__ void load(const uint4* b_tile, int column, int k) {
#pragma unroll
        for (int n = 0; n < WARP_N / 8; n += 2) {
            unsigned four[4];  // of 8 columns, and of the next 8
            B::load_columns(four, b_tile, column + 8 * n, k);
            fragments[n][0] = four[0], fragments[n][1] = four[1];
            fragments[n + 1][0] = four[2], fragments[n + 1][1] = four[3];
        }
    }
};

// sums += the product of `steps` pairs of tiles, which lie as A and B say. start(a_tile, b_tile) starts this
// thread's copies of the next pair into `tiles`, Tiling::TILES chunks; STAGES times of pairs that are not used.
template <typename T, typename Tiling, typename A, typename B, typename Start>
__device__ __forceinline__ void multiply_tiles(typename Tiling::Sums& sums, uint4* tiles, int steps,
                                               AsyncCopies& copies, Start&& start) {
    constexpr int WARP_M = Tiling::WARP_M, WARP_N = Tiling::WARP_N;
    constexpr int A_CHUNKS = Tiling::A_CHUNKS, B_CHUNKS = Tiling::B_CHUNKS;
    static_assert(CHUNKS % 4 == 0, "the fragments of a tile's first step are always the same ones");
    uint4* const a_tiles = tiles;
    uint4* const b_tiles = tiles + STAGES * A_CHUNKS;
    const int row = Tiling::warp_row(), column = Tiling::warp_column();
    const auto begin = [&](int stage) {
        start(a_tiles + stage * A_CHUNKS, b_tiles + stage * B_CHUNKS);
        copies.commit();
    };
    // Of this mma step; what the next one takes is loaded meanwhile, of a into the same registers.
    Columns<B, WARP_N> b_fragments[2];
    unsigned a_fragments[WARP_M / 16][4];
    int stage = 0;
    for (int i = 0; i < STAGES; i++) begin(i);
    copies.wait<STAGES - 1>();
    __syncthreads();
    b_fragments[0].load(b_tiles, column, 0);
#pragma unroll
    for (int m = 0; m < WARP_M / 16; m++) A::load_rows(a_fragments[m], a_tiles, row + 16 * m, 0);
    for (; steps > 0; steps--) {
        const int done = stage;
#pragma unroll
        for (int k = 0; k < CHUNKS; k += 2) {
            if (k + 2 == CHUNKS) {
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                copies.wait<STAGES - 2>();  // for the next step's tiles, while those after it are on their way
                __syncthreads();            // for the parts of all threads; all have loaded this step's fragments
            }
            const int k_next = (k + 2) % CHUNKS;
            b_fragments[(k / 2 + 1) % 2].load(b_tiles + stage * B_CHUNKS, column, k_next);
#pragma unroll
            for (int m = 0; m < WARP_M / 16; m++) {
#pragma unroll
                for (int n = 0; n < WARP_N / 8; n++)
                    multiply_add<T>(sums[m][n], a_fragments[m], b_fragments[k / 2 % 2].fragments[n]);
                A::load_rows(a_fragments[m], a_tiles + stage * A_CHUNKS, row + 16 * m, k_next);
                if (k + 2 == CHUNKS && m == WARP_M / 32) begin(done);  // when the first products have their loads
            }
        }
    }
    copies.wait<0>();  // for those that are not used
    __syncthreads();   // others may be put in the tiles' places
}
