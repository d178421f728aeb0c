// The main loop of matrix products on tensor cores: a tile of a product for a block of 4 or 8 warps, a part of it
// for each, in float32. The kernels that use it bring what starts the copies of the factors' tiles.
//
// A block walks along K in steps of CHUNKS chunks of 16 bytes: 16 floats, or 32 elements of 16 bits. STAGES
// pairs of tiles, 3 or as many as the tiling says, lie in shared memory: while the block multiplies one, the next are
// on their way. One barrier a step is enough, before the step's last products, whose fragments are in registers by
// then: behind it everybody's part of the next step's tiles is there, and everybody has read this step's, whose place
// the copies fill that begin in the next mma step. All loads and copies stand between products: a tensor core takes 6
// to 8 cycles for an mma, in which a warp can issue as many other instructions.
//
// The tiles begin at a multiple of 128 bytes, a line of all banks: what a warp's copy brings, 512 bytes side by side,
// fills four lines then, and else parts of five; and shared memory has little time to spare (matmul_tensor_core.cu).
//
// A warp multiplies all its rows with a group of 32 columns, while it loads the next group. Where registers are many,
// all rows of the next mma step are loaded as this one begins; where the sums take 192, each 16 rows when those in
// their place have been multiplied, 12 mma before they are wanted. Copies follow one by one, a few mma apart. Begun
// together by both warps of a scheduler, they waited for each other's addresses, and the loads behind them for all:
// tensor cores idled for a third of the time (measured on an H200, 27 November 2026).
//
// A tile of a factor has SIDE rows or columns of the product, and lies in one of two ways:
//
//   AlongK    a line for each row of the product: a step along K, 64 bytes
//   AcrossK   a line for each k of the step: SIDE elements. In 16 bits ldmatrix transposes them on their way
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "async_copy.cuh"
#include "common.cuh"
#include "tensor_core.cuh"

constexpr int CHUNK_BYTES = 16, CHUNKS = 4;  // a step along K
constexpr int GROUP = 4;                     // fragments of 8 columns: what is multiplied while the next are loaded

template <typename T>
constexpr int PER_CHUNK = CHUNK_BYTES / sizeof(T);
template <typename T>
constexpr int STEP = CHUNKS * PER_CHUNK<T>;  // along K

// How a block is divided: two warps side by side, but 4 where a tile has 32 rows. A warp has GROUPS of 32 columns, side
// by side; or an odd number of them, in turn with the others' (a load's first chunk must be a multiple of 4: AcrossK).
template <int TILE_M_, int TILE_N_, int STAGES_ = 3>
struct TensorCoreTiling {
    static constexpr int STAGES = STAGES_;  // pairs of tiles in shared memory
    static constexpr int TILE_M = TILE_M_, TILE_N = TILE_N_, WARPS = TILE_M * TILE_N > 128 * 128 ? 8 : 4;
    static constexpr int WARPS_N = TILE_M == 32 ? WARPS : 2, WARPS_M = WARPS / WARPS_N;
    static constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int A_CHUNKS = TILE_M * CHUNKS, B_CHUNKS = TILE_N * CHUNKS;  // of a tile
    static constexpr int TILES = STAGES * (A_CHUNKS + B_CHUNKS);
    static constexpr int GROUPS = WARP_N / (8 * GROUP), GROUPS_APART = 8 * GROUP * (GROUPS % 2 ? WARPS_N : 1);
    using Sums = float[WARP_M / 16][WARP_N / 8][4];  // of a thread

    // Where this thread's warp stands in the block's tile: its first row and column.
    __device__ static __forceinline__ int warp_row() { return threadIdx.x / 32 / WARPS_N * WARP_M; }
    __device__ static __forceinline__ int warp_column() {
        return threadIdx.x / 32 % WARPS_N * (GROUPS % 2 ? 8 * GROUP : WARP_N);
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

// ---- how a tile lies ----
//
// rows_from and columns_from say which chunk of a tile is the first that a lane takes, of a warp whose rows or columns
// begin at `side`, a multiple of their number. From there, `at`, load_rows takes the fragment of 16 rows of the left
// factor, `row` further on, and of two chunks along K, from chunk k on; load_columns takes those of 2 x 8 columns of
// the right one: of 8 columns both chunks, then of the next 8. Rows, columns and chunks are constants: a lane has one
// address for all of a tile's fragments, to which ldmatrix or an xor adds them.

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

    __device__ static __forceinline__ int rows_from(int side) {
        const int lane = threadIdx.x % 32;
        return place_of(side + lane % 16, lane / 16);
    }

    __device__ static __forceinline__ int columns_from(int side) {
        const int lane = threadIdx.x % 32;
        return place_of(side + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    // Rows 8 further on have their chunks exchanged alike.
    __device__ static __forceinline__ void load_rows(unsigned (&fragment)[4], const uint4* tile, int at, int row,
                                                     int k) {
        ldmatrix(fragment, tile + (at ^ k) + row * CHUNKS);
    }

    __device__ static __forceinline__ void load_columns(unsigned (&fragments)[4], const uint4* tile, int at,
                                                        int column, int k) {
        ldmatrix(fragments, tile + (at ^ k) + column * CHUNKS);
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

    __device__ static __forceinline__ int rows_from(int side) {
        const int lane = threadIdx.x % 32;
        if constexpr (sizeof(T) == 4) return place_of(lane % 4, side / PER_CHUNK<T> + lane / 16);
        return place_of(lane / 16 * 8 + lane % 8, side / PER_CHUNK<T> + lane / 8 % 2);
    }

    __device__ static __forceinline__ int columns_from(int side) {
        const int lane = threadIdx.x % 32;
        if constexpr (sizeof(T) == 4) return rows_from(side);
        return place_of(lane % 16, side / PER_CHUNK<T> + lane / 16);
    }

    __device__ static __forceinline__ void load_rows(unsigned (&fragment)[4], const uint4* tile, int at, int row,
                                                     int k) {
        if constexpr (sizeof(T) == 2) {
            ldmatrix_trans(fragment, at_side(tile, at, row) + k * PER_CHUNK<T> * LINE);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) fragment[i] = element(tile, at, k + i / 2, row + i % 2 * 8);
        }
    }

    __device__ static __forceinline__ void load_columns(unsigned (&fragments)[4], const uint4* tile, int at,
                                                        int column, int k) {
        if constexpr (sizeof(T) == 2) {
            ldmatrix_trans(fragments, at_side(tile, at, column) + k * PER_CHUNK<T> * LINE);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) fragments[i] = element(tile, at, k + i % 2, column + i / 2 * 8);
        }
    }

  private:
    // What stands `side` rows or columns further on than `at`.
    __device__ static __forceinline__ const uint4* at_side(const uint4* tile, int at, int side) {
        const int chunks = side / PER_CHUNK<T>;
        return tile + (at ^ chunks % 8) + chunks / 8 * 8;
    }

    // Of the 8 x 4 floats from `side` and chunk k of the step on, the one that mma gives to this lane.
    __device__ static __forceinline__ unsigned element(const uint4* tile, int at, int k, int side) {
        const uint4* const chunk = at_side(tile, at, side) + k * PER_CHUNK<T> * LINE;
        return reinterpret_cast<const unsigned*>(chunk)[threadIdx.x % 32 / 4 % 4];
    }
};

// ---- the loop ----

// One of `count` parts of a thread's copies of a pair of tiles.
struct Part {
    int number, count;

    // Whether copy i of a tile's n is in this part.
    __device__ __forceinline__ bool has(int i, int n) const { return i * count / n == number; }
    __device__ __forceinline__ bool is_last() const { return number == count - 1; }
};

// sums += the product of `steps` pairs of tiles, which lie as A and B say. start(a_tile, b_tile, part) starts a part
// of this thread's copies of the next pair into `tiles`, Tiling::TILES chunks: one part behind each GROUP of products
// of the first mma step that begins behind the barrier. Up to STAGES pairs are copied that are not used.
template <typename T, typename Tiling, typename A, typename B, typename Start>
__device__ __forceinline__ void multiply_tiles(typename Tiling::Sums& sums, uint4* tiles, int steps,
                                               AsyncCopies& copies, Start&& start) {
    constexpr int STAGES = Tiling::STAGES;
    constexpr int ROWS = Tiling::WARP_M / 16, GROUPS = Tiling::GROUPS;      // of an mma step
    constexpr int PARTS = GROUPS * ROWS;                                     // of a step's copies
    constexpr int AHEAD = Tiling::WARP_M * Tiling::WARP_N > 64 * 64 ? 1 : GROUPS;  // groups that are loaded
    constexpr int KEPT = AHEAD == GROUPS ? 2 : 1;                                  // mma steps, of whose rows
    constexpr int PAIR = Tiling::A_CHUNKS + Tiling::B_CHUNKS, LAST = (STAGES - 1) * PAIR;  // where it begins
    constexpr int COPYING = AHEAD == GROUPS;  // the mma step that begins copies: the first behind the barrier
    static_assert(CHUNKS == 4, "a step along K is two mma steps");
    uint4* const b_tiles = tiles + Tiling::A_CHUNKS;  // each behind one of a
    int a_from = A::rows_from(Tiling::warp_row()), b_from = B::columns_from(Tiling::warp_column());
    unsigned rows[KEPT][ROWS][4];
    unsigned columns[2 * AHEAD][GROUP][2];
    const auto load_row = [&](int half, int m) {
        A::load_rows(rows[half % KEPT][m], tiles, a_from, 16 * m, 2 * half);
    };
    const auto load_rows = [&](int half) {
#pragma unroll
        for (int m = 0; m < ROWS; m++) load_row(half, m);
    };
    const auto load_columns = [&](int group) {
#pragma unroll
        for (int n = 0; n < GROUP; n += 2) {
            unsigned four[4];  // of 8 columns, and of the next 8
            B::load_columns(four, b_tiles, b_from, group % GROUPS * Tiling::GROUPS_APART + 8 * n,
                            group / GROUPS * 2);
#pragma unroll
            for (int i = 0; i < 4; i++) columns[group % (2 * AHEAD)][n + i / 2][i % 2] = four[i];
        }
    };
    const auto round_row = [&](unsigned (&row)[4]) {
        if constexpr (sizeof(T) == 4) to_tf32(row[0], row[2]), to_tf32(row[1], row[3]);
    };
    const auto round_columns = [&](unsigned (&group)[GROUP][2]) {
#pragma unroll
        for (int n = 0; n < GROUP; n++)
            if constexpr (sizeof(T) == 4) to_tf32(group[n][0], group[n][1]);
    };
    const auto begin = [&](int pair, int part) { start(tiles + pair, b_tiles + pair, Part{part, PARTS}); };
    for (int pair = 0; pair < LAST + COPYING * PAIR; pair += PAIR) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) begin(pair, part);
        copies.commit();
    }
    copies.wait<STAGES - 2 + COPYING>();  // for the first pair
    __syncthreads();
    load_rows(0);
#pragma unroll
    for (int group = 0; group < AHEAD; group++) load_columns(group);
    round_columns(columns[0]);
    int from = 0, to = LAST;  // the pairs that are multiplied and copied
    for (; steps > 0; steps--) {
#pragma unroll
        for (int group = 0; group < 2 * GROUPS; group++) {
            const int half = group / GROUPS;
            const bool begins_half = group % GROUPS == 0, ends_half = group % GROUPS == GROUPS - 1;
            if (group == 2 * GROUPS - AHEAD) {
                copies.wait<STAGES - 2>();  // for the next step's tiles, while those after it are on their way
                __syncthreads();            // for the parts of all threads; all have loaded this step's fragments
                const int turn = from == LAST ? -LAST : PAIR;
                to = from;
                from += turn, a_from += turn, b_from += turn;
            }
            load_columns((group + AHEAD) % (2 * GROUPS));
            if (KEPT == 2 && begins_half) load_rows(1 - half);
#pragma unroll
            for (int m = 0; m < ROWS; m++) {
                unsigned (&row)[4] = rows[half % KEPT][m];
                if (begins_half) round_row(row);
#pragma unroll
                for (int n = 0; n < GROUP; n++)
                    multiply_add<T>(sums[m][group % GROUPS * GROUP + n], row, columns[group % (2 * AHEAD)][n]);
                if (KEPT == 1 && ends_half) load_row(1 - half, m);
                if (half == COPYING) begin(to, group % GROUPS * ROWS + m);
            }
            round_columns(columns[(group + 1) % (2 * AHEAD)]);
            if (half == COPYING && ends_half) copies.commit();
        }
    }
    copies.wait<0>();  // for those that are not used
    __syncthreads();   // others may be put in the tiles' places
}
