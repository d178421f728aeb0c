// Transposed copies: out[c, r] = x[r, c], for each of a batch of matrices, in the type of out (rounded to
// nearest, ties to even).
//
// Shapes: x is (batches, rows, columns), out is (batches, columns, out_columns), as many as rows, or up to the next
// multiple of 64 more, which become zeros. In both the elements of a row are neighbours; from row to row, and from
// matrix to matrix, it is as many elements as `shape` says.
//
//   transpose            tiles of 64 x 64, or so many elements, by way of shared memory; in registers squares of 4 x 4
//   transpose_together   the same, of one or two batches of images and of a weight: what a convolution reads
//
// A copy element by element reads runs of neighbours but writes each of them to another row, a sector of 32
// bytes for 4. Here a block reads a tile row by row, and writes its columns as rows: both ways runs of 64
// neighbours. No arithmetic: the floor is a copy's, each byte read once and written once.
//
// An element at a time that floor is out of reach: in 16 bits a warp's load and store move 64 bytes each, by way of two
// more of shared memory, and all with their addresses. So a thread takes a square: SIDE neighbours of each of SIDE
// rows, which it turns in registers, where that is a choice of names (or, in 16 bits, a permutation of bytes), and of
// which it puts down the columns, as vectors too. Where the rows of x do not begin at multiples of a vector, they are
// read an element at a time, and a thread's columns are such that a warp still reads neighbours; the rows of out,
// which is a workspace of its caller nearly always, rarely do not.
//
// Matrices of up to 16 columns, as the taps of weights are, have tiles of 256 rows: of 64 columns most would be idle.
// And those of up to 8, 16 or 32 rows, as the channels of first layers are, have tiles of 512, 256 or 128 columns.
//
// Grid: x = all tiles of a matrix (x alone may exceed 65535); z = the batch. Of transpose_together x = all tiles.
//
// A thread asks for its whole square before it puts down the first column. With 4 blocks that is in 16 bits 32 KB on
// their way to a multiprocessor, in 32 bits 64 KB; an H200 needs some 22 KB there (gemv.cu), at all times.

#include "vector.cuh"

constexpr int THREADS = 256, SIDE = 4, TILE = SIDE * SIDE * THREADS;

template <typename T>
constexpr int RESIDENT_BLOCKS = sizeof(T) == 8 ? 3 : 4;

template <int BYTES>
struct Bits;
template <>
struct Bits<2> {
    using type = unsigned short;
};
template <>
struct Bits<4> {
    using type = unsigned;
};
template <>
struct Bits<8> {
    using type = unsigned long long;
};

// What is read and what is written: bits, unless they are converted.
template <typename Out, typename T>
struct Moved {
    using To = Out;
    using From = T;
};
template <typename T>
struct Moved<T, T> {
    using To = typename Bits<sizeof(T)>::type;
    using From = To;
};

// The problem, but for the pointers. Strides are counted in elements.
struct TransposeShape {
    long long rows, columns, batches, out_columns;
    long long x_row_stride, x_batch_stride;
    long long out_row_stride, out_batch_stride;
    bool stores_vectors;  // of SIDE elements: all rows of out are made of such
};

// A tile in shared memory: of each of its columns a line, made of vectors of SIDE rows.
template <typename T>
struct Tile {
    Vector<T, SIDE> vectors[TILE / SIDE];

    // Vectors are exchanged (xor), so that those that a warp puts into the same place of different lines fall into
    // different banks: of lines of 16 vectors or more, which are whole multiples of 32 banks, lines SIDE apart, or
    // neighbours; of shorter ones, which share such a multiple, lines SIDE apart.
    template <int LENGTH>
    __device__ __forceinline__ Vector<T, SIDE>& at(int column, int vector) {
        const int number = column * LENGTH + vector;
        return vectors[number ^ (LENGTH < 16 ? number / 16 % 16 : column / SIDE % 16 ^ column % SIDE * 4)];
    }
};

// How many tiles of so many COLUMNS a matrix has.
template <int COLUMNS>
__device__ __forceinline__ unsigned tiles_of(const TransposeShape& shape) {
    constexpr int ROWS = TILE / COLUMNS;
    return unsigned((shape.rows + ROWS - 1) / ROWS * ((shape.columns + COLUMNS - 1) / COLUMNS));
}

// Tile `number` of the matrices from `first` on by `step`.
template <int COLUMNS, bool READS_VECTORS, typename Out, typename T>
__device__ __forceinline__ void transpose_tile(Out* out_elements, const T* x_elements, const TransposeShape& shape,
                                               Tile<typename Moved<Out, T>::To>& tile, unsigned number,
                                               long long first, long long step) {
    using To = typename Moved<Out, T>::To;
    using From = typename Moved<Out, T>::From;
    constexpr int SQUARES = COLUMNS / SIDE, VECTORS = THREADS / SQUARES, ROWS = VECTORS * SIDE;
    To* const out = reinterpret_cast<To*>(out_elements);
    const From* const x = reinterpret_cast<const From*>(x_elements);
    const unsigned tiles_per_row = (unsigned long long)(shape.columns + COLUMNS - 1) / COLUMNS;
    const long long row = (long long)(number / tiles_per_row) * ROWS;
    const long long column = (long long)(number % tiles_per_row) * COLUMNS;
    const int rows = int(min(shape.rows - row, (long long)ROWS));
    const int columns = int(min(shape.columns - column, (long long)COLUMNS));
    // Of x, the thread's square: its first row, and its columns, from the first one on by APART.
    constexpr int APART = READS_VECTORS ? 1 : SQUARES;
    const int square_row = threadIdx.x / SQUARES * SIDE;
    const int square_column = threadIdx.x % SQUARES * (READS_VECTORS ? SIDE : 1);
    // Of out: its columns, and the first of its rows.
    const int vector = threadIdx.x % VECTORS, line = threadIdx.x / VECTORS;
    const int stored = int(min(shape.out_columns - row, (long long)ROWS)) - vector * SIDE;
    for (long long batch = first; batch < shape.batches; batch += step) {
        const From* from = x + batch * shape.x_batch_stride + column;
        from += (row + min(square_row, rows - 1)) * shape.x_row_stride;
        To* to = out + batch * shape.out_batch_stride + (column + line) * shape.out_row_stride + row + vector * SIDE;
        // Behind the last row, or vector, that one is read again: no load waits for what another has brought.
        Vector<From, SIDE> own[SIDE] = {};
#pragma unroll
        for (int i = 0; i < SIDE; i++) {
            if constexpr (READS_VECTORS) {
                own[i] = load_vector<SIDE>(from + min(square_column, columns - SIDE));
            } else {
#pragma unroll
                for (int j = 0; j < SIDE; j++)
                    if (square_column + j * APART < columns) own[i].lane[j] = from[square_column + j * APART];
            }
            if (square_row + i < rows - 1) from += shape.x_row_stride;
        }
#pragma unroll
        for (int j = 0; j < SIDE; j++) {
            Vector<To, SIDE> turned;
#pragma unroll
            for (int i = 0; i < SIDE; i++) turned.lane[i] = square_row + i < rows ? To(own[i].lane[j]) : To{};
            store_vector(&tile.template at<VECTORS>(square_column + j * APART, square_row / SIDE).lane[0], turned);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < SIDE; j++, to += SQUARES * shape.out_row_stride) {
            const int at = line + j * SQUARES;
            if (at >= columns) continue;
            const Vector<To, SIDE>& turned = tile.template at<VECTORS>(at, vector);
            if (shape.stores_vectors) {
                using Part = Vector<To, SIDE < Vector<To>::LENGTH ? SIDE : Vector<To>::LENGTH>;
                if (stored > 0)  // from memory to memory: by way of registers nvcc stores single elements
#pragma unroll
                    for (int i = 0; i < SIDE; i += Part::LENGTH)
                        *reinterpret_cast<Part*>(to + i) = *reinterpret_cast<const Part*>(&turned.lane[i]);
            } else {
#pragma unroll
                for (int i = 0; i < SIDE; i++)
                    if (i < stored) to[i] = turned.lane[i];
            }
        }
        __syncthreads();  // the next matrix of the batch takes this tile's place
    }
}

template <typename Out, typename T, int COLUMNS, bool READS_VECTORS>
__global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<T>)
transpose(Out* out, const T* x, TransposeShape shape) {
    __shared__ Tile<typename Moved<Out, T>::To> tile;
    transpose_tile<COLUMNS, READS_VECTORS>(out, x, shape, tile, blockIdx.x, blockIdx.z, gridDim.z);
}

// The first blocks transpose one batch of images, those from `second` on another, and those from `last` on a weight:
// each block a tile of a matrix.
template <typename Out, typename T, int COLUMNS, bool READS_VECTORS, int WEIGHT_COLUMNS>
__global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS<T>)
transpose_together(Out* out, const Out* x, TransposeShape shape, Out* second_out, const Out* second_x,
                   TransposeShape second_shape, Out* weight_out, const T* weight, TransposeShape weight_shape,
                   unsigned second, unsigned last) {
    using Bits = typename Moved<Out, Out>::To;
    __shared__ Tile<Bits> tile;
    unsigned block = blockIdx.x;
    if (block >= last) {
        auto& weight_tile = reinterpret_cast<Tile<typename Moved<Out, T>::To>&>(tile);
        const unsigned tiles = tiles_of<WEIGHT_COLUMNS>(weight_shape);
        block -= last;
        transpose_tile<WEIGHT_COLUMNS, false>(weight_out, weight, weight_shape, weight_tile, block % tiles,
                                              block / tiles, weight_shape.batches);
        return;
    }
    if (block >= second) out = second_out, x = second_x, shape = second_shape, block -= second;
    const unsigned tiles = tiles_of<COLUMNS>(shape);
    transpose_tile<COLUMNS, READS_VECTORS>(out, x, shape, tile, block % tiles, block / tiles, shape.batches);
}
