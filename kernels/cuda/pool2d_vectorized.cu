// Max and average pooling of 2 x 2 windows at stride 2, and their gradients.
//
// The commonest pooling: no padding, no dilation, rows of whole vectors. A thread takes the windows under one
// vector of 16 bytes, two in float32 and one in float64: a vector of the upper row and one of the lower. It does
// so for SQUARES such groups of windows, which a block's threads apart, and loads all before it uses the first.
//
// Grid: x = a thread for so many windows.

#include "pool2d.cuh"

constexpr int SQUARES = 2;

template <typename T>
struct Square {
    static constexpr int WINDOWS = Vector<T>::LENGTH / 2;
    long long first;   // the first window
    long long corner;  // where it begins in the input
    bool exists;

    // A value of each window, which are neighbours in memory.
    template <typename Value>
    using Each = Vector<Value, WINDOWS>;

    template <typename Value>
    __device__ __forceinline__ Each<Value> load(const Value* from) const {
        return load_vector<WINDOWS>(from + first);
    }

    template <typename Value>
    __device__ __forceinline__ void store(Value* to, const Each<Value>& values) const {
        store_vector(to + first, values);
    }

    __device__ __forceinline__ Square(const Pool2dShape& s, int k) {
        first = (((long long)blockIdx.x * SQUARES + k) * blockDim.x + threadIdx.x) * WINDOWS;
        exists = first < s.planes * s.OH * s.OW;
        const Position at = position_of(first, s.OH, s.OW);
        corner = (at.plane * s.H + 2 * at.y) * s.W + 2 * at.x;
    }
};

// The input under the windows of a thread.
template <typename T>
struct TwoRows {
    Vector<T> upper[SQUARES], lower[SQUARES];

    __device__ __forceinline__ TwoRows(const T* input, const Pool2dShape& s) {
#pragma unroll
        for (int k = 0; k < SQUARES; k++) {
            const Square<T> square(s, k);
            if (!square.exists) continue;
            upper[k] = load_vector(input + square.corner);
            lower[k] = load_vector(input + square.corner + s.W);
        }
    }
};

template <typename T, typename Tap>
__global__ void max_pool2d_vectorized(T* out, Tap* taps, const T* input, Pool2dShape s) {
    using C = Computed<T>;
    const TwoRows<T> rows(input, s);
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        typename Square<T>::template Each<T> values;
        typename Square<T>::template Each<Tap> winners;
#pragma unroll
        for (int w = 0; w < Square<T>::WINDOWS; w++) {
            Largest<C> largest(0);
            largest.see(C(rows.upper[k].lane[2 * w]), 0);
            largest.see(C(rows.upper[k].lane[2 * w + 1]), 1);
            largest.see(C(rows.lower[k].lane[2 * w]), 2);
            largest.see(C(rows.lower[k].lane[2 * w + 1]), 3);
            values.lane[w] = T(largest.value);
            winners.lane[w] = Tap(largest.tap);
        }
        square.store(out, values);
        square.store(taps, winners);
    }
}

template <typename T, typename Tap>
__global__ void max_pool2d_input_grad_vectorized(T* grad_input, const T* grad_output, const Tap* taps,
                                                 Pool2dShape s) {
    typename Square<T>::template Each<T> gradients[SQUARES];
    typename Square<T>::template Each<Tap> winners[SQUARES];
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        gradients[k] = square.load(grad_output);
        winners[k] = square.load(taps);
    }
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        Vector<T> upper, lower;
#pragma unroll
        for (int w = 0; w < Square<T>::WINDOWS; w++) {
            const T gradient = gradients[k].lane[w];
            const int tap = winners[k].lane[w];
            upper.lane[2 * w] = tap == 0 ? gradient : T(0);
            upper.lane[2 * w + 1] = tap == 1 ? gradient : T(0);
            lower.lane[2 * w] = tap == 2 ? gradient : T(0);
            lower.lane[2 * w + 1] = tap == 3 ? gradient : T(0);
        }
        store_results(grad_input + square.corner, upper);
        store_results(grad_input + square.corner + s.W, lower);
    }
}

template <typename T>
__global__ void avg_pool2d_vectorized(T* out, const T* input, Pool2dShape s, int divisor) {
    const TwoRows<T> rows(input, s);
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        const auto upper = converted<Computed<T>>(rows.upper[k]), lower = converted<Computed<T>>(rows.lower[k]);
        typename Square<T>::template Each<T> means;
#pragma unroll
        for (int w = 0; w < Square<T>::WINDOWS; w++)
            means.lane[w] =
                T((upper.lane[2 * w] + upper.lane[2 * w + 1] + lower.lane[2 * w] + lower.lane[2 * w + 1]) /
                  Computed<T>(divisor));
        square.store(out, means);
    }
}

template <typename T>
__global__ void avg_pool2d_input_grad_vectorized(T* grad_input, const T* grad_output, Pool2dShape s,
                                                 int divisor) {
    typename Square<T>::template Each<T> gradients[SQUARES];
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (square.exists) gradients[k] = square.load(grad_output);
    }
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        Vector<T> row;
#pragma unroll
        for (int w = 0; w < Square<T>::WINDOWS; w++)
            row.lane[2 * w] = row.lane[2 * w + 1] = T(Computed<T>(gradients[k].lane[w]) / Computed<T>(divisor));
        store_results(grad_input + square.corner, row);
        store_results(grad_input + square.corner + s.W, row);
    }
}
