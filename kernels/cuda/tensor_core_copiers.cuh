// What brings the tiles of tensor_core_tiles.cuh: a thread's part of the copies, by cp.async, of a factor that
// lies in rows or in lines, in chunks of 16 bytes. A chunk is copied whole, or is zeros and not read: a number of bytes
// that is not known would cost each cp.async an addition, a mask and a predicate.
#pragma once

#include "tensor_core_tiles.cuh"

// For a tile that lies AlongK: a chunk of every AT_ONCE-th row. Behind the last row are zeros.
template <typename T, int ROWS, int THREADS = 128>
struct RowCopier {
    static constexpr int AT_ONCE = THREADS / CHUNKS, COUNT = ROWS / AT_ONCE;
    static_assert(AT_ONCE % 8 == 0, "the chunks of a thread's rows are exchanged alike");

    const char* next;    // the thread's next chunk in its first row
    long long to_next;   // of its rows, bytes
    int rows;            // from that one on

    // x is the first element of a tile whose first `inside` rows are inside.
    __device__ __forceinline__ RowCopier(const T* x, long long row_stride, int inside)
        : next(reinterpret_cast<const char*>(x + threadIdx.x / CHUNKS * row_stride) +
               threadIdx.x % CHUNKS * CHUNK_BYTES),
          to_next(AT_ONCE * row_stride * sizeof(T)),
          rows(inside - int(threadIdx.x / CHUNKS)) {}

    // Moves on along the rows, by `elements`.
    __device__ __forceinline__ void skip(long long elements) { next += (long long) elements * sizeof(T); }

    // Starts a part of the copies of the next tile, in which the thread's chunks are `inside`, or zeros. The tile after
    // it is `step` elements further on.
    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part, bool inside,
                                          long long step = STEP<T>) {
        uint4* const to = &tile[AlongK<T, ROWS>::place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS)];
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (part.has(i, COUNT))
                copies.copy<CHUNK_BYTES>(to + i * AT_ONCE * CHUNKS, next + i * to_next,
                                         inside && i * AT_ONCE < rows ? CHUNK_BYTES : 0);
        if (part.is_last()) skip(step);
    }
};

// For a tile that lies AcrossK: of every AT_ONCE-th line, from line `first` on, chunk `chunk`, or, where a line is none
// for a whole number of threads, every ACROSS-th from there on.
template <typename T, int SIDE, int THREADS = 128>
struct Lines {
    static constexpr int LINE = AcrossK<T, SIDE>::LINE, ACROSS = THREADS % LINE == 0 ? LINE : 8;
    static constexpr int PIECES = LINE / ACROSS, AT_ONCE = THREADS / ACROSS;
    static_assert(AT_ONCE % (sizeof(T) == 2 ? 8 : 4) == 0, "the chunks of a thread's lines are exchanged alike");
    static_assert(PIECES == 1 || sizeof(T) == 2, "and those of a line");
    const int chunk = threadIdx.x % ACROSS, first = threadIdx.x / ACROSS;
};

template <typename T, int SIDE, int THREADS = 128>
struct LineCopier : Lines<T, SIDE, THREADS> {
    using Base = Lines<T, SIDE, THREADS>;
    const T* from;
    long long pitch;  // from a line to the next
    int left;         // lines from the next one of this thread on; none, if its chunks are outside
    int pieces;       // how many of these are inside

    // x is this thread's first chunk in the first of `lines` lines.
    __device__ __forceinline__ LineCopier(const T* x, long long pitch, int lines, int pieces)
        : from(x + Base::first * pitch), pitch(pitch), left(pieces > 0 ? lines - Base::first : 0), pieces(pieces) {}

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part) {
        constexpr int COUNT = STEP<T> / Base::AT_ONCE, PIECES = Base::PIECES;
        uint4* const to = &tile[AcrossK<T, SIDE>::place_of(Base::first, Base::chunk)];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
#pragma unroll
            for (int j = 0; j < PIECES; j++) {
                if (!part.has(i * PIECES + j, COUNT * PIECES)) continue;
                const bool inside = left > i * Base::AT_ONCE && (j == 0 || j < pieces);
                copies.copy<CHUNK_BYTES>(to + i * Base::AT_ONCE * Base::LINE + j * Base::ACROSS,
                                         from + j * Base::ACROSS * PER_CHUNK<T>, inside ? CHUNK_BYTES : 0);
                if (j == PIECES - 1) from += Base::AT_ONCE * pitch;
            }
        }
        if (part.is_last()) left -= STEP<T>;
    }
};

// The same for lines of `columns` columns, in whole chunks, of which the tile begins at column `first`.
template <typename T, int SIDE, int THREADS = 128>
__device__ __forceinline__ LineCopier<T, SIDE, THREADS> copy_columns(const T* x, long long pitch, int lines,
                                                                     long long first, long long columns) {
    using Of = Lines<T, SIDE, THREADS>;
    constexpr int APART = Of::ACROSS * PER_CHUNK<T>;  // columns, from one of the thread's chunks to the next
    const long long column = first + Of().chunk * PER_CHUNK<T>;
    const int left = at_most(columns - column, APART * Of::PIECES);
    return {x + column, pitch, lines, (left + APART - 1) / APART};
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
        : copier(matrix + first * pitch, pitch, at_most(rows - first, SIDE)),
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
