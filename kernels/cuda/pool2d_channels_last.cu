// Max, average and adaptive average pooling, and their gradients, where channels come last.
//
// Shapes: inputs are (N, H, W, C), outputs (N, OH, OW, C), without gaps; windows and taps are those of pool2d.cu. A
// thread makes WIDTH channels of one pixel of the result, and gathers what it needs, in the gradients too: no
// atomics, and sums have a fixed order.
//
// All channels of a pixel have the same windows: what is asked once for WIDTH of them is where a window lies and what
// it divides by. Vectors are of 16 bytes where the channels are whole ones (WIDE); threads side by side have
// neighbours, so that lines of memory are used whole whatever the windows. Those that overlap read their elements
// again, from the caches.
//
// Arithmetic intensity: as in pool2d.cu; bound by memory, if a thread does not take long to find its place. So a row of
// the result is the grid's, and the pixel in it one division; and if what a window needs is on its way together: its
// taps are loaded three or two at a time.
//
// Grid of every kernel: x = the rows of an image of the result, y = the parts of a row, z = the images; a thread for
// each vector. In the gradients of windows a thread may make several `rows`, one below the other: it finds its place
// and its first windows once, goes on by additions, and finds in the L1 cache what two rows of windows share.

#include "pool2d.cuh"

// The pixel and the first channel that a thread makes, in an array of these sizes.
template <int WIDTH>
struct Place {
    long long number;  // of its first element
    Position pixel;    // the plane is the image
    int channel;
    bool inside;

    __device__ __forceinline__ Place(int height, int width, int channels, int rows = 1) {
        const unsigned vector = blockIdx.y * blockDim.x + threadIdx.x, vectors = channels / WIDTH;
        pixel.x = vector / vectors;
        pixel.y = blockIdx.x * rows;
        pixel.plane = blockIdx.z;
        channel = (vector - pixel.x * vectors) * WIDTH;
        inside = pixel.x < width;
        number = ((pixel.plane * height + pixel.y) * width + pixel.x) * channels + channel;
    }
};

// From where the channels of pixel (y, x) of an image stand.
__device__ __forceinline__ long long channels_of(long long image, int y, int x, int height, int width,
                                                 int channels) {
    return ((image * height + y) * width + x) * channels;
}

// Calls function(numbers) for the numbers of a range, COUNT of them at a time, and for what is left by fewer.
template <int COUNT = 3, typename Function>
__device__ __forceinline__ void in_groups(Range range, Function function) {
    for (; range.begin + COUNT <= range.end; range.begin += COUNT) {
        int numbers[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) numbers[k] = range.begin + k;
        function(numbers);
    }
    if constexpr (COUNT > 1) in_groups<COUNT - 1>(range, function);
}

// The vectors at `from` and so many `steps` behind it.
template <int WIDTH, typename T, int COUNT>
struct Loaded {
    Vector<T, WIDTH> vector[COUNT];

    __device__ __forceinline__ Loaded(const T* from, const int (&steps)[COUNT], long long step) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) vector[k] = load_vector<WIDTH>(from + steps[k] * step);
    }
};

template <typename T, typename Tap, bool WIDE>
__global__ void max_pool2d_last(T* out, Tap* taps, const T* input, int channels, Pool2dShape s) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    using C = Computed<T>;
    const Place<WIDTH> to(s.OH, s.OW, channels);
    if (!to.inside) return;
    const int y0 = to.pixel.y * s.stride_h - s.pad_h, x0 = to.pixel.x * s.stride_w - s.pad_w;
    const Range rows = taps_inside(y0, s.kernel_h, s.dilation_h, s.H);
    const Range columns = taps_inside(x0, s.kernel_w, s.dilation_w, s.W);
    C largest[WIDTH];
    int winners[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const Largest<C> none(first_tap(rows, columns, s.kernel_w));
        largest[k] = none.value;
        winners[k] = none.tap;
    }
    const long long right = (long long)s.dilation_w * channels;
    for (int i = rows.begin; i < rows.end; i++) {
        const T* row = input + channels_of(to.pixel.plane, y0 + i * s.dilation_h, x0, s.H, s.W, channels) + to.channel;
        in_groups(columns, [&](const auto& taps) {
            constexpr int COUNT = sizeof(taps) / sizeof(taps[0]);
            const Loaded<WIDTH, T, COUNT> loaded(row, taps, right);
#pragma unroll
            for (int t = 0; t < COUNT; t++)
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    const C element = C(loaded.vector[t].lane[k]);
                    const bool wins = (element > largest[k]) | isnan(element);  // || would be a branch
                    largest[k] = wins ? element : largest[k];
                    winners[k] = wins ? i * s.kernel_w + taps[t] : winners[k];
                }
        });
    }
    Vector<T, WIDTH> values;
    Vector<Tap, WIDTH> numbers;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        values.lane[k] = T(largest[k]);
        numbers.lane[k] = Tap(winners[k]);
    }
    store_vector(out + to.number, values);
    store_vector(taps + to.number, numbers);
}

// Stores the gradients of `rows` pixels, one below the other. function(sums, rows, columns, window) adds those of a
// window over each: `rows` and `columns` tell which one, `window` where its channels stand.
template <int WIDTH, typename T, typename Function>
__device__ __forceinline__ void gather(T* grad_input, int channels, const Pool2dShape& s, int rows, Function function) {
    const Place<WIDTH> to(s.H, s.W, channels, rows);
    if (!to.inside) return;
    const WindowOver last(to.pixel.x, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, s.OW);
    WindowOver lowest(to.pixel.y, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, s.OH);
    const long long row = (long long)s.OW * channels;
    long long corner =
        channels_of(to.pixel.plane, lowest.index, last.index, s.OH, s.OW, channels) + to.channel;
    T* pixel = grad_input + to.number;
    const int end = min(to.pixel.y + rows, s.H);
#pragma unroll 1
    for (int y = to.pixel.y; y < end; y++) {
        Vector<Computed<T>, WIDTH> sums = {};
        long long in_column = corner;
#pragma unroll 1
        for (WindowOver oh = lowest; oh.covers(); oh.next(), in_column -= row) {
            if (!oh.has_tap()) continue;
            long long window = in_column;
#pragma unroll 1
            for (WindowOver ow = last; ow.covers(); ow.next(), window -= channels)
                if (ow.has_tap()) function(sums, oh, ow, window);
        }
        store_vector(pixel, converted<T>(sums));
        pixel += (long long)s.W * channels;
        if (lowest.move()) corner += row;
    }
}

template <typename T, typename Tap, bool WIDE>
__global__ void max_pool2d_input_grad_last(T* grad_input, const T* grad_output, const Tap* taps, int channels,
                                           Pool2dShape s, int rows) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    gather<WIDTH>(grad_input, channels, s, rows, [&](auto& sums, const auto& oh, const auto& ow, long long window) {
        const int tap = oh.tap() * s.kernel_w + ow.tap();
        const Vector<Tap, WIDTH> winners = load_vector<WIDTH>(taps + window);
        const Vector<T, WIDTH> grads = load_vector<WIDTH>(grad_output + window);
#pragma unroll
        for (int k = 0; k < WIDTH; k++)
            if (winners.lane[k] == tap) sums.lane[k] += Computed<T>(grads.lane[k]);
    });
}

// sums += the channels that stand at `from`, each times `factor`.
template <int WIDTH, typename T>
__device__ __forceinline__ void add(Vector<Computed<T>, WIDTH>& sums, const T* from, Computed<T> factor) {
    const Vector<T, WIDTH> elements = load_vector<WIDTH>(from);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sums.lane[k] += Computed<T>(elements.lane[k]) * factor;
}

// The mean of a window: the sum of what is inside, over `divisor`.
template <int WIDTH, typename T>
__device__ __forceinline__ void store_mean(T* out, const T* input, const Place<WIDTH>& to, Range rows,
                                           Range columns, Computed<T> divisor, int H, int W, int channels) {
    Vector<Computed<T>, WIDTH> sums = {};
    for (int y = rows.begin; y < rows.end; y++) {
        const T* row = input + channels_of(to.pixel.plane, y, 0, H, W, channels) + to.channel;
        in_groups(columns, [&](const auto& numbers) {
            constexpr int COUNT = sizeof(numbers) / sizeof(numbers[0]);
            const Loaded<WIDTH, T, COUNT> loaded(row, numbers, channels);
#pragma unroll
            for (int x = 0; x < COUNT; x++)
#pragma unroll
                for (int k = 0; k < WIDTH; k++) sums.lane[k] += Computed<T>(loaded.vector[x].lane[k]);
        });
    }
    const Computed<T> factor = 1 / divisor;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sums.lane[k] *= factor;
    store_vector(out + to.number, converted<T>(sums));
}

template <typename T, bool WIDE>
__global__ void avg_pool2d_last(T* out, const T* input, int channels, Pool2dShape s, AvgDivisor how) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const Place<WIDTH> to(s.OH, s.OW, channels);
    if (!to.inside) return;
    const AvgWindow columns(to.pixel.x, s.kernel_w, s.stride_w, s.pad_w, s.W);
    const AvgWindow rows(to.pixel.y, s.kernel_h, s.stride_h, s.pad_h, s.H);
    const bool empty = !rows.inside.length() || !columns.inside.length();
    const auto divisor = empty ? Computed<T>(1) : avg_divisor<Computed<T>>(rows, columns, how);
    store_mean<WIDTH>(out, input, to, rows.inside, columns.inside, divisor, s.H, s.W, channels);
}

template <typename T, bool WIDE>
__global__ void avg_pool2d_input_grad_last(T* grad_input, const T* grad_output, int channels, Pool2dShape s,
                                           AvgDivisor how, int rows) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    using C = Computed<T>;
    s.dilation_h = s.dilation_w = 1;  // as it is, known to the compiler
    if (how.divisor) {
        const C factor = 1 / C(how.divisor);
        gather<WIDTH>(grad_input, channels, s, rows, [&](auto& sums, const auto&, const auto&, long long window) {
            add<WIDTH>(sums, grad_output + window, factor);
        });
        return;
    }
    gather<WIDTH>(grad_input, channels, s, rows, [&](auto& sums, const auto& oh, const auto& ow, long long window) {
        const AvgWindow over_y(oh.index, s.kernel_h, s.stride_h, s.pad_h, s.H);
        const AvgWindow over_x(ow.index, s.kernel_w, s.stride_w, s.pad_w, s.W);
        add<WIDTH>(sums, grad_output + window, 1 / avg_divisor<C>(over_y, over_x, how));
    });
}

template <typename T, bool WIDE>
__global__ void adaptive_avg_pool2d_last(T* out, const T* input, int channels, AdaptiveShape s) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const Place<WIDTH> to(s.OH, s.OW, channels);
    if (!to.inside) return;
    const Range columns = adaptive_window(to.pixel.x, s.W, s.OW);
    const Range rows = adaptive_window(to.pixel.y, s.H, s.OH);
    const auto elements = Computed<T>((long long)rows.length() * columns.length());
    store_mean<WIDTH>(out, input, to, rows, columns, elements, s.H, s.W, channels);
}

template <typename T, bool WIDE>
__global__ void adaptive_avg_pool2d_input_grad_last(T* grad_input, const T* grad_output, int channels,
                                                    AdaptiveShape s) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const Place<WIDTH> to(s.H, s.W, channels);
    if (!to.inside) return;
    const Range ow = adaptive_windows_over(to.pixel.x, s.W, s.OW);
    const Range oh = adaptive_windows_over(to.pixel.y, s.H, s.OH);
    Vector<Computed<T>, WIDTH> sums = {};
    for (int i = oh.begin; i < oh.end; i++) {
        const int rows = adaptive_window(i, s.H, s.OH).length();
        for (int j = ow.begin; j < ow.end; j++) {
            const int columns = adaptive_window(j, s.W, s.OW).length();
            const long long window = channels_of(to.pixel.plane, i, j, s.OH, s.OW, channels) + to.channel;
            add<WIDTH>(sums, grad_output + window, 1 / Computed<T>((long long)rows * columns));
        }
    }
    store_vector(grad_input + to.number, converted<T>(sums));
}
