// Gradients of max and average pooling for their inputs, whatever the windows: several pixels by one thread.
//
// Shapes, windows and taps are those of pool2d.cu. A thread makes PIXELS neighbours in a row, of `rows` rows one below
// the other, and gathers what it needs: no atomics, and sums have a fixed order.
//
// The definition asks, of each pixel, which of KH KW windows reach it, by up to four divisions for each: for 3 x 3 at
// stride 2 it took an H200 as long as some 620 instructions, where it has time for some 35 while memory moves what
// belongs to a pixel. Here a window is looked at once for all pixels of the row: which of them it won, if any, its tap
// says without a division. To find the windows takes a thread two divisions in all; it goes on by additions. In the
// machine code that makes some 69 instructions for a pixel.
//
// Arithmetic intensity: as in pool2d.cu; bound by memory. Windows over several rows come from the L1 cache again.
//
// Grid of both kernels: x = a thread for PIXELS columns and `rows` rows of each plane. WIDE: rows of the input are
// whole vectors of PIXELS.

#include "pool2d.cuh"

constexpr int PIXELS = 4;

// Stores the gradients. function(sums, rows, columns, window) adds those of a window over the pixels of a row: `rows`
// tells which one, `columns` counts from the last pixel, `window` is its number.
template <bool WIDE, typename T, typename Function>
__device__ __forceinline__ void gather(T* grad_input, const Pool2dShape& s, int rows, Function function) {
    const Position at = position_of(global_thread_index(), ceil_div(s.H, rows), ceil_div(s.W, PIXELS));
    if (at.plane >= s.planes) return;
    const int x = at.x * PIXELS, first = at.y * rows, end = min(first + rows, s.H);
    WindowOver last(x + PIXELS - 1, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, s.OW);
    last.reach += PIXELS - 1;  // of any pixel
    WindowOver lowest(first, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, s.OH);
    long long corner = (at.plane * s.OH + lowest.index) * s.OW + last.index;
    T* pixels = grad_input + (at.plane * s.H + first) * s.W + x;
#pragma unroll 1
    for (int y = first; y < end; y++, pixels += s.W) {
        Vector<Computed<T>, PIXELS> sums = {};
        long long in_column = corner;
#pragma unroll 1
        for (WindowOver oh = lowest; oh.covers(); oh.next(), in_column -= s.OW) {
            if (!oh.has_tap()) continue;
            long long window = in_column;
#pragma unroll 1
            for (WindowOver ow = last; ow.covers(); ow.next(), window--) function(sums, oh, ow, window);
        }
        const Vector<T, PIXELS> results = converted<T>(sums);
        if constexpr (WIDE) {
            store_vector(pixels, results);
        } else {
#pragma unroll
            for (int k = 0; k < PIXELS; k++)
                if (x + k < s.W) pixels[k] = results.lane[k];
        }
        if (lowest.move()) corner += s.OW;
    }
}

// Grid: see above.
template <typename T, typename Tap, bool WIDE>
__global__ void max_pool2d_input_grad_rows(T* grad_input, const T* grad_output, const Tap* taps, Pool2dShape s,
                                           int rows) {
    using C = Computed<T>;
    gather<WIDE>(grad_input, s, rows, [&](auto& sums, const auto& oh, const auto& ow, long long window) {
        const int tap = taps[window] - oh.tap() * s.kernel_w;
        const C grad = C(grad_output[window]);
        const int winner = PIXELS - 1 - ow.distance + tap * s.dilation_w;
#pragma unroll
        for (int k = 0; k < PIXELS; k++)
            if (unsigned(tap) < unsigned(s.kernel_w) && k == winner) sums.lane[k] += grad;
    });
}

// Grid: see above.
template <typename T, bool WIDE>
__global__ void avg_pool2d_input_grad_rows(T* grad_input, const T* grad_output, Pool2dShape s, AvgDivisor how,
                                           int rows) {
    using C = Computed<T>;
    s.dilation_h = s.dilation_w = 1;  // as it is, known to the compiler
    const C of_all = 1 / C(how.divisor ? how.divisor : 1);
    gather<WIDE>(grad_input, s, rows, [&](auto& sums, const auto& oh, const auto& ow, long long window) {
        C factor = of_all;
        if (!how.divisor) {
            const AvgWindow over_y(oh.index, s.kernel_h, s.stride_h, s.pad_h, s.H);
            const AvgWindow over_x(ow.index, s.kernel_w, s.stride_w, s.pad_w, s.W);
            factor = 1 / avg_divisor<C>(over_y, over_x, how);
        }
        const C share = C(grad_output[window]) * factor;
#pragma unroll
        for (int k = 0; k < PIXELS; k++)
            if (unsigned(ow.distance - (PIXELS - 1) + k) < unsigned(s.kernel_w)) sums.lane[k] += share;
    });
}
