// What the kernels of attention on the tensor cores of compute capability 9.0 share: where tiles come from, and the two
// kinds of products that are made of them. Tiles have D columns, of which those outside come as zeros.
#pragma once

#include "attention_fragments.cuh"
#include "box_ring.cuh"

constexpr int BOX_COLUMNS = BOX_ROW_BYTES / 2;

// Boxes side by side.
template <int D>
constexpr int ROW_BOXES = D / BOX_COLUMNS;

// Where the matrix of a block is in q, k or v. Strides of 0 are of matrices that are all the same, of which the map has
// one.
struct Matrix {
    const TensorMap& map;
    int head, batch;

    __device__ __forceinline__ Matrix(const TensorMap& map, long long matrix, long long heads,
                                      const long long (&stride)[3])
        : map(map), head(stride[1] ? matrix % heads : 0), batch(stride[0] ? matrix / heads : 0) {}

    // The same of matrices that a map has one after the other, as heads of one batch.
    __device__ __forceinline__ Matrix(const TensorMap& map, long long matrix) : map(map), head(matrix), batch(0) {}

    // Starts the copies of a tile's boxes; the next rows' box and the next columns' box are so many boxes apart.
    template <int D, int ROWS>
    __device__ __forceinline__ void load(Box* boxes, int row, int next_row, int next_column, Barrier& full) const {
#pragma unroll
        for (int r = 0; r < ROWS / BOX_ROWS; r++)
#pragma unroll
            for (int c = 0; c < ROW_BOXES<D>; c++)
                load_box(boxes + r * next_row + c * next_column, map, c * BOX_COLUMNS, row + r * BOX_ROWS, head, batch,
                         full);
    }
};

// In descriptors: from one wgmma's k to the next, 32 bytes of each row, or 16 rows; and to the next box.
constexpr int STEPS = 4, NEXT_COLUMNS = BOX_ROW_BYTES / STEPS >> 4, NEXT_ROWS = BOX_BYTES / STEPS >> 4;
constexpr int NEXT_BOX = BOX_BYTES >> 4;

// Starts sums = a b^T, of 64 rows of a and 8 N rows of b. Boxes of b with the next columns follow those with all rows.
template <typename T, int D, int N>
__device__ __forceinline__ void start_rows_by_rows(float (&sums)[N][4], unsigned long long a, unsigned long long b) {
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const int box = i / STEPS * NEXT_BOX, column = i % STEPS * NEXT_COLUMNS;
        wgmma<T, false, false>(sums, a + box + column, b + box * (8 * N / BOX_ROWS) + column, i > 0);
    }
    wgmma_commit();
}

// Starts sums += p b, of 16 K rows of b. Boxes of b with the next rows follow those with all columns.
template <typename T, int D, int K>
__device__ __forceinline__ void start_times_rows(float (&sums)[D / 8][4], const unsigned (&p)[K][4],
                                                 unsigned long long b) {
#pragma unroll
    for (int i = 0; i < K; i++)
        wgmma<T, true>(sums, p[i], b + i / STEPS * ROW_BOXES<D> * NEXT_BOX + i % STEPS * NEXT_ROWS);
    wgmma_commit();
}

// Rounds a fragment's rows, as the left factor of start_times_rows.
template <typename T, int N>
__device__ __forceinline__ void pack_rows(unsigned (&p)[N / 2][4], const float (&scores)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) pack_left<T>(p[k], scores, k);
}
