// What brings the tiles of tensor_core_tiles.cuh: a thread's part of the copies, by cp.async, of a factor that
// lies in rows or in lines. A block has 128 threads. Zeros stand for what is outside, which is not read.
#pragma once

#include "tensor_core_tiles.cuh"

constexpr int COPYING_THREADS = 128;

// For a tile that lies AlongK: a chunk of every AT_ONCE-th row.
template <typename T, int ROWS>
struct RowCopier {
    static constexpr int AT_ONCE = COPYING_THREADS / CHUNKS;
    static_assert(AT_ONCE % 8 == 0, "the chunks of a thread's rows are exchanged alike");

    const T* from;   // the thread's chunk in its first row
    long long step;  // from one of its rows to the next
    int rows;        // that remain from its first row on

    // x is the first element of a tile whose first `rows` rows are inside.
    __device__ __forceinline__ RowCopier(const T* x, long long row_stride, int rows)
        : from(x + threadIdx.x / CHUNKS * row_stride + threadIdx.x % CHUNKS * PER_CHUNK<T>),
          step(AT_ONCE * row_stride),
          rows(rows - int(threadIdx.x / CHUNKS)) {}

    // Starts the copies of the next tile, of which `valid` bytes of the thread's chunks are inside.
    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, int valid) {
        uint4* const to = &tile[AlongK<T, ROWS>::place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS)];
        const T* row = from;
#pragma unroll
        for (int i = 0; i < ROWS / AT_ONCE; i++, row += step)
            copies.copy<CHUNK_BYTES>(to + i * AT_ONCE * CHUNKS, row, i * AT_ONCE < rows ? valid : 0);
        from += STEP<T>;
    }
};

// For a tile that lies AcrossK: chunk `chunk` of every AT_ONCE-th line, from line `first` on.
template <typename T, int SIDE>
struct Lines {
    static constexpr int LINE = AcrossK<T, SIDE>::LINE, AT_ONCE = COPYING_THREADS / LINE;
    static_assert(AT_ONCE % (sizeof(T) == 2 ? 8 : 4) == 0, "the chunks of a thread's lines are exchanged alike");
    const int chunk = threadIdx.x % LINE, first = threadIdx.x / LINE;
};

template <typename T, int SIDE>
struct LineCopier : Lines<T, SIDE> {
    using Base = Lines<T, SIDE>;
    const T* from;
    long long pitch;  // from a line to the next
    int left;         // lines from the next one of this thread on
    int valid;        // bytes of its chunk

    // x is this thread's chunk in the first of `lines` lines.
    __device__ __forceinline__ LineCopier(const T* x, long long pitch, int lines, int valid)
        : from(x + Base::first * pitch), pitch(pitch), left(lines - Base::first), valid(valid) {}

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile) {
        uint4* to = &tile[AcrossK<T, SIDE>::place_of(Base::first, Base::chunk)];
#pragma unroll
        for (int i = 0; i < STEP<T>; i += Base::AT_ONCE) {
            copies.copy<CHUNK_BYTES>(to + i * Base::LINE, from, left > 0 ? valid : 0);
            from += Base::AT_ONCE * pitch;
            left -= Base::AT_ONCE;
        }
    }
};

// The same for lines of `columns` columns, of which the tile begins at column `first`.
template <typename T, int SIDE>
__device__ __forceinline__ LineCopier<T, SIDE> copy_columns(const T* x, long long pitch, int lines, int first,
                                                            int columns) {
    const int column = first + Lines<T, SIDE>().chunk * PER_CHUNK<T>;
    const int valid = max(inside((long long)(columns - column) * int(sizeof(T)), CHUNK_BYTES), 0);
    return {x + column, pitch, lines, valid};
}
