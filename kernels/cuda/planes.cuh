// A block's walk over one channel of an array (samples, channels, area), in one part of the samples.
#pragma once

#include "vector.cuh"

constexpr int THREADS = 256;

// The part's vectors are numbered: those of its first sample, of the next one, and so on. A vector lies in
// one plane, the elements of a channel in a sample. A part has less than 2^31 elements: a 32-bit division is
// several times quicker. BACKWARD they are numbered from the part's end: what one kernel has read last, the next one
// then finds in the L2 cache.
template <int WIDTH, bool BACKWARD = false>
struct Planes {
    long long first_sample, start, stride;  // the part's first element, and from one plane to the next
    unsigned of_plane, all;                 // how many vectors a plane has, and the part

    __device__ __forceinline__ Planes(
        long long samples, long long channels, long long area, long long channel, long long part,
        long long parts
    ) {
        first_sample = samples * part / parts;
        start = (first_sample * channels + channel) * area;
        stride = channels * area;
        of_plane = unsigned(area / WIDTH);
        all = unsigned(samples * (part + 1) / parts - first_sample) * of_plane;
    }

    __device__ __forceinline__ long long sample(unsigned vector) const {
        return first_sample + vector / of_plane;
    }

    // Where a vector begins.
    __device__ __forceinline__ long long at(unsigned vector) const {
        if constexpr (BACKWARD) vector = all - 1 - vector;
        const unsigned plane = vector / of_plane;
        return start + plane * stride + (vector - plane * of_plane) * WIDTH;
    }

    // Calls function(vector, ...) for this thread's vectors, of which neighbours have neighbours: for two at
    // a time, so that the loads of both are on their way before the first is used, and for a last one.
    template <typename Function>
    __device__ __forceinline__ void for_each(Function function) const {
        unsigned vector = threadIdx.x;
        for (; vector + THREADS < all; vector += 2 * THREADS) function(vector, vector + THREADS);
        if (vector < all) function(vector);
    }
};
