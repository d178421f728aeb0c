// What brings the tiles of tensor_core_tiles.cuh: a thread's part of the copies, by cp.async, of a factor that
// lies in rows or in lines, in chunks of 16 bytes. A chunk is copied whole, or is zeros and not read: a number of bytes
// that is not known would cost each cp.async an addition, a mask and a predicate.
#pragma once

#include "tensor_core_tiles.cuh"

// For a tile that lies AlongK: a chunk of every AT_ONCE-th row. Behind the last row that one is copied again: no
// sums of such rows are stored.
template <typename T, int ROWS, int THREADS = 128>
struct RowCopier {
    static constexpr int AT_ONCE = THREADS / CHUNKS;
    static_assert(AT_ONCE % 8 == 0, "the chunks of a thread's rows are exchanged alike");

    const T* rows[ROWS / AT_ONCE];  // the thread's next chunk in each of its rows

    // x is the first element of a tile whose first `inside` rows are inside.
    __device__ __forceinline__ RowCopier(const T* x, long long row_stride, int inside) {
#pragma unroll
        for (int i = 0; i < ROWS / AT_ONCE; i++) {
            const int row = min(int(threadIdx.x) / CHUNKS + i * AT_ONCE, inside - 1);
            rows[i] = x + row * row_stride + threadIdx.x % CHUNKS * PER_CHUNK<T>;
        }
    }

    // Moves on along the rows, by `elements`.
    __device__ __forceinline__ void skip(long long elements) {
#pragma unroll
        for (int i = 0; i < ROWS / AT_ONCE; i++) rows[i] += elements;
    }

    // Starts a part of the copies of the next tile, in which the thread's chunks are `inside`, or zeros. The tile after
    // it is `next` elements further on.
    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part, bool inside,
                                          long long next = STEP<T>) {
        uint4* const to = &tile[AlongK<T, ROWS>::place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS)];
#pragma unroll
        for (int i = 0; i < ROWS / AT_ONCE; i++) {
            if (!part.has(i, ROWS / AT_ONCE)) continue;
            copies.copy<CHUNK_BYTES>(to + i * AT_ONCE * CHUNKS, rows[i], inside ? CHUNK_BYTES : 0);
            rows[i] += next;
        }
    }
};

// For a tile that lies AcrossK: chunk `chunk` of every AT_ONCE-th line, from line `first` on.
template <typename T, int SIDE, int THREADS = 128>
struct Lines {
    static constexpr int LINE = AcrossK<T, SIDE>::LINE, AT_ONCE = THREADS / LINE;
    static_assert(AT_ONCE % (sizeof(T) == 2 ? 8 : 4) == 0, "the chunks of a thread's lines are exchanged alike");
    const int chunk = threadIdx.x % LINE, first = threadIdx.x / LINE;
};

template <typename T, int SIDE, int THREADS = 128>
struct LineCopier : Lines<T, SIDE, THREADS> {
    using Base = Lines<T, SIDE, THREADS>;
    const T* from;
    long long pitch;  // from a line to the next
    int left;         // lines from the next one of this thread on; none, if its chunk is outside

    // x is this thread's chunk in the first of `lines` lines, if it is `inside`.
    __device__ __forceinline__ LineCopier(const T* x, long long pitch, int lines, bool inside)
        : from(x + Base::first * pitch), pitch(pitch), left(inside ? lines - Base::first : 0) {}

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part) {
        constexpr int COUNT = STEP<T> / Base::AT_ONCE;
        uint4* const to = &tile[AcrossK<T, SIDE>::place_of(Base::first, Base::chunk)];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (!part.has(i, COUNT)) continue;
            copies.copy<CHUNK_BYTES>(to + i * Base::AT_ONCE * Base::LINE, from,
                                     left > i * Base::AT_ONCE ? CHUNK_BYTES : 0);
            from += Base::AT_ONCE * pitch;
        }
        if (part.is_last()) left -= STEP<T>;
    }
};

// The same for lines of `columns` columns, in whole chunks, of which the tile begins at column `first`.
template <typename T, int SIDE, int THREADS = 128>
__device__ __forceinline__ LineCopier<T, SIDE, THREADS> copy_columns(const T* x, long long pitch, int lines,
                                                                     long long first, long long columns) {
    const long long column = first + Lines<T, SIDE, THREADS>().chunk * PER_CHUNK<T>;
    return {x + column, pitch, lines, column < columns};
}

// Brings a tile of a matrix's rows, from row `first` on, that have K along them, or where K is ACROSS lines, each
// with an element of every row. K, or the rows, are whole chunks: the rest of the last one is zeros.
template <typename T, int SIDE, bool ACROSS, int THREADS = 128>
struct MatrixCopier;

template <typename T, int SIDE, int THREADS>
struct MatrixCopier<T, SIDE, false, THREADS> {
    using Tile = AlongK<T, SIDE>;
    RowCopier<T, SIDE, THREADS> copier;
    int left;  // chunks from this thread's next one on

    __device__ __forceinline__ MatrixCopier(const T* matrix, long long pitch, long long first, long long rows,
                                            long long K)
        : copier(matrix + first * pitch, pitch, inside(rows - first, SIDE)),
          left(int((K + PER_CHUNK<T> - 1) / PER_CHUNK<T>) - int(threadIdx.x % CHUNKS)) {}

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part) {
        copier.start(copies, tile, part, left > 0);
        if (part.is_last()) left -= CHUNKS;
    }
};

template <typename T, int SIDE, int THREADS>
struct MatrixCopier<T, SIDE, true, THREADS> {
    using Tile = AcrossK<T, SIDE>;
    LineCopier<T, SIDE, THREADS> copier;

    __device__ __forceinline__ MatrixCopier(const T* matrix, long long pitch, long long first, long long rows,
                                            long long K)
        : copier(copy_columns<T, SIDE, THREADS>(matrix, pitch, int(K), first, rows)) {}

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part) {
        copier.start(copies, tile, part);
    }
};
