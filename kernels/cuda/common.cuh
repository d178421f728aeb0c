// What several kernels share. Sizes and offsets are 64-bit: a tensor may have more than 2^31 elements.
#pragma once

// NVRTC, which compiles these files at run time, comes without <math.h>.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7F800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7FFFFFFF)
#endif

// What numbers stored as T are computed with: those of 16 bits (__half, __nv_bfloat16) in float, and rounded once,
// where they are stored.
template <typename T, int BYTES = sizeof(T)>
struct ComputedType {
    using type = T;
};

template <typename T>
struct ComputedType<T, 2> {
    using type = float;
};

template <typename T>
using Computed = typename ComputedType<T>::type;

// This thread's number in a one-dimensional grid.
__device__ __forceinline__ long long global_thread_index() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// An element of an array that may be null.
template <typename T>
__device__ __forceinline__ T value_or(const T* array, long long at, T otherwise) {
    return array ? array[at] : otherwise;
}

// x, or where `applies` max(x, 0). NaN stays NaN.
template <typename T>
__device__ __forceinline__ T relu_if(bool applies, T x) {
    return applies && x < 0 ? T(0) : x;
}

// a b, rounded to T wherever it is used. What subtracts such a product from a sum of them must see the numbers
// that were added: nvcc fuses a product with a subtraction into one instruction, which does not round it.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// a / b, b in [1, 2]. In float32 it is the card's own: 2 ulp, for a fifth of the instructions of the exact one.
__device__ __forceinline__ float quotient(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ double quotient(double a, double b) { return a / b; }

// 1 / (1 + exp(-x)): exp of what is not positive cannot overflow.
template <typename T>
__device__ __forceinline__ T logistic(T x) {
    const T e = exp(-fabs(x));
    return quotient(x < 0 ? e : T(1), 1 + e);
}

// ceil(a / b) for b > 0; C++'s own division rounds towards zero.
__device__ __forceinline__ int ceil_div(int a, int b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

// n, or `most` if it is more: of what remains, how much is inside of a tile.
__device__ __forceinline__ int at_most(long long n, int most) { return n < most ? int(n) : most; }

// Where element `number` of a (planes, height, width) array stands.
struct Position {
    long long plane;
    int y, x;

    Position() = default;

    __device__ __forceinline__ Position(long long number, int height, int width) {
        x = int(number % width);
        number /= width;
        y = int(number % height);
        plane = number / height;
    }

    // On by `step`, itself the position of a number in the same array: additions in place of divisions.
    __device__ __forceinline__ void advance(const Position& step, int height, int width) {
        x += step.x;
        y += step.y;
        plane += step.plane;
        if (x >= width) {
            x -= width;
            y++;
        }
        if (y >= height) {
            y -= height;
            plane++;
        }
    }
};

// number / divisor, neither negative, and what is left. A division of 64 bits takes about a hundred instructions,
// one of 32 bits, which nearly always does, twenty.
struct Division {
    long long quotient;
    int rest;

    __device__ __forceinline__ Division(long long number, int divisor) {
        quotient = number >> 32 ? number / divisor : unsigned(number) / unsigned(divisor);
        rest = int(number - quotient * divisor);
    }
};

// The same Position for kernels that have the registers for both kinds of division.
__device__ __forceinline__ Position position_of(long long number, int height, int width) {
    const Division column(number, width), row(column.quotient, height);
    Position at;
    at.x = column.rest;
    at.y = row.rest;
    at.plane = row.quotient;
    return at;
}
