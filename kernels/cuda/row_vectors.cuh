// A row of a matrix read in vectors of 16 bytes by the threads that share it, several vectors at a time.
#pragma once

#include "rows.cuh"
#include "vector.cuh"

// The vectors of a row that a thread asks for before it uses the first. With some thousand threads on a
// multiprocessor that is 64 KB on their way at a time, where single elements are 4 KB: the rate of memory is what is
// on its way, divided by its latency.
constexpr int UNROLL = 4;

// The vectors of a row that a thread can hold in registers: 32 float32 (or of 16 bits, as such) or 4 float64. With
// 1024 threads, which leaves each of them 64 registers, a block holds a row of 32768 float32; with 512 one of 2048
// float64.
template <typename T>
constexpr int HELD = sizeof(T) == 8 ? 2 : 32 / Vector<T>::LENGTH;
template <typename T>
constexpr int MOST_THREADS = sizeof(T) == 8 ? 512 : 1024;

// A short row has as many lanes of a warp, a power of two, as hold it in two vectors each, or a warp that holds it in
// four. With fewer, little would be on its way at a time; with more, the empty ones would take as long as the others.
constexpr int SHORT_THREADS = 256;  // of a block of short rows

// A thread's part of a row of `length` elements that a block's threads along x share: their vectors lie side by
// side, COUNT times. Past the row's end stands `otherwise`. Who gets which element does not depend on whether
// vectors may start at the row, so a result has the same bits either way; unless they all may, it takes single
// loads. Elements of 16 bits are kept as float32.
template <typename T, int COUNT>
struct RowPart {
    using C = Computed<T>;
    static constexpr int N = Vector<T>::LENGTH;
    Vector<C, N> vector[COUNT];

    static __device__ __forceinline__ bool whole(const T* row, int length) {
        return length % N == 0 && aligned<N>(row);
    }

    // Where vector k starts.
    static __device__ __forceinline__ int start(int k) { return (threadIdx.x + k * blockDim.x) * N; }

    // The loads do not wait for each other: COUNT * 16 bytes of every thread are on their way at a time. All are loaded
    // before the first is converted from 16 bits, which waits for it. Past the row's end its last vector is loaded
    // again: around a load that may be left out nvcc puts a branch, behind the loads before it.
    __device__ __forceinline__ void load(const T* row, int length, C otherwise) {
        if (length > 0 && whole(row, length)) {
            Vector<T, N> stored[COUNT];
#pragma unroll
            for (int k = 0; k < COUNT; k++) stored[k] = load_vector(row + min(start(k), length - N));
#pragma unroll
            for (int k = 0; k < COUNT; k++)
#pragma unroll
                for (int n = 0; n < N; n++)
                    vector[k].lane[n] = start(k) < length ? C(stored[k].lane[n]) : otherwise;
            return;
        }
        int left = length - start(0);
        row += start(0);
#pragma unroll
        for (int k = 0; k < COUNT; k++, row += blockDim.x * N, left -= blockDim.x * N)
#pragma unroll
            for (int n = 0; n < N; n++) vector[k].lane[n] = n < left ? C(row[n]) : otherwise;
    }

    __device__ __forceinline__ void store(T* row, int length) const {
        if (whole(row, length)) {
#pragma unroll
            for (int k = 0; k < COUNT; k++)
                if (start(k) < length) store_vector(row + start(k), converted<T>(vector[k]));
            return;
        }
        int left = length - start(0);
        row += start(0);
#pragma unroll
        for (int k = 0; k < COUNT; k++, row += blockDim.x * N, left -= blockDim.x * N)
#pragma unroll
            for (int n = 0; n < N; n++)
                if (n < left) row[n] = T(vector[k].lane[n]);
    }

    // Calls f(element, its number in the row) for each element, in order, also for those past the end.
    template <typename Function>
    __device__ __forceinline__ void each(Function f) {
#pragma unroll
        for (int k = 0; k < COUNT; k++)
#pragma unroll
            for (int n = 0; n < N; n++) f(vector[k].lane[n], start(k) + n);
    }

    // Takes `amount` from the element of this number, where the thread has it: a comparison for each vector.
    __device__ __forceinline__ void subtract(int number, C amount) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            const int place = number - start(k);
            if (place < 0 || place >= N) continue;
#pragma unroll
            for (int n = 0; n < N; n++)
                if (n == place) vector[k].lane[n] -= amount;
        }
    }
};

// A thread's walk along a row of any length, UNROLL vectors at a time. Calls f(part, where it begins, how many
// elements of the row are in the block's parts).
template <typename T, typename Function>
__device__ __forceinline__ void walk(const T* row, long long length, Computed<T> otherwise, Function f) {
    const long long step = (long long)blockDim.x * Vector<T>::LENGTH * UNROLL;
    for (long long begin = 0; begin < length; begin += step) {
        RowPart<T, UNROLL> part;
        const int here = int(length - begin < step ? length - begin : step);
        part.load(row + begin, here, otherwise);
        f(part, begin, here);
    }
}
