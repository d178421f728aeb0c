// Matrix multiplication: out[..., i, j] = sum over k of a[..., i, k] * b[..., k, j].
//
// Shapes: a is (..., M, K), b is (..., K, N), out is (..., M, N). The leading dimensions, the batch, are
// those of out. a and b have any strides, counted in elements: a transposed matrix or a broadcast batch is
// read where it lies. out is C-contiguous. K = 0 gives zeros.
//
//   matmul_naive           the definition: one thread for each element of out; in two rungs, uncoalesced and naive
//   matmul_tiled           + tiles of a and b in shared memory, each element loaded once for 32 threads
//   matmul_register_tile   + a patch of out in the registers of each thread: a loaded element serves 8 times more
//   matmul_vectorized      + 16 bytes a load, and the next tiles on their way while these are multiplied
//
// More rungs have files of their own: matmul_warp_tile.cu, the next one up, for float32; gemv.cu for vectors;
// split_k.cu for a long K and few outputs.
//
// A product makes 2 M N K floating-point operations. What bounds a kernel is how many of them it makes for
// each byte that it asks of the memory, its arithmetic intensity. In float32, naive loads 8 bytes for 2
// operations: 0.25 a byte, less what the caches catch. With tiles of T x T, a block loads 2 T^2 elements for
// 2 T^3 operations, T / 4 a byte: 8 for tiled (T = 32), 32 for the rungs above it (T = 128). An H200 can do
// about 14 for each byte that its memory delivers (67 TFLOP/s and 4.8 TB/s), so from there on the memory
// keeps up, and the question is the same one level higher: in tiled every multiply-add takes two loads from
// shared memory, which delivers 32 of them to a multiprocessor in the time of 128 multiply-adds. A patch of
// P x P in registers takes 2 P loads for P^2 multiply-adds: with P = 8, a quarter of a load for each.

#include "matmul.cuh"
#include "vector.cuh"

// The definition: each thread makes one element of out from a row of a and a column of b.
//
// In blocks of 32 x 8 the threads of a warp stand side by side in a row of out: they read the same element of
// a (one load, sent to all) and neighbouring elements of b (one wide load, if b's rows are contiguous). In blocks
// of 1 x 256, the rung uncoalesced, they stand in a column: they read the same element of b, and of a one from
// each of 32 rows, of which memory delivers 32 bytes each.
//
// Grid: x = all blocks of out, in rows of ceil(N / blockDim.x) (x alone may exceed 65535); z = the batch. In
// the rungs above: y = the parts of K.
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
        const long long K = select_part(a_row, b_column, shape);
        a_row += row * shape.a_row_stride;
        b_column += column * shape.b_column_stride;

        T sum = 0;
        for (long long k0 = 0; k0 < K; k0 += TILE) {
            const bool in_a = row < shape.M && k0 + tx < K;
            const bool in_b = column < shape.N && k0 + ty < K;
            a_tile[ty][tx] = in_a ? a_row[(k0 + tx) * shape.a_column_stride] : T(0);
            b_tile[ty][tx] = in_b ? b_column[(k0 + ty) * shape.b_row_stride] : T(0);
            __syncthreads();  // the tiles are complete before anyone reads them
            for (int k = 0; k < TILE; k++) sum += a_tile[ty][k] * b_tile[k][tx];
            __syncthreads();  // everyone is done with the tiles before they are overwritten
        }
        if (row < shape.M && column < shape.N)
            out[(number_of_part(shape, number) * shape.M + row) * shape.N + column] = sum;
    }
}

// ---- register tiles ----
//
// A block of 256 threads, seen as 16 x 16, makes a tile of out of 16 PATCH x 16 PATCH elements, PATCH x PATCH
// in each thread. It walks along K in steps of DEPTH, which is chosen such that every thread loads 16 bytes
// of a and 16 of b for a step. PATCH is 8 for a tile of 128 x 128 in float32, or 4 for one of 64 x 64: in
// float64, and where large tiles would be too few to fill the card.
//
// Registers of a thread, for PATCH = 8: 64 sums, 8 + 8 elements to multiply, the next 4 + 4 elements (only in
// vectorized) and about 30 for addresses: below 128, so that two blocks share a multiprocessor.

constexpr int SIDE = 16;
constexpr int THREADS = SIDE * SIDE;

template <typename T, int PATCH>
struct Tiling {
    static constexpr int VECTOR = Vector<T>::LENGTH;
    static constexpr int TILE = SIDE * PATCH;
    static constexpr int DEPTH = VECTOR * THREADS / TILE;
    // Elements from one line of a tile to the next. Four more than it has: a column of 32 bytes, written by
    // the threads that have read them side by side along k, then goes to different banks.
    static constexpr int PITCH = TILE + 4;

    // A tile of a as (k, row) or of b as (k, column): in both, what a thread needs for one k is in one line.
    using Tile = T[DEPTH][PITCH];
};

// Where this thread stands in the 16 x 16. A warp covers 4 x 8 of them, and not 2 x 16: it then reads 4 + 8
// different vectors of the tiles for its 32 patches, and not 2 + 16.
struct Place {
    int y, x;

    __device__ Place() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        y = warp / 2 * 4 + lane / 8;
        x = warp % 2 * 8 + lane % 8;
    }
};

// The row in the tile of a patch's row i, for a thread in row y of the 16 x 16; and the same for columns. A
// thread's rows are PATCH / VECTOR vectors, 16 vectors apart: neighbouring threads read neighbouring vectors,
// which come from different banks.
template <typename T>
__device__ __forceinline__ int in_tile(int i, int y) {
    constexpr int VECTOR = Vector<T>::LENGTH;
    return (i / VECTOR * SIDE + y) * VECTOR + i % VECTOR;
}

// What a thread needs of one line of a tile, in registers.
template <typename T, int PATCH>
__device__ __forceinline__ void read_line(T (&values)[PATCH], const T* line, int y) {
#pragma unroll
    for (int i = 0; i < PATCH; i += Vector<T>::LENGTH) {
        const Vector<T> vector = load_vector(line + in_tile<T>(i, y));
#pragma unroll
        for (int j = 0; j < Vector<T>::LENGTH; j++) values[i + j] = vector.lane[j];
    }
}

// Adds the product of a tile of a and a tile of b to the thread's patch. The loop is unrolled to 64
// multiply-adds, not further: the compiler would load for several k ahead, and run out of registers.
template <typename T, int PATCH>
__device__ __forceinline__ void multiply_add(
    T (&sums)[PATCH][PATCH], const typename Tiling<T, PATCH>::Tile& a_tile,
    const typename Tiling<T, PATCH>::Tile& b_tile, Place place) {
    constexpr int UNROLLED = 64 / (PATCH * PATCH);
#pragma unroll UNROLLED
    for (int k = 0; k < Tiling<T, PATCH>::DEPTH; k++) {
        T a[PATCH], b[PATCH];
        read_line(a, a_tile[k], place.y);
        read_line(b, b_tile[k], place.x);
#pragma unroll
        for (int i = 0; i < PATCH; i++)
#pragma unroll
            for (int j = 0; j < PATCH; j++) sums[i][j] += a[i] * b[j];
    }
}

// One thread's part in loading the tiles of a matrix, one after the other along K: VECTOR elements of each,
// and zeros for what lies outside of the matrix. Threads that are neighbours load neighbours: along the rows
// a line of the tile, along k 32 bytes, the least that the memory delivers, in each of several rows.
template <typename T, int PATCH>
struct ElementLoader {
    static constexpr int TILE = Tiling<T, PATCH>::TILE, DEPTH = Tiling<T, PATCH>::DEPTH;
    static constexpr int SECTOR = 32 / sizeof(T);

    const T* next;      // the thread's first element in the coming tile
    int k, row;         // where that stands in the tile
    int next_k, next_row;  // from there to the second element, and so on
    long long distance, step;  // the same in memory; and to the tile after it
    int rows;           // that the matrix has from the tile's first on, of those in the tile

    __device__ __forceinline__ ElementLoader(const T* corner, long long row_stride, long long k_stride,
                                             int rows_inside, bool along_k) {
        const int thread = threadIdx.x;
        if (along_k) {
            next_k = 0, next_row = THREADS / DEPTH;
            k = thread / (SECTOR * next_row) * SECTOR + thread % SECTOR;
            row = thread / SECTOR % next_row;
        } else {
            next_k = THREADS / TILE, next_row = 0;
            k = thread / TILE;
            row = thread % TILE;
        }
        rows = rows_inside;
        next = corner + row * row_stride + k * k_stride;
        distance = next_row * row_stride + next_k * k_stride;
        step = DEPTH * k_stride;
    }

    // Loads the thread's elements of the coming tile, from which on `depth` elements are left along k.
    __device__ __forceinline__ void load(typename Tiling<T, PATCH>::Tile& tile, long long depth) {
        const T* from = next;
#pragma unroll
        for (int i = 0; i < Vector<T>::LENGTH; i++) {
            const int at_k = k + i * next_k, at_row = row + i * next_row;
            tile[at_k][at_row] = at_row < rows && at_k < depth ? *from : T(0);
            from += distance;
        }
        next += step;
    }
};

// Register tiles: as tiled, but a thread makes PATCH x PATCH elements of out. All of its sums, and what it
// multiplies for one k, are in registers; the inner loop is PATCH^2 multiply-adds for 2 PATCH loads from
// shared memory, four (or two) of them in one instruction. A matrix is read along whichever of its axes is
// contiguous, so that a transposed one costs no more.
//
// Shared memory: 8.25 KB to 8.5 KB. Grid: as for matmul_naive, in tiles of 16 PATCH x 16 PATCH.
template <typename T, int PATCH>
__global__ void __launch_bounds__(THREADS, 2)
matmul_register_tile(T* out, const T* a, const T* b, MatmulShape shape, Batch batch, Layout layout) {
    constexpr int TILE = Tiling<T, PATCH>::TILE, DEPTH = Tiling<T, PATCH>::DEPTH;
    __shared__ __align__(16) T a_tile[DEPTH][Tiling<T, PATCH>::PITCH];
    __shared__ __align__(16) T b_tile[DEPTH][Tiling<T, PATCH>::PITCH];
    const Place place;
    const long long tiles_per_row = (shape.N + TILE - 1) / TILE;
    const long long row = blockIdx.x / tiles_per_row * TILE, column = blockIdx.x % tiles_per_row * TILE;
    const int rows = at_most(shape.M - row, TILE), columns = at_most(shape.N - column, TILE);
    const long long K = select_part(a, b, shape);
    a += row * shape.a_row_stride;
    b += column * shape.b_column_stride;
    out += row * shape.N + column;

    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T *a_corner = a, *b_corner = b;
        select_batch(a_corner, b_corner, batch, number);
        ElementLoader<T, PATCH> a_loader(a_corner, shape.a_row_stride, shape.a_column_stride,
                                         rows, layout.a_along_k);
        ElementLoader<T, PATCH> b_loader(b_corner, shape.b_column_stride, shape.b_row_stride,
                                         columns, layout.b_along_k);

        T sums[PATCH][PATCH] = {};
        for (long long depth = K; depth > 0; depth -= DEPTH) {
            a_loader.load(a_tile, depth);
            b_loader.load(b_tile, depth);
            __syncthreads();  // the tiles are complete before anyone reads them
            multiply_add<T, PATCH>(sums, a_tile, b_tile, place);
            __syncthreads();  // everyone is done with the tiles before they are overwritten
        }

        T* out_corner = out + number_of_part(shape, number) * shape.M * shape.N;
#pragma unroll
        for (int i = 0; i < PATCH; i++)
#pragma unroll
            for (int j = 0; j < PATCH; j++) {
                const int y = in_tile<T>(i, place.y), x = in_tile<T>(j, place.x);
                if (y < rows && x < columns) out_corner[y * shape.N + x] = sums[i][j];
            }
    }
}

// One thread's part in loading the tiles of a matrix, one after the other along K: a vector of each.
template <typename T, int PATCH>
struct VectorLoader {
    static constexpr int TILE = Tiling<T, PATCH>::TILE, DEPTH = Tiling<T, PATCH>::DEPTH;
    static constexpr int VECTOR = Vector<T>::LENGTH;

    const T* next;   // the vector of the coming tile
    long long step;  // from there to that of the tile after it
    int k, row;      // where the vector stands in a tile
    bool inside;     // whether the matrix has this row
    bool along_k;    // whether the vector lies along k, not along the rows
    Vector<T> vector;

    __device__ __forceinline__ VectorLoader(const T* corner, long long row_stride, long long k_stride,
                                            int rows, bool is_along_k) {
        const int thread = threadIdx.x;
        along_k = is_along_k;
        if (along_k) {  // two threads read 32 bytes of a row
            k = (thread / (2 * TILE) * 2 + thread % 2) * VECTOR;
            row = thread / 2 % TILE;
        } else {
            k = thread / (TILE / VECTOR);
            row = thread % (TILE / VECTOR) * VECTOR;
        }
        inside = row < rows;
        next = corner + row * row_stride + k * k_stride;
        step = DEPTH * k_stride;
    }

    // Starts to load the thread's vector of the coming tile, from which on `depth` elements are left along k.
    // Vectors lie inside of the matrix or outside as a whole, for its size along the contiguous axis is a
    // multiple of theirs.
    __device__ __forceinline__ void fetch(long long depth) {
        vector = inside && k < depth ? load_vector(next) : Vector<T>{};
        next += step;
    }

    // Puts what was fetched into the tile.
    __device__ __forceinline__ void store(typename Tiling<T, PATCH>::Tile& tile) const {
        if (along_k) {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) tile[k + i][row] = vector.lane[i];
        } else {
            store_vector(&tile[k][row], vector);
        }
    }
};

// Vectors and two tiles: every thread loads one vector of a and one of b for a step, into registers, before
// the tiles at hand are multiplied, and puts them into a second pair of tiles after that. The memory's
// latency (some 500 cycles) passes during the 512 multiply-adds of the step, and one barrier is left where
// there were two. out, too, is written in vectors.
//
// For matrices whose rows or columns are contiguous and start at multiples of 16 bytes, with a size along
// them (and an N) that is a multiple of a vector's; the launch code sees to that.
//
// Shared memory: 16.5 KB to 17 KB. Grid: as for matmul_register_tile.
template <typename T, int PATCH>
__global__ void __launch_bounds__(THREADS, 2)
matmul_vectorized(T* out, const T* a, const T* b, MatmulShape shape, Batch batch, Layout layout) {
    constexpr int TILE = Tiling<T, PATCH>::TILE, DEPTH = Tiling<T, PATCH>::DEPTH, VECTOR = Vector<T>::LENGTH;
    __shared__ __align__(16) T a_tile[2][DEPTH][Tiling<T, PATCH>::PITCH];
    __shared__ __align__(16) T b_tile[2][DEPTH][Tiling<T, PATCH>::PITCH];
    const Place place;
    const long long tiles_per_row = (shape.N + TILE - 1) / TILE;
    const long long row = blockIdx.x / tiles_per_row * TILE, column = blockIdx.x % tiles_per_row * TILE;
    const int rows = at_most(shape.M - row, TILE), columns = at_most(shape.N - column, TILE);

    for (long long number = blockIdx.z; number < shape.batches; number += gridDim.z) {
        const T *a_corner = a, *b_corner = b;
        select_batch(a_corner, b_corner, batch, number);
        const long long K = select_part(a_corner, b_corner, shape);
        a_corner += row * shape.a_row_stride;
        b_corner += column * shape.b_column_stride;
        VectorLoader<T, PATCH> a_loader(a_corner, shape.a_row_stride, shape.a_column_stride, rows,
                                        layout.a_along_k);
        VectorLoader<T, PATCH> b_loader(b_corner, shape.b_column_stride, shape.b_row_stride,
                                        columns, layout.b_along_k);
        a_loader.fetch(K);
        b_loader.fetch(K);
        a_loader.store(a_tile[0]);
        b_loader.store(b_tile[0]);
        __syncthreads();  // the first tiles are complete

        T sums[PATCH][PATCH] = {};
        int now = 0;
        for (long long depth = K; depth > 0; depth -= DEPTH) {
            const bool more = depth > DEPTH;
            if (more) {
                a_loader.fetch(depth - DEPTH);
                b_loader.fetch(depth - DEPTH);
            }
            multiply_add<T, PATCH>(sums, a_tile[now], b_tile[now], place);
            now = 1 - now;
            if (more) {
                a_loader.store(a_tile[now]);
                b_loader.store(b_tile[now]);
            }
            __syncthreads();  // the next tiles are complete, and everyone is done with these
        }

        T* out_corner = out + (number_of_part(shape, number) * shape.M + row) * shape.N + column;
#pragma unroll
        for (int i = 0; i < PATCH; i++)
#pragma unroll
            for (int j = 0; j < PATCH; j += VECTOR) {
                const int y = in_tile<T>(i, place.y), x = in_tile<T>(j, place.x);
                if (y >= rows || x >= columns) continue;
                Vector<T> vector;
#pragma unroll
                for (int n = 0; n < VECTOR; n++) vector.lane[n] = sums[i][j + n];
                store_results(out_corner + y * shape.N + x, vector);
            }
    }
}
