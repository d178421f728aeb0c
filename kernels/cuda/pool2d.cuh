// What the kernels of pooling share: sizes, windows and their parts inside the input, the taps of the largest
// elements, and what averages divide by.
#pragma once

#include "common.cuh"
#include "vector.cuh"

struct Pool2dShape {
    long long planes;
    int H, W, OH, OW;
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// A half-open range of rows or columns.
struct Range {
    int begin, end;
    __device__ int length() const { return end > begin ? end - begin : 0; }
};

// How many taps start within a length. That most windows have no gaps saves them a division.
__device__ __forceinline__ int taps_within(int length, int dilation) {
    return dilation == 1 ? length : ceil_div(length, dilation);
}

// The taps of a window that lie inside the input, where `start` is the (maybe negative) position of tap 0.
__device__ __forceinline__ Range taps_inside(int start, int kernel, int dilation, int size) {
    const int begin = start < 0 ? taps_within(-start, dilation) : 0;
    const int end = taps_within(size - start, dilation);
    return {begin, end < kernel ? end : kernel};
}

// The largest of a window's elements, as far as it has seen them, and its tap.
template <typename T>
struct Largest {
    T value;
    int tap;

    __device__ __forceinline__ explicit Largest(int first_tap) : value(-T(INFINITY)), tap(first_tap) {}

    __device__ __forceinline__ void see(T element, int its_tap) {
        const bool wins = (element > value) | isnan(element);  // || would be a branch
        value = wins ? element : value;
        tap = wins ? its_tap : tap;
    }
};

// The tap of the first element inside the input of the window that starts at (y0, x0): 0 if there is none.
__device__ __forceinline__ int first_tap(Range rows, Range columns, int kernel_w) {
    return rows.length() && columns.length() ? rows.begin * kernel_w + columns.begin : 0;
}

// How an average divides: by `divisor` if that is not 0, else by the window's size, where the padding (but
// not what hangs over its far border) counts if `count_include_pad` is set. Where all windows have one size, it is
// the `divisor`.
struct AvgDivisor {
    int divisor;
    bool count_include_pad;
};

// The rows (or columns) of window number `index` along one axis, and how many it counts with padding.
struct AvgWindow {
    Range inside;
    int padded_length;

    __device__ AvgWindow(int index, int kernel, int stride, int pad, int size) {
        const int start = index * stride - pad;
        const int end = start + kernel < size + pad ? start + kernel : size + pad;
        inside = {start > 0 ? start : 0, end < size ? end : size};
        padded_length = end - start;
    }
};

template <typename T>
__device__ T avg_divisor(const AvgWindow& rows, const AvgWindow& columns, AvgDivisor how) {
    if (how.divisor) return T(how.divisor);
    if (how.count_include_pad) return T((long long)rows.padded_length * columns.padded_length);
    return T((long long)rows.inside.length() * columns.inside.length());
}

// The windows along one axis that cover position `at`: those that start in (at - kernel, at].
__device__ __forceinline__ Range windows_over(int at, int kernel, int stride, int pad, int outputs) {
    const int begin = at + pad - kernel < 0 ? 0 : int(unsigned(at + pad - kernel) / unsigned(stride)) + 1;
    const int end = int(unsigned(at + pad) / unsigned(stride)) + 1;
    return {begin, end < outputs ? end : outputs};
}

// The windows along one axis that cover a position, from the last on: one division finds them all.
struct WindowOver {
    int index;
    int distance;  // from its start to the position
    int stride, dilation, reach, outputs;

    __device__ __forceinline__ WindowOver(int at, int kernel, int stride, int pad, int dilation, int outputs)
        : stride(stride), dilation(dilation), reach((kernel - 1) * dilation + 1), outputs(outputs) {
        const int last = unsigned(at + pad) / unsigned(stride);
        index = last < outputs ? last : outputs - 1;
        distance = at + pad - index * stride;
    }

    // From the last window over a position to the last one over the next; whether that is another one.
    __device__ __forceinline__ bool move() {
        const bool another = ++distance >= stride && index + 1 < outputs;
        if (another) {
            distance -= stride;
            index++;
        }
        return another;
    }

    __device__ __forceinline__ bool covers() const { return index >= 0 && distance < reach; }
    __device__ __forceinline__ void next() {
        index--;
        distance += stride;
    }

    // Whether a tap reads the position, or the window has a gap there; and which one.
    __device__ __forceinline__ bool has_tap() const { return dilation == 1 || distance % dilation == 0; }
    __device__ __forceinline__ int tap() const { return dilation == 1 ? distance : distance / dilation; }
};

struct AdaptiveShape {
    long long planes;
    int H, W, OH, OW;
};

// Window `index` of `outputs` that divide `size` evenly: [floor(index size / outputs), ceil((index + 1) ...)).
// Windows overlap, or repeat elements, where the division leaves a remainder.
__device__ __forceinline__ Range adaptive_window(int index, int size, int outputs) {
    const Division begin((long long)index * size, outputs), end((long long)(index + 1) * size + outputs - 1, outputs);
    return {int(begin.quotient), int(end.quotient)};
}

// The adaptive windows that cover position `at`: the same formula, with input and output changing places.
__device__ __forceinline__ Range adaptive_windows_over(int at, int size, int outputs) {
    return adaptive_window(at, outputs, size);
}
