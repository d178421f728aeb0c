// A block's walk down neighbouring columns of an array (samples, columns), in one part of the samples.
#pragma once

#include "planes.cuh"

// A thread has WIDTH columns, a vector, of every blockDim.y-th sample; a load of a warp is of whole lines of memory,
// and a thread stays with its columns. BACKWARD it starts at the last sample, whose numbers are then negative: what one
// kernel has read last, the next one finds in the L2 cache.
//
// Grid: x = ceil(columns / (blockDim.x * WIDTH)) * parts, the parts of a strip one after the other; blockDim.x *
// blockDim.y = THREADS, and blockDim.x is at most 32.
template <int WIDTH, bool BACKWARD = false>
struct Columns {
    long long columns, column;   // how many there are, and the thread's first one
    long long part, first, end;  // the part, the thread's first sample in it, and its end
    int step, thread;

    __device__ __forceinline__ Columns(long long samples, long long columns, long long parts) : columns(columns) {
        part = blockIdx.x % parts;
        column = (blockIdx.x / parts * blockDim.x + threadIdx.x) * WIDTH;
        first = samples * part / parts;
        end = samples * (part + 1) / parts;
        if constexpr (BACKWARD) {
            const long long begin = first;
            first = 1 - end;
            end = 1 - begin;
        }
        first += threadIdx.y;
        step = blockDim.y;
        thread = threadIdx.y * blockDim.x + threadIdx.x;
    }

    // Where the thread's vector of sample n begins.
    __device__ __forceinline__ long long begin(long long n) const { return (BACKWARD ? -n : n) * columns + column; }

    // Calls function(lane, c) for each lane of the thread's vector, whose column is one of the `area` of c: with one
    // division for all of them, which in 64 bits takes as long as a hundred additions.
    template <typename Function>
    __device__ __forceinline__ void for_each_lane(long long area, Function function) const {
        long long c = column / area, rest = column - c * area;
#pragma unroll
        for (int lane = 0; lane < WIDTH; lane++) {
            function(lane, c);
            if (++rest == area) {
                rest = 0;
                c++;
            }
        }
    }

    // Calls function(samples) for this thread's samples, COUNT of them at a time (vector.cuh).
    template <int COUNT, typename Function>
    __device__ __forceinline__ void for_each(Function function) const {
        in_batches<COUNT>(first, end, step, function);
    }

    // To add up what the threads found of a column, in shared memory by lane and thread: calls function(to, lane,
    // first) for a column of the block's that is left to this thread. `to` is its place in (parts, columns), `first`
    // the first of its threads, which are blockDim.x apart.
    template <typename Function>
    __device__ __forceinline__ void for_own_column(Function function) const {
        const int lane = thread % WIDTH, across = thread / WIDTH;
        const long long own = column + ((long long)across - threadIdx.x) * WIDTH + lane;
        if (across < blockDim.x && own < columns) function(part * columns + own, lane, across);
    }
};
