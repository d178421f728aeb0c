// Matrix multiplication on CUDA cores as far up as they go: out[..., i, j] = sum over k of a[..., i, k] *
// b[..., k, j], plus bias[j] where there is one, in float32. This is the top of the ladder of matmul.cu, whose shapes
// and strides it takes.
//
//   matmul_warp_tile   + a level between the block's tile and the thread's patch: a tile for each warp
//
// In the rungs below, a thread reads 16 elements from shared memory for 64 multiply-adds. An H200 starts one
// instruction in each quarter of a multiprocessor and cycle, and the quarter's 32 lanes need one multiply-add
// a cycle: whatever else is started takes the place of one. In matmul_vectorized's inner loop 64 of 75
// instructions are multiply-adds, and its loads of shared memory, 4 of 512 bytes in the time of 64 multiply-
// adds from each of four quarters, take all that it delivers (128 bytes a cycle). Here
//
//   - a patch is 8 x 16: 6 loads for 128 multiply-adds, 96 cycles of the shared memory's 128;
//   - the patches of a warp are a square of 64 x 64, so that its loads are of 64 + 64 different elements;
//   - what a patch needs for the next k is read into a second set of registers during the multiply-adds of this
//     one: nothing waits for shared memory;
//   - a step is 16 deep and unrolled, so that its copies, addresses and barrier stand among 2048 multiply-adds.
//
// The thread block makes its tiles in bands (tile_order.cuh), for the L2 cache.
//
// Where a product has too few tiles for all multiprocessors, they become smaller and the warps of a block
// share out K as well (SLICES), and so do several blocks (split_k.cu).
//
// Arithmetic intensity: tiles of 128 x 256 make 43 operations for each byte loaded into shared memory.
//
// Registers of a thread: 128 sums, 2 x 24 elements to multiply, 24 on their way to shared memory, and some 40
// for addresses: up to 255, of which a multiprocessor has for 256 threads. Shared memory: 49 KB for 128 x
// 256.

#include "matmul.cuh"
#include "tile_order.cuh"
#include "warp_tile.cuh"

// Which COPIES a thread makes for a tile of SIDE rows (of a, or columns of b) x DEPTH, of LENGTH neighbours
// each: where the first of them stands, and the others from there. ALONG_K: the neighbours lie along k, and
// threads side by side read SECTOR elements of a row: 32 to 64 bytes. Else they lie along the rows, and
// threads side by side read a line of the tile.
template <typename Tiling, int SIDE, int LENGTH, bool ALONG_K>
struct Copies {
    static constexpr int THREADS = Tiling::THREADS, COUNT = SIDE * Tiling::DEPTH / (LENGTH * THREADS);
    static constexpr int SECTOR = LENGTH > 1 && Tiling::DEPTH % 16 == 0 ? 16 : 8;
    static constexpr int LINE = (ALONG_K ? SECTOR : SIDE) / LENGTH;  // threads side by side
    static constexpr int LINES = ALONG_K && THREADS / LINE > SIDE ? SIDE : THREADS / LINE;
    static constexpr int PER_COLUMN = ALONG_K ? SIDE / LINES : 1, COLUMNS = THREADS / (LINE * LINES);
    static_assert(COUNT * LENGTH * THREADS == SIDE * Tiling::DEPTH && COUNT % PER_COLUMN == 0);

    static __device__ __forceinline__ int first_k() {
        const int thread = threadIdx.x;
        return ALONG_K ? thread % LINE * LENGTH + thread / (LINE * LINES) * SECTOR : thread / LINE;
    }
    static __device__ __forceinline__ int first_row() {
        return ALONG_K ? threadIdx.x / LINE % LINES : threadIdx.x % LINE * LENGTH;
    }
    static __device__ constexpr int k(int i) { return ALONG_K ? i / PER_COLUMN * COLUMNS * SECTOR : i * LINES; }
    static __device__ constexpr int row(int i) { return ALONG_K ? i % PER_COLUMN * LINES : 0; }
};

// One thread's part in loading the tiles of a factor, one after the other along K. Rows from `rows` on are
// read as the first one, and their results not stored; what is beyond the end of K is zeros.
template <typename Tiling, int SIDE, int LENGTH>
struct TileLoader {
    using AlongK = Copies<Tiling, SIDE, LENGTH, true>;
    using AlongRows = Copies<Tiling, SIDE, LENGTH, false>;
    static constexpr int PITCH = SIDE + Tiling::PADDING, COUNT = AlongK::COUNT;

    const float* tile;  // the first element of the coming tile
    long long step;     // from there to that of the tile after it
    bool along_k;
    int place;          // of the first copy, in shared memory
    int k[COUNT], offset[COUNT];  // of each copy: its k in the tile, and where it is in memory
    Vector<float, LENGTH> held[COUNT];

    __device__ __forceinline__ TileLoader(const float* corner, long long row_stride, long long k_stride, int rows,
                                          bool is_along_k)
        : tile(corner), step(Tiling::DEPTH * k_stride), along_k(is_along_k) {
        const int first_k = along_k ? AlongK::first_k() : AlongRows::first_k();
        const int first_row = along_k ? AlongK::first_row() : AlongRows::first_row();
        place = first_k * PITCH + first_row;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int row = first_row + (along_k ? AlongK::row(i) : AlongRows::row(i));
            k[i] = first_k + (along_k ? AlongK::k(i) : AlongRows::k(i));
            offset[i] = (row < rows ? row : 0) * int(row_stride) + k[i] * int(k_stride);
        }
    }

    // Starts to load the copies of the coming tile, from which on `left` elements are left along K.
    __device__ __forceinline__ void fetch(int left) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            held[i] = k[i] < left ? load_vector<LENGTH>(tile + offset[i]) : Vector<float, LENGTH>{};
        tile += step;
    }

    // Puts them into the tile.
    __device__ __forceinline__ void store(float* to) const {
        to += place;
        if (along_k) {
#pragma unroll
            for (int i = 0; i < COUNT; i++)
#pragma unroll
                for (int n = 0; n < LENGTH; n++)
                    to[(AlongK::k(i) + n) * PITCH + AlongK::row(i)] = held[i].lane[n];
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; i++) store_vector(to + AlongRows::k(i) * PITCH, held[i]);
        }
    }
};

// Writes the patch, plus the bias, unless it is null: in vectors where the rows of out are made of such. The bias
// is read for each row anew, from the cache; there are no registers to hold it.
template <typename Tiling>
__device__ __forceinline__ void store_patch(float* out, long long pitch, int rows, int columns,
                                            const float (&sums)[Tiling::ROWS][Tiling::COLUMNS], const float* bias,
                                            const PatchPlace<Tiling>& place, bool vectors) {
#pragma unroll
    for (int i = 0; i < Tiling::ROWS; i++) {
        if (place.row(i) >= rows) continue;
        float* line = out + place.row(i) * pitch;
#pragma unroll
        for (int j = 0; j < Tiling::COLUMNS; j += 4) {
            const int column = place.column(j);
            Vector<float> results = piece(sums, i, j);
            if (bias) {
#pragma unroll
                for (int n = 0; n < 4; n++)
                    if (column + n < columns) results.lane[n] += bias[column + n];
            }
            if (vectors) {
                if (column < columns) store_results(line + column, results);
            } else {
#pragma unroll
                for (int n = 0; n < 4; n++)
                    if (column + n < columns) line[column + n] = results.lane[n];
            }
        }
    }
}

constexpr int BAND = 8;  // tiles, of 128 rows

// Grid: x = the tiles of out; y = the parts of K; z = the batch. LENGTH is that of what is loaded: 4 where a and b
// are made of whole vectors, 1 for any strides. RESIDENT blocks share a multiprocessor. bias may be null; the
// largest tiles of any strides, whose addresses take every register, leave it alone.
template <int BLOCK_M, int BLOCK_N, int WARP_M, int WARP_N, int DEPTH, int SLICES, int RESIDENT,
          int LENGTH>
__global__ void __launch_bounds__((BLOCK_M / WARP_M) * (BLOCK_N / WARP_N) * SLICES * 32, RESIDENT)
matmul_warp_tile(float* out, const float* a, const float* b, MatmulShape shape, Batch batch, Layout layout,
                 const float* bias) {
    using Tiling = WarpTiling<BLOCK_M, BLOCK_N, WARP_M, WARP_N, DEPTH, SLICES>;
    constexpr bool ADDS_BIAS = LENGTH > 1 || BLOCK_N < 256;
    extern __shared__ __align__(16) float tiles[];
    const PatchPlace<Tiling> place;
    const TilePlace tile = tile_place(int(blockIdx.x), int((shape.M + BLOCK_M - 1) / BLOCK_M),
                                      int((shape.N + BLOCK_N - 1) / BLOCK_N), BAND);
    const long long row = (long long)tile.row * BLOCK_M, column = (long long)tile.column * BLOCK_N;
    const int rows = at_most(shape.M - row, BLOCK_M), columns = at_most(shape.N - column, BLOCK_N);
    const bool vectors = shape.N % 4 == 0 && aligned<4>(out);

    const int K = int(select_part(a, b, shape));
    out += number_of_part(shape, 0) * shape.M * shape.N;
    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const float *a_corner = a, *b_corner = b;
        select_batch(a_corner, b_corner, batch, number);
        TileLoader<Tiling, BLOCK_M, LENGTH> a_loader(
            a_corner + row * shape.a_row_stride, shape.a_row_stride, shape.a_column_stride, rows,
            layout.a_along_k);
        TileLoader<Tiling, BLOCK_N, LENGTH> b_loader(
            b_corner + column * shape.b_column_stride, shape.b_column_stride, shape.b_row_stride, columns,
            layout.b_along_k);

        float sums[Tiling::ROWS][Tiling::COLUMNS] = {};
        multiply_add<Tiling>(sums, a_loader, b_loader, K, tiles, place);
        add_slices<Tiling>(sums, tiles, place);
        if (place.slice == 0)
            store_patch<Tiling>(out + (number * shape.M + row) * shape.N + column, shape.N, rows, columns, sums,
                                ADDS_BIAS && bias ? bias + column : nullptr, place, vectors);
        __syncthreads();  // everyone is done with shared memory
    }
}
