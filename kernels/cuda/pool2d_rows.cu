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
// whole vectors of PIXELS. The kernels for 3 x 3 windows stand below.

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

// ---- 3 x 3 windows, at stride 1 or 2, with a padding of 1 or none ----
//
// Which windows reach a square of 4 x 4 pixels, and by which tap each of its pixels, is then the same for all squares,
// and known to the compiler: a pixel asks of each window over it whether its tap is that one, by two instructions. At
// stride 2 these are 36 questions to 9 windows, at stride 1 144 to 36; that and the loads are some 10 and 40
// instructions for a pixel.
//
// Grid: x = a thread for each square of each plane.

constexpr int SQUARE = 4;  // pixels: a multiple of the stride

// Along either axis: the windows over a square.
template <int STRIDE, int PAD>
struct Over {
    static constexpr int FIRST = -((2 - PAD) / STRIDE);  // from the one that begins PAD before the square
    static constexpr int COUNT = (SQUARE - 1 + PAD) / STRIDE - FIRST + 1;

    // Which tap of window i reaches the pixel: if 0, 1 or 2.
    static __device__ __forceinline__ constexpr int tap(int i, int pixel) {
        return pixel + PAD - STRIDE * (FIRST + i);
    }
};

// Stores the gradients. Of `windows`, start(oh, ow) tells the first one over the square, load(there, at, i, j) is what is
// kept of the window at place `at`, (oh + i, ow + j), and add(sum, window, tap) what it gives to the pixel under a tap.
template <int STRIDE, int PAD, typename T, typename Windows>
__device__ __forceinline__ void gather_threes(T* grad_input, const Pool2dShape& s, Windows windows) {
    using Along = Over<STRIDE, PAD>;
    constexpr int COUNT = Along::COUNT;
    const Position at = position_of(global_thread_index(), ceil_div(s.H, SQUARE), ceil_div(s.W, SQUARE));
    if (at.plane >= s.planes) return;
    const int oh = at.y * (SQUARE / STRIDE) + Along::FIRST, ow = at.x * (SQUARE / STRIDE) + Along::FIRST;
    windows.start(oh, ow);
    Vector<Computed<T>, SQUARE> sums[SQUARE] = {};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const long long row = (at.plane * s.OH + oh + i) * s.OW + ow;
        const bool inside = unsigned(oh + i) < unsigned(s.OH);
        decltype(windows.load(false, 0, 0, 0)) loaded[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; j++)
            loaded[j] = windows.load(inside && unsigned(ow + j) < unsigned(s.OW), row + j, i, j);
#pragma unroll
        for (int j = 0; j < COUNT; j++)
#pragma unroll
            for (int y = 0; y < SQUARE; y++)
#pragma unroll
                for (int x = 0; x < SQUARE; x++) {
                    const int tap_y = Along::tap(i, y), tap_x = Along::tap(j, x);
                    if (tap_y >= 0 && tap_y < 3 && tap_x >= 0 && tap_x < 3)
                        windows.add(sums[y].lane[x], loaded[j], tap_y * 3 + tap_x);
                }
    }
    const int y = at.y * SQUARE, x = at.x * SQUARE;
    T* pixels = grad_input + (at.plane * s.H + y) * s.W + x;
#pragma unroll
    for (int k = 0; k < SQUARE; k++, pixels += s.W) {
        if (y + k >= s.H) continue;
        const Vector<T, SQUARE> results = converted<T>(sums[k]);
        if (x + SQUARE <= s.W && aligned<SQUARE>(pixels)) {
            store_vector(pixels, results);
        } else {
#pragma unroll
            for (int n = 0; n < SQUARE; n++)
                if (x + n < s.W) pixels[n] = results.lane[n];
        }
    }
}

template <typename T, typename Tap>
struct MaxWindows {
    using C = Computed<T>;
    struct Window {
        C grad;
        int tap;
    };
    const T* grad;
    const Tap* taps;

    __device__ __forceinline__ void start(int, int) {}
    __device__ __forceinline__ Window load(bool there, long long at, int, int) const {
        return {there ? C(grad[at]) : C(0), there ? int(taps[at]) : -1};
    }
    static __device__ __forceinline__ void add(C& sum, const Window& window, int tap) {
        if (window.tap == tap) sum += window.grad;
    }
};

template <typename T, typename Tap, int STRIDE, int PAD>
__global__ void __launch_bounds__(256)
max_pool2d_input_grad_threes(T* grad_input, const T* grad_output, const Tap* taps, Pool2dShape s) {
    gather_threes<STRIDE, PAD>(grad_input, s, MaxWindows<T, Tap>{grad_output, taps});
}

// A window gives its gradient over its rows and over its columns, whose reciprocals are found once for the square.
template <typename T, int STRIDE, int PAD>
struct AvgWindows {
    using C = Computed<T>;
    static constexpr int COUNT = Over<STRIDE, PAD>::COUNT;
    const T* grad;
    const Pool2dShape& s;
    const AvgDivisor& how;
    C of_rows[COUNT], of_columns[COUNT];

    __device__ __forceinline__ AvgWindows(const T* grad, const Pool2dShape& s, const AvgDivisor& how)
        : grad(grad), s(s), how(how) {}

    __device__ __forceinline__ C share(int index, int size, C of_all) const {
        const AvgWindow window(index, 3, STRIDE, PAD, size);
        if (how.divisor) return of_all;
        return 1 / C(how.count_include_pad ? window.padded_length : window.inside.length());
    }
    __device__ __forceinline__ void start(int oh, int ow) {
        const C of_all = 1 / C(how.divisor ? how.divisor : 1);
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            of_rows[k] = share(oh + k, s.H, C(1));
            of_columns[k] = share(ow + k, s.W, of_all);
        }
    }
    __device__ __forceinline__ C load(bool there, long long at, int i, int j) const {
        const C all = there ? C(grad[at]) : C(0);
        return there ? all * (of_rows[i] * of_columns[j]) : C(0);
    }
    static __device__ __forceinline__ void add(C& sum, C share, int) { sum += share; }
};

template <typename T, int STRIDE, int PAD>
__global__ void __launch_bounds__(256)
avg_pool2d_input_grad_threes(T* grad_input, const T* grad_output, Pool2dShape s, AvgDivisor how) {
    gather_threes<STRIDE, PAD>(grad_input, s, AvgWindows<T, STRIDE, PAD>(grad_output, s, how));
}
