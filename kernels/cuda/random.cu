// Random numbers, and the dropout of elements. All arrays are flat and C-contiguous, of n elements.
//
//   uniform   out[i] in [0, 1): multiples of 2^-24 in float32, of 2^-53 in float64
//   normal    out[i] of mean 0 and variance 1
//   dropout   out[i] = x[i] scale, or 0 where the i-th random word is below the threshold
//
// The i-th number depends on seed, offset and i alone (philox.cuh), so dropout keeps no mask: its gradient is
// dropout itself, on the gradient, with the same seed and offset. In a recorded step these two stand in
// memory, where `live` points to: each replay has others.
//
//   ..._naive    a thread for each element: it computes a block of random words, and uses one or two of them
//   ..._block    + four elements for each thread: every word is used, and they are moved 16 bytes at a time
//
// Arithmetic intensity, in float32: a block's 80 integer operations for 4 elements are 20 for an element,
// which is 4 bytes to write (dropout: 4 more to read). An H200 does 64 integer operations a cycle on each of
// its 132 multiprocessors, about 3 for each byte that its memory moves. So dropout can just about hide its
// generator behind the memory, and the numbers alone are bound by it; naive does four times as many
// operations.

#include "philox.cuh"
#include "vector.cuh"

template <typename T>
using Four = Vector<T, 4>;

// Element k of four, without an address for `four`: it stays in registers.
template <typename T>
__device__ __forceinline__ T select(const T (&four)[4], int k) {
    return k < 2 ? (k == 0 ? four[0] : four[1]) : (k == 2 ? four[2] : four[3]);
}

template <typename T, int COUNT>
__device__ __forceinline__ void store_elements(T* out, long long first, long long n,
                                               const Vector<T, COUNT>& elements) {
    if (first + COUNT <= n && aligned<Vector<T>::LENGTH>(out)) {
        store_vector(out + first, elements);
    } else {
        for (int k = 0; k < COUNT; k++)
            if (first + k < n) out[first + k] = elements.lane[k];
    }
}

// ---- numbers ----

enum Distribution { UNIFORM, NORMAL };

// The transform of Box and Muller (1958): a point at the angle 2 pi v, at a distance whose square has an
// exponential distribution, has two independent normal coordinates. u in (0, 1], v in [0, 1).
template <typename T>
__device__ __forceinline__ void box_muller(T& x, T& y, T u, T v) {
    const T radius = sqrt(T(-2) * log(u));
    T sine, cosine;
    if constexpr (sizeof(T) == 4)
        sincospif(2 * v, &sine, &cosine);
    else
        sincospi(2 * v, &sine, &cosine);
    x = radius * cosine;
    y = radius * sine;
}

// Elements 4 i .. 4 i + 3 of a stream. In float32 they are one block of words ...
template <Distribution D>
__device__ __forceinline__ void draw(Four<float>& four, long long i, unsigned long long seed,
                                     unsigned long long offset) {
    const Philox random(i, seed, offset);
    if constexpr (D == UNIFORM) {
        for (int k = 0; k < 4; k++) four.lane[k] = float(random.words[k] >> 8) * 0x1p-24f;
    } else {
        for (int k = 0; k < 4; k += 2)
            box_muller(four.lane[k], four.lane[k + 1], float(random.words[k]) * 0x1p-32f + 0x1p-33f,
                       float(random.words[k + 1]) * 0x1p-32f);
    }
}

// ... in float64 two, for a number takes 53 bits.
template <Distribution D>
__device__ __forceinline__ void draw(Four<double>& four, long long i, unsigned long long seed,
                                     unsigned long long offset) {
    for (int k = 0; k < 4; k += 2) {
        const Philox random(2 * i + k / 2, seed, offset);
        const double first = double(random.pair(0) >> 11), second = double(random.pair(1) >> 11);
        if constexpr (D == UNIFORM) {
            four.lane[k] = first * 0x1p-53;
            four.lane[k + 1] = second * 0x1p-53;
        } else {
            box_muller(four.lane[k], four.lane[k + 1], (first + 1) * 0x1p-53, second * 0x1p-53);
        }
    }
}

// Grid: x = a thread for each element.
template <typename T, Distribution D>
__global__ void fill_naive(T* out, long long n, unsigned long long seed, unsigned long long offset,
                           const unsigned long long* live) {
    const long long i = global_thread_index();
    if (i >= n) return;
    if (live) seed = live[0], offset = live[1];
    Four<T> four;
    draw<D>(four, i / 4, seed, offset);
    out[i] = select(four.lane, int(i % 4));
}

// Grid: x = a thread for each four elements.
template <typename T, Distribution D>
__global__ void fill_block(T* out, long long n, unsigned long long seed, unsigned long long offset,
                           const unsigned long long* live) {
    const long long i = global_thread_index();
    if (4 * i >= n) return;
    if (live) seed = live[0], offset = live[1];
    Four<T> four;
    draw<D>(four, i, seed, offset);
    store_elements(out, 4 * i, n, four);
}

// ---- dropout ----

// What is dropped is multiplied by 0: a NaN or an infinity stays visible, as NaN.
template <typename T>
__device__ __forceinline__ T dropped(T x, unsigned word, unsigned threshold, T scale) {
    return x * (word < threshold ? T(0) : scale);
}

// Grid: x = a thread for each element.
template <typename T>
__global__ void dropout_naive(T* out, const T* x, long long n, unsigned threshold, T scale,
                              unsigned long long seed, unsigned long long offset,
                              const unsigned long long* live) {
    const long long i = global_thread_index();
    if (i >= n) return;
    if (live) seed = live[0], offset = live[1];
    const Philox random(i / 4, seed, offset);
    out[i] = dropped(x[i], select(random.words, int(i % 4)), threshold, scale);
}

// Elements of 16 bits are multiplied as float32. A thread has a vector of 16 bytes, in float32 a block of words for it,
// in 16 bits two: what it takes to find its place, and the keys of the rounds, serve both.
//
// Grid: x = a thread for each vector, or four elements of float64.
template <typename T>
__global__ void dropout_block(T* out, const T* x, long long n, unsigned threshold, double scale,
                              unsigned long long seed, unsigned long long offset,
                              const unsigned long long* live) {
    constexpr int BLOCKS = sizeof(T) == 2 ? 2 : 1, COUNT = 4 * BLOCKS;
    const long long i = global_thread_index() * BLOCKS, first = 4 * i;
    if (first >= n) return;
    if (live) seed = live[0], offset = live[1];
    const bool whole = first + COUNT <= n;
    Vector<T, COUNT> elements;
    if (whole && aligned<Vector<T>::LENGTH>(x)) {
        elements = load_vector<COUNT>(x + first);
    } else {
        for (int k = 0; k < COUNT; k++) elements.lane[k] = first + k < n ? x[first + k] : T(0);
    }
    using C = Computed<T>;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        const Philox random(i + block, seed, offset);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            T& element = elements.lane[4 * block + k];
            element = T(dropped(C(element), random.words[k], threshold, C(scale)));
        }
    }
    store_elements(out, first, n, elements);
}
