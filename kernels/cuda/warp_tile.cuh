// The main loop of matrix products on CUDA cores: a tile of a product for a block, a part of it for each
// warp, a patch of that for each thread, in float32. The kernels that use it bring what loads the tiles of
// the factors.
#pragma once

#include "vector.cuh"

// How a block is divided. It makes BLOCK_M x BLOCK_N results, in steps of DEPTH along K. A warp makes WARP_M
// x WARP_N of them; its lanes stand LANES_Y x LANES_X, with ROWS x COLUMNS results each. With SLICES > 1
// there are as many warps for each part of the tile: they share out the DEPTH of each step, and add up in the
// end.
template <int BLOCK_M_, int BLOCK_N_, int WARP_M_, int WARP_N_, int DEPTH_, int SLICES_>
struct WarpTiling {
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, WARP_M = WARP_M_, WARP_N = WARP_N_;
    static constexpr int DEPTH = DEPTH_, SLICES = SLICES_, SLICE_DEPTH = DEPTH / SLICES;
    static constexpr int LANES_Y = 8, LANES_X = 4;
    static constexpr int ROWS = WARP_M / LANES_Y, COLUMNS = WARP_N / LANES_X;
    static constexpr int WARPS_X = BLOCK_N / WARP_N, WARPS = BLOCK_M / WARP_M * WARPS_X;  // of a slice
    static constexpr int THREADS = 32 * WARPS * SLICES;

    // A tile of a factor in shared memory: DEPTH lines of what a step needs for one k. A line is four
    // elements longer than the tile, so that a column of it goes to different banks.
    static constexpr int PADDING = 4;
    static constexpr int A_PITCH = BLOCK_M + PADDING, B_PITCH = BLOCK_N + PADDING;
    static constexpr int TILES = DEPTH * (A_PITCH + B_PITCH);  // elements of a tile of a and a tile of b

    // Shared memory: two pairs of tiles; in the end, the sums of half of the slices.
    static constexpr int SUMS = SLICES / 2 * BLOCK_M * BLOCK_N;
    static constexpr int SHARED_BYTES = 4 * (2 * TILES > SUMS ? 2 * TILES : SUMS);

    static_assert(SLICE_DEPTH % 2 == 0, "two sets of registers take turns");
};

// Where the patch of this thread begins in the block's tile, and the slice of its warp. The patch is made of
// pieces of 4 x 4: the pieces of a warp's lanes stand side by side, and a thread's next piece follows behind
// those of all lanes. Neighbouring lanes then read neighbouring vectors of a line, from different banks.
template <typename Tiling>
struct PatchPlace {
    int y, x, slice;

    __device__ __forceinline__ PatchPlace() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % Tiling::WARPS;
        y = warp / Tiling::WARPS_X * Tiling::WARP_M + lane / Tiling::LANES_X * 4;
        x = warp % Tiling::WARPS_X * Tiling::WARP_N + lane % Tiling::LANES_X * 4;
        slice = threadIdx.x / (32 * Tiling::WARPS);
    }

    // The patch's row i and column j in the block's tile.
    __device__ __forceinline__ int row(int i) const { return y + i / 4 * 4 * Tiling::LANES_Y + i % 4; }
    __device__ __forceinline__ int column(int j) const { return x + j / 4 * 4 * Tiling::LANES_X + j % 4; }
};

// What a thread needs of one line: COUNT elements in vectors, which stand LANES vectors apart.
template <int LANES, int COUNT>
__device__ __forceinline__ void read_fragment(float (&values)[COUNT], const float* line) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const Vector<float> vector = load_vector(line + i * LANES);
#pragma unroll
        for (int j = 0; j < 4; j++) values[i + j] = vector.lane[j];
    }
}

// sums[i][j] += a[i] * b[j]: along the rows there and back, so that each multiply-add shares one factor with
// the one before, which need not be read from a register again.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void add_outer_product(float (&sums)[ROWS][COLUMNS], const float (&a)[ROWS],
                                                  const float (&b)[COLUMNS]) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            const int j = i % 2 == 0 ? n : COLUMNS - 1 - n;
            sums[i][j] += a[i] * b[j];
        }
}

// sums += the product of K columns of a and K rows of b. A loader brings the tiles of its factor one after
// the other: fetch(left) starts to load the coming one into registers, with zeros where k is `left` or more,
// and store(tile) puts it into shared memory.
//
// Everything is one step ahead. While a tile is multiplied, the memory delivers the next one; while a thread
// multiplies what it has read for one k, shared memory delivers what it needs for the next. One barrier a
// step is enough: who overwrites a tile has passed the one that came after everyone's last reading of it.
template <typename Tiling, typename ALoader, typename BLoader>
__device__ __forceinline__ void multiply_add(float (&sums)[Tiling::ROWS][Tiling::COLUMNS], ALoader& a, BLoader& b,
                                             int K, float* tiles, const PatchPlace<Tiling>& place) {
    constexpr int LAST = Tiling::SLICE_DEPTH - 1;
    constexpr int B = Tiling::DEPTH * Tiling::A_PITCH;  // a tile of b follows the one of a
    const int a_start = place.slice * Tiling::SLICE_DEPTH * Tiling::A_PITCH + place.y;
    const int b_start = place.slice * Tiling::SLICE_DEPTH * Tiling::B_PITCH + place.x + B;
    float a_values[2][Tiling::ROWS], b_values[2][Tiling::COLUMNS];

    a.fetch(K);
    b.fetch(K);
    a.store(tiles);
    b.store(tiles + B);
    __syncthreads();  // the first tiles are complete
    read_fragment<Tiling::LANES_Y>(a_values[0], tiles + a_start);
    read_fragment<Tiling::LANES_X>(b_values[0], tiles + b_start);

    int now = 0;  // which pair of tiles is read
    for (int left = K; left > 0; left -= Tiling::DEPTH) {
        const float *a_lines = tiles + now + a_start, *b_lines = tiles + now + b_start;
#pragma unroll
        for (int k = 0; k <= LAST; k++) {
            if (k == 0) {
                a.fetch(left - Tiling::DEPTH);
                b.fetch(left - Tiling::DEPTH);
            }
            if (k == LAST) {
                now = Tiling::TILES - now;
                a.store(tiles + now);
                b.store(tiles + now + B);
                __syncthreads();  // the next tiles are complete, and everyone has read these
                a_lines = tiles + now + a_start - (LAST + 1) * Tiling::A_PITCH;
                b_lines = tiles + now + b_start - (LAST + 1) * Tiling::B_PITCH;
            }
            read_fragment<Tiling::LANES_Y>(a_values[(k + 1) % 2], a_lines + (k + 1) * Tiling::A_PITCH);
            read_fragment<Tiling::LANES_X>(b_values[(k + 1) % 2], b_lines + (k + 1) * Tiling::B_PITCH);
            add_outer_product(sums, a_values[k % 2], b_values[k % 2]);
        }
    }
}

// Four neighbours of a row of the patch.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ Vector<float> piece(const float (&sums)[ROWS][COLUMNS], int i, int j) {
    return {sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]};
}

// Adds up the sums of the slices, in those of the first one: in a tree, of which each level halves the
// slices.
template <typename Tiling>
__device__ __forceinline__ void add_slices(float (&sums)[Tiling::ROWS][Tiling::COLUMNS], float* shared,
                                           const PatchPlace<Tiling>& place) {
    constexpr int THREADS = 32 * Tiling::WARPS;  // of a slice
#pragma unroll
    for (int half = Tiling::SLICES / 2; half > 0; half /= 2) {
        // The threads' vectors of one place stand side by side.
        float* mine = shared + place.slice % half * Tiling::BLOCK_M * Tiling::BLOCK_N + threadIdx.x % THREADS * 4;
        __syncthreads();  // what stood there has been read
#pragma unroll
        for (int i = 0; i < Tiling::ROWS; i++)
#pragma unroll
            for (int j = 0; j < Tiling::COLUMNS; j += 4)
                if (place.slice / half == 1)
                    store_vector(mine + (i * Tiling::COLUMNS + j) * THREADS, piece(sums, i, j));
        __syncthreads();  // the sums of the upper half are there
        if (place.slice >= half) continue;
#pragma unroll
        for (int i = 0; i < Tiling::ROWS; i++)
#pragma unroll
            for (int j = 0; j < Tiling::COLUMNS; j += 4) {
                const Vector<float> other = load_vector(mine + (i * Tiling::COLUMNS + j) * THREADS);
#pragma unroll
                for (int n = 0; n < 4; n++) sums[i][j + n] += other.lane[n];
            }
    }
}
