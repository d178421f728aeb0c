// Where attention's tiles come from, but for those that the copy engine brings.
#pragma once

#include "async_copy.cuh"
#include "attention.cuh"

// How many copies a thread starts without a branch. Below compute capability 8.0 each waits in registers of its own.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int COPIES_AT_ONCE = 2;
#else
constexpr int COPIES_AT_ONCE = 16;
#endif

// A matrix (rows, features), whose rows are multiples of 16 bytes apart, and are copied to one tile after the
// other. A tile has rows of D elements and one chunk of 16 bytes more: an odd number of chunks, so that 8 lanes
// that read a chunk each of 8 rows reach all banks. A thread copies the same chunk of every so many rows: what
// it needs to know of that is found out once, and not with each tile.
template <typename T, int D, int THREADS>
class TileSource {
  public:
    __device__ __forceinline__ TileSource(const T* x, long long stride, int features, long long first)
        : from(x + (first + row()) * stride + column()), stride(stride) {
        const int elements = features - column();
        bytes = elements > 0 ? min(elements, PER_CHUNK) * int(sizeof(T)) : 0;
    }

    // Starts the copies of the next rows to a tile, of which `left` are there, or all, if it is WHOLE; zeros
    // behind them and the features.
    template <int ROWS, bool WHOLE = false>
    __device__ __forceinline__ void start(AsyncCopies& copies, void* tile, long long left) {
        const int rows = at_most(left, ROWS) - row();
        uint4* const to = static_cast<uint4*>(tile) + row() * (CHUNKS + 1) + threadIdx.x % CHUNKS;
#pragma unroll COPIES_AT_ONCE
        for (int i = 0; i < ROWS; i += STEP, from += STEP * stride)  // behind the last row nothing is read
            copies.copy<16>(to + i * (CHUNKS + 1), from, WHOLE || i < rows ? bytes : 0);
    }

  private:
    static constexpr int PER_CHUNK = 16 / sizeof(T), CHUNKS = D / PER_CHUNK, STEP = THREADS / CHUNKS;
    const T* from;
    long long stride;
    int bytes;  // of the thread's chunk in a row

    static __device__ __forceinline__ int row() { return threadIdx.x / CHUNKS; }
    static __device__ __forceinline__ int column() { return threadIdx.x % CHUNKS * PER_CHUNK; }
};
