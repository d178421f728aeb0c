// Max, average and adaptive average pooling over (N, C, H, W) arrays, and their gradients.
//
// A pooling works on each of the N * C planes alone: input planes are (H, W), output planes (OH, OW), all
// C-contiguous. One thread makes one element of the result and gathers what it needs, in the gradients too,
// where an input element looks up the windows that cover it: no atomics, and sums have a fixed order.
//
// Max pooling also writes the taps: for each window the index i * kernel_w + j of its largest element, a
// byte if the window is small. A tap says less than a position in the plane, and takes less memory. Padding
// never wins, a NaN always does. A window that holds no element at all gives -infinity and tap 0.
//
// The kernels without a suffix are the definition; above them stand
//
//   ..._tiled        for windows that overlap: a block reads the input under its windows once, into shared
//                    memory (pool2d_tiled.cu)
//   ..._rolling      for 3x3 windows: a thread walks down a strip, with the last rows in registers
//                    (pool2d_rolling.cu)
//   ..._rows         the gradients of any windows: a window is looked at once for several pixels of a row, and
//                    rows below each other by one thread; ..._threes, of 3x3 windows, by squares of pixels
//                    (pool2d_rows.cu)
//   ..._scatter      for windows that do not overlap: a thread for each window writes all that it covers
//   ..._vectorized   for 2x2 windows side by side: vectors of 16 bytes from and to two rows at a time, and
//                    the results of neighbours stored as one (pool2d_vectorized.cu)
//   one_window_...   for a window that is the plane: its gradient is one number, stored in vectors; its mean is made
//                    by reduce.cu
//   ..._last         where channels come last: vectors of these (pool2d_channels_last.cu)
//
// Arrays may be of 16 bits: their elements are compared and added in float32.
//
// Arithmetic intensity: a 2x2 window at stride 2 reads 16 bytes and writes 5 for 3 comparisons. The kernels
// are bound by memory; the threads of a warp are neighbours in a row of the result, so that the lines of
// memory that they touch are used whole.
//
// Grid of every kernel without a suffix: one dimension, a thread for each element of its result.

#include "pool2d.cuh"
#include "vector.cuh"

template <typename T, typename Tap>
__global__ void max_pool2d(T* out, Tap* taps, const T* input, Pool2dShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at = position_of(number, s.OH, s.OW);
    const T* plane = input + at.plane * s.H * s.W;
    const int y0 = at.y * s.stride_h - s.pad_h, x0 = at.x * s.stride_w - s.pad_w;
    const Range rows = taps_inside(y0, s.kernel_h, s.dilation_h, s.H);
    const Range columns = taps_inside(x0, s.kernel_w, s.dilation_w, s.W);

    using C = Computed<T>;
    Largest<C> largest(first_tap(rows, columns, s.kernel_w));
    for (int i = rows.begin; i < rows.end; i++) {
        const T* row = plane + (long long)(y0 + i * s.dilation_h) * s.W;
        for (int j = columns.begin; j < columns.end; j++)
            largest.see(C(row[x0 + j * s.dilation_w]), i * s.kernel_w + j);
    }
    out[number] = T(largest.value);
    taps[number] = Tap(largest.tap);
}

// An input element gets the gradients of the windows that it won. For each tap (i, j) there is at most one
// window in which the element stands at that tap.
template <typename T, typename Tap>
__global__ void max_pool2d_input_grad(T* grad_input, const T* grad_output, const Tap* taps, Pool2dShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.H * s.W) return;
    const Position at = position_of(number, s.H, s.W);
    const long long plane = at.plane * s.OH * s.OW;
    using C = Computed<T>;
    C sum = 0;
    for (int i = 0; i < s.kernel_h; i++) {
        const int start_y = at.y + s.pad_h - i * s.dilation_h;
        if (start_y < 0 || start_y % s.stride_h != 0 || start_y / s.stride_h >= s.OH) continue;
        const long long row = plane + (long long)(start_y / s.stride_h) * s.OW;
        for (int j = 0; j < s.kernel_w; j++) {
            const int start_x = at.x + s.pad_w - j * s.dilation_w;
            if (start_x < 0 || start_x % s.stride_w != 0 || start_x / s.stride_w >= s.OW) continue;
            const long long window = row + start_x / s.stride_w;
            if (taps[window] == i * s.kernel_w + j) sum += C(grad_output[window]);
        }
    }
    grad_input[number] = T(sum);
}

// The input at each window's winning tap: the adjoint of max_pool2d_input_grad, for second gradients.
template <typename T, typename Tap>
__global__ void max_pool2d_gather(T* out, const T* input, const Tap* taps, Pool2dShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at = position_of(number, s.OH, s.OW);
    const int tap = taps[number];
    const int y = at.y * s.stride_h - s.pad_h + tap / s.kernel_w * s.dilation_h;
    const int x = at.x * s.stride_w - s.pad_w + tap % s.kernel_w * s.dilation_w;
    const bool inside = y >= 0 && y < s.H && x >= 0 && x < s.W;  // false for a window without elements
    out[number] = inside ? input[(at.plane * s.H + y) * s.W + x] : T(0);
}

// The rows (or columns) of the input that belong to window number `index` of `windows`: from its start to
// that of the next; the first and the last also get what lies before and behind.
__device__ __forceinline__ Range own_part(int index, int windows, int stride, int pad, int size) {
    const int begin = index == 0 ? 0 : index * stride - pad;
    const int end = index == windows - 1 ? size : (index + 1) * stride - pad;
    return {begin > 0 ? begin : 0, end < size ? end : size};
}

// Windows that do not overlap: each hands its gradient to its winner and writes zeros around it. What no
// window covers is written with the one before it, so that every element is written once, by one thread.
// The definition reads the tap and tries KH * KW windows, with a division each, for every element of the
// input; here each tap and gradient is read once.
//
// Grid: x = a thread for each window.
template <typename T, typename Tap>
__global__ void max_pool2d_input_grad_scatter(T* grad_input, const T* grad_output, const Tap* taps,
                                              Pool2dShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at = position_of(number, s.OH, s.OW);
    const int tap = taps[number];
    const int winner_y = at.y * s.stride_h - s.pad_h + tap / s.kernel_w * s.dilation_h;
    const int winner_x = at.x * s.stride_w - s.pad_w + tap % s.kernel_w * s.dilation_w;
    const Range rows = own_part(at.y, s.OH, s.stride_h, s.pad_h, s.H);
    const Range columns = own_part(at.x, s.OW, s.stride_w, s.pad_w, s.W);
    const T gradient = grad_output[number];
    for (int y = rows.begin; y < rows.end; y++) {
        T* row = grad_input + (at.plane * s.H + y) * s.W;
        for (int x = columns.begin; x < columns.end; x++)
            row[x] = y == winner_y && x == winner_x ? gradient : T(0);
    }
}

template <typename T>
__device__ Computed<T> sum_of(const T* plane, int width, Range rows, Range columns) {
    Computed<T> sum = 0;
    for (int y = rows.begin; y < rows.end; y++)
        for (int x = columns.begin; x < columns.end; x++) sum += Computed<T>(plane[(long long)y * width + x]);
    return sum;
}

template <typename T>
__global__ void avg_pool2d(T* out, const T* input, Pool2dShape s, AvgDivisor how) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at = position_of(number, s.OH, s.OW);
    const AvgWindow columns(at.x, s.kernel_w, s.stride_w, s.pad_w, s.W);
    const AvgWindow rows(at.y, s.kernel_h, s.stride_h, s.pad_h, s.H);
    const bool empty = !rows.inside.length() || !columns.inside.length();
    const T* plane = input + at.plane * s.H * s.W;
    using C = Computed<T>;
    const C sum = sum_of(plane, s.W, rows.inside, columns.inside);
    out[number] = T(empty ? C(0) : sum / avg_divisor<C>(rows, columns, how));
}

template <typename T>
__global__ void avg_pool2d_input_grad(T* grad_input, const T* grad_output, Pool2dShape s, AvgDivisor how) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.H * s.W) return;
    const Position at = position_of(number, s.H, s.W);
    const Range ow = windows_over(at.x, s.kernel_w, s.stride_w, s.pad_w, s.OW);
    const Range oh = windows_over(at.y, s.kernel_h, s.stride_h, s.pad_h, s.OH);
    const T* plane = grad_output + at.plane * s.OH * s.OW;
    using C = Computed<T>;
    C sum = 0;
    for (int i = oh.begin; i < oh.end; i++) {
        const AvgWindow rows(i, s.kernel_h, s.stride_h, s.pad_h, s.H);
        for (int j = ow.begin; j < ow.end; j++) {
            const AvgWindow columns(j, s.kernel_w, s.stride_w, s.pad_w, s.W);
            sum += C(plane[(long long)i * s.OW + j]) / avg_divisor<C>(rows, columns, how);
        }
    }
    grad_input[number] = T(sum);
}

template <typename T>
__global__ void adaptive_avg_pool2d(T* out, const T* input, AdaptiveShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at = position_of(number, s.OH, s.OW);
    const Range columns = adaptive_window(at.x, s.W, s.OW);
    const Range rows = adaptive_window(at.y, s.H, s.OH);
    const T* plane = input + at.plane * s.H * s.W;
    const auto elements = Computed<T>((long long)rows.length() * columns.length());
    out[number] = T(sum_of(plane, s.W, rows, columns) / elements);
}

template <typename T>
__global__ void adaptive_avg_pool2d_input_grad(T* grad_input, const T* grad_output, AdaptiveShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.H * s.W) return;
    const Position at = position_of(number, s.H, s.W);
    const Range ow = adaptive_windows_over(at.x, s.W, s.OW);
    const Range oh = adaptive_windows_over(at.y, s.H, s.OH);
    const T* plane = grad_output + at.plane * s.OH * s.OW;
    using C = Computed<T>;
    C sum = 0;
    for (int i = oh.begin; i < oh.end; i++) {
        const int rows = adaptive_window(i, s.H, s.OH).length();
        for (int j = ow.begin; j < ow.end; j++) {
            const int columns = adaptive_window(j, s.W, s.OW).length();
            sum += C(plane[(long long)i * s.OW + j]) / C((long long)rows * columns);
        }
    }
    grad_input[number] = T(sum);
}

// The gradient of a mean, or of a sum over `divisor`, of whole planes: a number for all of a plane's `area` elements. A
// thread finds its plane once for a vector, which may end in the next plane.
//
// Grid: x = a thread for each vector.
template <typename T>
__global__ void one_window_input_grad(
    T* grad_input, const T* grad_output, long long elements, int area, double divisor
) {
    constexpr int N = Vector<T>::LENGTH;
    using C = Computed<T>;
    const long long first = global_thread_index() * N;
    if (first >= elements) return;
    const Division at(first, area);
    grad_output += at.quotient;
    int left = area - at.rest;  // of the plane
    T share = T(C(*grad_output) / C(divisor));
    Vector<T> shares;
#pragma unroll
    for (int n = 0; n < N; n++, left--) {
        if (left == 0 && first + n < elements) {
            share = T(C(*++grad_output) / C(divisor));
            left = area;
        }
        shares.lane[n] = share;
    }
    if (first + N <= elements && aligned<N>(grad_input)) {
        store_vector(grad_input + first, shares);
    } else {
        for (int n = 0; n < N && first + n < elements; n++) grad_input[first + n] = shares.lane[n];
    }
}
