// What the kernels of batch norm share: means and variances that add up, and the gradient of an element.
#pragma once

#include "planes.cuh"
#include "rows.cuh"

// The number, the mean and the sum of the squared deviations from the mean, of the elements so far.
template <typename T>
struct Moments {
    T count, mean, squares;

    __device__ __forceinline__ void add(Moments other) {
        if (other.count != 0) add(other, share_of(other.count));
    }

    // Chan's formula for the union of two sets (https://doi.org/10.1080/00031305.1983.10483115).
    __device__ __forceinline__ void add(Moments other, T share) {
        const T distance = other.mean - mean;
        mean += distance * share;
        squares += other.squares + distance * distance * (count * share);
        count += other.count;
    }

    // What `added` elements would be of all: a division, which many sets of one size can share.
    __device__ __forceinline__ T share_of(T added) const { return added / (count + added); }

    // Adds N elements: their own mean and deviations are found first, with one division for all of them.
    template <int N>
    __device__ __forceinline__ void add_elements(const T (&x)[N]) {
        add_elements(x, share_of(N));
    }

    template <int N>
    __device__ __forceinline__ void add_elements(const T (&x)[N], T share) {
        T sum = 0, deviations = 0;
#pragma unroll
        for (int i = 0; i < N; i++) sum += x[i];
        sum /= N;
#pragma unroll
        for (int i = 0; i < N; i++) deviations += (x[i] - sum) * (x[i] - sum);
        add(Moments{T(N), sum, deviations}, share);
    }

    __device__ __forceinline__ T rstd(T eps) const { return 1 / sqrt(squares / count + eps); }

    // Of all lanes of the warp, in lane 0: the upper half is added to the lower, five times.
    __device__ __forceinline__ void add_across_warp() {
        for (int distance = WARP / 2; distance > 0; distance /= 2) {
            Moments other;
            other.count = __shfl_down_sync(ALL_LANES, count, distance);
            other.mean = __shfl_down_sync(ALL_LANES, mean, distance);
            other.squares = __shfl_down_sync(ALL_LANES, squares, distance);
            add(other);
        }
    }

    // Of all threads of a block of THREADS, in thread 0; once in a kernel.
    __device__ __forceinline__ void add_across_block() {
        __shared__ T of_warp[3][THREADS / WARP];
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        add_across_warp();
        if (lane == 0) {
            of_warp[0][warp] = count;
            of_warp[1][warp] = mean;
            of_warp[2][warp] = squares;
        }
        __syncthreads();  // all warps have left theirs
        if (warp > 0) return;
        *this = Moments();
        if (lane < THREADS / WARP) *this = {of_warp[0][lane], of_warp[1][lane], of_warp[2][lane]};
        add_across_warp();
    }
};

// Which statistics move: by `momentum` towards those of the batch; `unbiased` is count / (count - 1).
struct Following {
    double momentum, unbiased;
    bool moves, counts;
};

// The running statistics, and the number of batches that they come from. A launch of its own for these would take the
// host longer than all that is done here takes the card.
template <typename T>
struct Running {
    T *mean, *var;
    long long* batches;
    Following by;

    // Towards the mean and rstd of a batch in channel c, by one thread.
    __device__ __forceinline__ void move(long long c, T batch_mean, T rstd, T eps) const {
        if (!by.moves) return;
        const T momentum = T(by.momentum), unbiased = T(by.unbiased);
        const T variance = 1 / (rstd * rstd) - eps;  // all the digits that count beside eps
        mean[c] = mean[c] * (1 - momentum) + batch_mean * momentum;
        var[c] = var[c] * (1 - momentum) + (variance < 0 ? T(0) : variance) * unbiased * momentum;
        if (by.counts && c == 0) ++*batches;
    }
};

// dx of an element; slope = rstd dweight / count, mean_grad = dbias / count, scale = rstd weight.
template <typename T>
__device__ __forceinline__ T gradient(T grad, T x, T m, T slope, T mean_grad, T scale) {
    return (grad - mean_grad - (x - m) * slope) * scale;
}
