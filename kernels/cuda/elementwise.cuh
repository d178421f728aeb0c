// out[i] = f(x[i], y[i], ...): the two ways through memory of the kernels that elementwise.py generates.
//
//   flat      all arrays contiguous and of one shape: a thread moves 16 bytes with each load and store
//   strided   views and operands that are broadcast, read where they lie: a thread for each element; or for a
//             vector of them, where along the last dimension each input is contiguous or one number
//
// An input is an array or a number. Arithmetic intensity: one operation for 12 bytes (an addition in float32)
// to some fifty for 8 (gelu), where an H200 could do 14 a byte: all but the costliest run at the speed of
// memory, and f is written for accuracy.
#pragma once

#include "common.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int MAX_DIMS = 6;

// The dimensions of the output, outermost first, and the inputs' strides in elements (0 where one is
// broadcast): that of input k along dimension d is stride[MAX_DIMS * k + d]. A thread takes `lanes` neighbours
// along the last dimension, one or a vector. For vectors that dimension's size is a multiple of it, the last
// stride of an input is 0, or 1 and its others are multiples, and all arrays start where vectors may.
struct Layout {
    int dims, lanes;
    long long size[6];
    long long stride[24];
};

// An input of the function: stored as S, computed with as T. POSITION is its number among the inputs.
template <typename S, typename T, int POSITION>
struct Input {
    const S* data;  // null: the number stands for every element
    T number;

    __device__ __forceinline__ T at(long long i) const { return data ? T(data[i]) : number; }

    __device__ __forceinline__ T at(const long long* offsets) const { return at(offsets[POSITION]); }

    template <int N>
    __device__ __forceinline__ Vector<T, N> vector(long long i) const {
        return data ? converted<T>(load_vector<N>(data + i)) : same<N>(number);
    }

    // Neighbours along the last dimension of a layout, in which the input is contiguous or one number.
    template <int N>
    __device__ __forceinline__ Vector<T, N> vector(const long long* offsets, const Layout& layout) const {
        const bool varies = data && layout.stride[MAX_DIMS * POSITION + layout.dims - 1] == 1;
        return varies ? converted<T>(load_vector<N>(data + offsets[POSITION])) : same<N>(at(offsets));
    }

private:
    template <int N>
    static __device__ __forceinline__ Vector<T, N> same(T value) {
        Vector<T, N> values;
#pragma unroll
        for (int k = 0; k < N; k++) values.lane[k] = value;
        return values;
    }
};

template <typename Out, int N, typename Function, typename... T>
__device__ __forceinline__ Vector<Out, N> each_lane(Function f, const Vector<T, N>&... inputs) {
    Vector<Out, N> result;
#pragma unroll
    for (int k = 0; k < N; k++) result.lane[k] = Out(f(inputs.lane[k]...));
    return result;
}

// Each block works on THREADS * N elements. Where these are all there, and vectors start where vectors may, a
// thread takes N neighbours at once; otherwise N elements that lie THREADS apart, so that a warp still reads
// neighbours. The whole block goes one way or the other.
//
// Grid: x = n / (THREADS * N) blocks, rounded up.
template <int N, typename Out, typename Function, typename... Inputs>
__device__ __forceinline__ void flat(Out* out, long long n, Function f, Inputs... inputs) {
    const long long begin = (long long)blockIdx.x * (THREADS * N);
    const int count = int(min(n - begin, (long long)(THREADS * N)));
    if (count == THREADS * N && aligned<N>(out) && (aligned<N>(inputs.data) && ...)) {
        const long long i = begin + threadIdx.x * N;
        store_vector(out + i, each_lane<Out, N>(f, inputs.template vector<N>(i)...));
        return;
    }
#pragma unroll 1
    for (int k = threadIdx.x; k < count; k += THREADS) out[begin + k] = Out(f(inputs.at(begin + k)...));
}

// Grid: x = a thread for each `lanes` elements of the output, which is contiguous. N is how many are a vector.
template <int N, typename Out, typename Function, typename... S, typename... T, int... POSITION>
__device__ __forceinline__ void strided(Out* out, long long n, const Layout& layout, Function f,
                                        Input<S, T, POSITION>... inputs) {
    const long long i = global_thread_index() * layout.lanes;
    if (i >= n) return;
    long long offsets[sizeof...(T)] = {}, rest = i;
    for (int d = layout.dims - 1; d >= 0; d--) {
        const long long outer = d > 0 ? rest / layout.size[d] : 0;  // the outermost index is what is left
        const long long index = rest - outer * layout.size[d];
        for (int k = 0; k < int(sizeof...(T)); k++) offsets[k] += index * layout.stride[MAX_DIMS * k + d];
        rest = outer;
    }
    if (layout.lanes == 1)
        out[i] = Out(f(inputs.at(offsets)...));
    else
        store_vector(out + i, each_lane<Out, N>(f, inputs.template vector<N>(offsets, layout)...));
}

// ---- functions that take more than an expression -----------------------------------------------------------

// Unlike fmax and fmin, these are NaN if either operand is.
template <typename T>
__device__ __forceinline__ T larger(T x, T y) {
    return x > y || isnan(x) ? x : y;
}

template <typename T>
__device__ __forceinline__ T smaller(T x, T y) {
    return x < y || isnan(x) ? x : y;
}

// 1, -1, 0 or NaN.
template <typename T>
__device__ __forceinline__ T sign_of(T x) {
    return x > 0 ? T(1) : x < 0 ? T(-1) : x == 0 ? T(0) : x;
}

// x - floor(x / y) y, exactly: of y's sign.
template <typename T>
__device__ __forceinline__ T remainder_of_floor(T x, T y) {
    const T rest = fmod(x, y);
    if (y == 0) return rest;
    if (rest == 0) return copysign(T(0), y);
    return (rest < 0) != (y < 0) ? rest + y : rest;
}

// floor(x / y), from the exact remainder: x / y itself may have been rounded up to an integer.
template <typename T>
__device__ __forceinline__ T floor_of_quotient(T x, T y) {
    if (y == 0) return x / y;
    const T rest = fmod(x, y);
    T quotient = (x - rest) / y;
    if (rest != 0 && (rest < 0) != (y < 0)) quotient -= 1;
    if (quotient == 0) return copysign(T(0), x / y);
    const T below = floor(quotient);
    return quotient - below > T(0.5) ? below + 1 : below;
}

// The derivative s (1 - s) of the logistic function s, as e / (1 + e)^2: where s is near 1, 1 - s has lost its digits.
template <typename T>
__device__ __forceinline__ T logistic_slope(T x) {
    const T e = exp(-fabs(x)), larger = quotient(T(1), 1 + e);
    return e * larger * larger;
}

// exp(-x^2 / 2), which the normal distribution and its density share. In float32 the exponent is rounded twice:
// the relative error grows to x^2 / 2 ulp, in results that fall with it.
template <typename T>
__device__ __forceinline__ T bell(T x) {
    if constexpr (sizeof(T) == 4) return exp2f(x * x * -0.72134752f);  // log2(e) / 2
    return exp(T(-0.5) * x * x);
}

// Phi(x) of the normal distribution, from e = bell(x); small values keep their digits. In float32 it takes a third
// of the instructions of erfc: Phi(-a) / e, a >= 0, is t times a polynomial of t = 1 / (1 + 0.2625 a)
// (fitted to a relative error of 1.5e-8 at most; with the roundings Phi has 4 + x^2 / 2 ulp).
template <typename T>
__device__ __forceinline__ T normal_cdf(T x, T e) {
    if constexpr (sizeof(T) == 4) {
        const float t = __fdividef(1.0f, 1.0f + 0.2625f * fabsf(x));
        float tail = 0.030968476f;
        tail = tail * t - 0.14989009f;
        tail = tail * t + 0.23698567f;
        tail = tail * t - 0.13593204f;
        tail = tail * t + 0.15089434f;
        tail = tail * t + 0.055098675f;
        tail = tail * t + 0.10301194f;
        tail = tail * t + 0.10411146f;
        tail = tail * t + 0.10475151f;
        tail *= e * t;
        return x < 0 ? tail : 1 - tail;
    }
    return T(0.5) * erfc(x * T(-0.70710678118654752440));  // sqrt(1 / 2)
}

template <typename T>
__device__ __forceinline__ T gelu(T x) {
    return x * normal_cdf(x, bell(x));
}

// Phi(x) + x times the density.
template <typename T>
__device__ __forceinline__ T gelu_derivative(T x) {
    const T e = bell(x);
    return normal_cdf(x, e) + x * (e * T(0.39894228040143267794));  // 1 / sqrt(2 pi)
}

// The tanh form of gelu is x logistic(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3): 0.5 (1 + tanh(u)) is
// the logistic function of 2 u, which keeps its digits where tanh(u) is near -1.
template <typename T>
__device__ __forceinline__ T gelu_argument(T x, T square) {
    return T(1.5957691216057307117) * (x + T(0.044715) * x * square);
}

// Where x^2 passes 1e8 the logistic function is 0 or 1; bounded, the slope is never 0 * infinity.
template <typename T>
__device__ __forceinline__ T gelu_tanh_derivative(T x) {
    const T square = x * x < T(1e8) ? x * x : T(1e8), u = gelu_argument(x, square);
    const T slope = T(1.5957691216057307117) * (1 + T(3 * 0.044715) * square);
    return logistic(u) + x * logistic_slope(u) * slope;
}
