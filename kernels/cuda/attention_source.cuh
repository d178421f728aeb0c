// Where attention's tiles come from, but for those that the copy engine brings.
#pragma once

#include "async_copy.cuh"
#include "attention.cuh"

// The rows of a matrix (rows, features) from `first` on, which are copied to one tile after the other. A tile has rows of
// D elements and one chunk of 16 bytes more: an odd number of chunks, so that 8 lanes that read a chunk each of 8 rows
// reach all banks. A thread copies the same chunk of every so many rows: what it needs to know of that is found out once,
// and not with each tile.
template <typename T, int D, int THREADS>
class TileSource {
  public:
    __device__ __forceinline__ TileSource(const T* x, long long stride, long long rows, int features, long long first)
        : from(x + (first + row()) * stride + column()), stride(stride), left(rows - first - row()) {
        const int elements = features - column();
        bytes = elements > 0 ? min(elements, PER_CHUNK) * int(sizeof(T)) : 0;
        by_chunks = sizeof(T) == 2 || ((size_t(x) % 16 | stride % PER_CHUNK | features % PER_CHUNK) == 0);
    }

    // Starts the copies of the next rows to a tile; zeros behind the last one, and behind the features.
    template <int ROWS>
    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile) {
        const int rows = at_most(left, ROWS);
        uint4* const to = tile + row() * (CHUNKS + 1) + threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP, from += STEP * stride)  // behind the last row nothing is read
            copy(copies, to + i * (CHUNKS + 1), i < rows ? bytes : 0);
        left -= ROWS;
    }

  private:
    static constexpr int PER_CHUNK = 16 / sizeof(T), CHUNKS = D / PER_CHUNK, STEP = THREADS / CHUNKS;
    const T* from;
    long long stride, left;
    int bytes;  // of the thread's chunk in a row
    bool by_chunks;  // which those of 16 bits always are

    static __device__ __forceinline__ int row() { return threadIdx.x / CHUNKS; }
    static __device__ __forceinline__ int column() { return threadIdx.x % CHUNKS * PER_CHUNK; }

    __device__ __forceinline__ void copy(AsyncCopies& copies, uint4* to, int valid) const {
        if (by_chunks) {
            copies.copy<16>(to, from, valid);
        } else if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; i++) copies.copy<4>(&(&to->x)[i], from + i, 4 * i < valid ? 4 : 0);
        }
    }
};
