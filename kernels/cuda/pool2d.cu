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
//                    memory
//   ..._scatter      for windows that do not overlap: a thread for each window writes all that it covers
//   ..._vectorized   for 2x2 windows side by side: vectors of 16 bytes from and to two rows at a time, and
//                    the results of neighbours stored as one
//
// Arrays may be of 16 bits: their elements are compared and added in float32.
//
// Arithmetic intensity: a 2x2 window at stride 2 reads 16 bytes and writes 5 for 3 comparisons. The kernels
// are bound by memory; the threads of a warp are neighbours in a row of the result, so that the lines of
// memory that they touch are used whole.
//
// Grid of every kernel without a suffix: one dimension, a thread for each element of its result.

#include "common.cuh"
#include "vector.cuh"

struct Pool2dShape {
    long long planes;
    int H, W, OH, OW;
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Where element `number` of a (planes, height, width) array stands. Two divisions of 64 bits take about two hundred
// instructions, as many as all the rest of a pooling; two of 32 bits, which nearly always do, forty.
__device__ __forceinline__ Position position_of(long long number, int height, int width) {
    if (number >> 32 != 0) return Position(number, height, width);
    Position at;
    const unsigned row = unsigned(number) / width;
    at.x = unsigned(number) - row * width;
    at.plane = row / height;
    at.y = row - unsigned(at.plane) * height;
    return at;
}

// A half-open range of rows or columns.
struct Range {
    int begin, end;
    __device__ int length() const { return end > begin ? end - begin : 0; }
};

// The taps of a window that lie inside the input, where `start` is the (maybe negative) position of tap 0.
__device__ __forceinline__ Range taps_inside(int start, int kernel, int dilation, int size) {
    const int begin = start < 0 ? ceil_div(-start, dilation) : 0;
    const int end = ceil_div(size - start, dilation);
    return {begin, end < kernel ? end : kernel};
}

// The largest of a window's elements, as far as it has seen them, and its tap.
template <typename T>
struct Largest {
    T value;
    int tap;

    __device__ __forceinline__ explicit Largest(int first_tap) : value(-T(INFINITY)), tap(first_tap) {}

    __device__ __forceinline__ void see(T element, int its_tap) {
        if (element > value || isnan(element)) {
            value = element;
            tap = its_tap;
        }
    }
};

// The tap of the first element inside the input of the window that starts at (y0, x0): 0 if there is none.
__device__ __forceinline__ int first_tap(Range rows, Range columns, int kernel_w) {
    return rows.length() && columns.length() ? rows.begin * kernel_w + columns.begin : 0;
}

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

// ---- 2 x 2 windows at stride 2 ----
//
// The commonest pooling: no padding, no dilation, rows of whole vectors. A thread takes the windows under one
// vector of 16 bytes, two in float32 and one in float64: a vector of the upper row and one of the lower. It does
// so for SQUARES such groups of windows, which a block's threads apart, and loads all before it uses the first.
//
// Grid: x = a thread for so many windows.
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

// How an average divides: by `divisor` if that is not 0, else by the window's size, where the padding (but
// not what hangs over its far border) counts if `count_include_pad` is set.
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

// ---- Windows that overlap, in tiles ----
//
// A block makes a tile of windows of one plane. First it stages the input that they cover, padding included,
// in shared memory; then every thread makes the windows of a column that are blockDim.y rows apart. So global
// memory is asked once for each element, and again only for what neighbouring tiles share.
//
// For a float32 output of 3x3 windows at stride 1 (planes of 56 x 56), the definition asks for 44.0 bytes of
// input, the tiles for 5.8 (counted on the simulator, in sectors of 32 bytes); with the output and its tap it
// is 49.0 and 11.6: 4.2 times fewer. The least is 4 and 9. At stride 2 it is 80.8 and 24.3 (least: 16 and 21).
//
// Window x of a tile has its tap j in column x stride_w + j dilation_w. If columns lay in their order, a stride
// of 2 would make the 32 threads of a warp wait for 16 of the 32 banks. So they are sorted by their remainder
// modulo stride_w: in each class, a phase, neighbouring windows find neighbouring elements. The host pads the
// phases and rows so that no bank is asked twice, neither by the loads nor by the stores (pool2d.py).
//
// Grid: x = the tiles, of a row first and of a plane next. Block: (columns, some of the rows).
// Shared memory: input_rows * pitch elements, at most 24 KB. A thread takes some 40 registers, so that the
// 65536 of a multiprocessor are enough for six blocks of 256 threads; its 228 KB are enough for nine.

struct PoolTile {
    int rows, columns;              // windows
    int input_rows, input_columns;  // under them; columns for whole turns of a row of threads
    int phase, pitch;               // elements from a phase, or a row, to the next in shared memory
};

template <typename T>
struct StagedInput {
    const Pool2dShape& s;
    const PoolTile& tile;
    const T* elements;
    long long plane;
    int first_y, x;  // the first window's row, and the column of this thread's windows

    // Stages the input of this block's tile, with `padding` where there is none.
    __device__ __forceinline__ StagedInput(const T* input, T padding, const Pool2dShape& s,
                                           const PoolTile& tile)
        : s(s), tile(tile) {
        extern __shared__ __align__(16) unsigned char shared[];
        T* const staged = reinterpret_cast<T*>(shared);
        const Position at = position_of(blockIdx.x, ceil_div(s.OH, tile.rows), ceil_div(s.OW, tile.columns));
        plane = at.plane, first_y = at.y * tile.rows, x = at.x * tile.columns + threadIdx.x;
        const int top = first_y * s.stride_h - s.pad_h;
        const int left = at.x * tile.columns * s.stride_w - s.pad_w;
        const int needed = (tile.columns - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
        const Range columns = {-left, min(needed, s.W - left)};  // those that there are
        for (int row = threadIdx.y; row < tile.input_rows; row += blockDim.y) {
            const bool inside = top + row >= 0 && top + row < s.H;
            const T* from = input + (plane * s.H + top + row) * s.W + left;
            for (int column = threadIdx.x; column < tile.input_columns; column += blockDim.x) {
                const bool exists = inside && column >= columns.begin && column < columns.end;
                const int place = s.stride_w == 1
                                      ? column
                                      : column % s.stride_w * tile.phase + column / s.stride_w;
                staged[row * tile.pitch + place] = exists ? from[column] : padding;
            }
        }
        elements = staged;
        __syncthreads();
    }

    // Calls see(element, tap) for all taps of the window in row `row` of the tile, and in this thread's column.
    template <typename See>
    __device__ __forceinline__ void window(int row, See see) const {
        const int step = s.dilation_w / s.stride_w, phase_step = s.dilation_w % s.stride_w;
        int tap = 0;
        for (int i = 0; i < s.kernel_h; i++) {
            const T* at = elements + (row * s.stride_h + i * s.dilation_h) * tile.pitch + threadIdx.x;
            for (int j = 0, phase = 0; j < s.kernel_w; j++) {
                see(*at, tap++);
                at += step + phase_step * tile.phase, phase += phase_step;
                if (phase >= s.stride_w) at += 1 - s.stride_w * tile.phase, phase -= s.stride_w;
            }
        }
    }

    // How many of the tile's rows there are.
    __device__ __forceinline__ int rows() const { return min(tile.rows, s.OH - first_y); }

    // The number of the window in that row.
    __device__ __forceinline__ long long number(int row) const {
        return (plane * s.OH + first_y + row) * s.OW + x;
    }
};

template <typename T, typename Tap>
__global__ void max_pool2d_tiled(T* out, Tap* taps, const T* input, Pool2dShape s, PoolTile tile) {
    using C = Computed<T>;
    const StagedInput<T> staged(input, T(-C(INFINITY)), s, tile);
    const Range columns = taps_inside(staged.x * s.stride_w - s.pad_w, s.kernel_w, s.dilation_w, s.W);
    for (int row = threadIdx.y; row < staged.rows(); row += blockDim.y) {
        const int y0 = (staged.first_y + row) * s.stride_h - s.pad_h;
        const Range rows = taps_inside(y0, s.kernel_h, s.dilation_h, s.H);
        Largest<C> largest(first_tap(rows, columns, s.kernel_w));  // padding is never larger
        staged.window(row, [&](T element, int tap) { largest.see(C(element), tap); });
        if (staged.x >= s.OW) continue;
        out[staged.number(row)] = T(largest.value);
        taps[staged.number(row)] = Tap(largest.tap);
    }
}

template <typename T>
__global__ void avg_pool2d_tiled(T* out, const T* input, Pool2dShape s, AvgDivisor how, PoolTile tile) {
    using C = Computed<T>;
    const StagedInput<T> staged(input, T(0), s, tile);
    const AvgWindow columns(staged.x, s.kernel_w, s.stride_w, s.pad_w, s.W);
    for (int row = threadIdx.y; row < staged.rows(); row += blockDim.y) {
        const AvgWindow rows(staged.first_y + row, s.kernel_h, s.stride_h, s.pad_h, s.H);
        const bool empty = !rows.inside.length() || !columns.inside.length();
        C sum = 0;
        staged.window(row, [&](T element, int) { sum += C(element); });
        if (staged.x >= s.OW) continue;
        out[staged.number(row)] = T(empty ? C(0) : sum / avg_divisor<C>(rows, columns, how));
    }
}

// ---- 3 x 3 windows ----
//
// With a padding of 1, at stride 1 or 2, on rows of whole vectors. A thread takes as many neighbouring columns
// of windows as a vector has elements, and walks down. Of each row of the input it makes what the windows need of
// three columns, once, and keeps it in registers for the up to three rows of windows that this row belongs to: no
// shared memory and no barrier. It asks for BATCH rows of the input before it uses the first.
//
// At stride 1 two windows side by side share two of their columns, and two below each other two rows. What they
// share is combined once: in float32 that leaves 3 comparisons for a window of 9 elements, where the definition
// makes 9. With loads and stores these are some 20 instructions for the 9 bytes of an element; an H200 has time
// for 60 (132 multiprocessors x 128 a cycle, at 4.3 TB/s).
//
// Grid: x = a thread for each strip of columns and each segment of `rows` rows of windows, of each plane.

template <typename T, int STRIDE>
struct Strip {
    using C = Computed<T>;
    static constexpr int WINDOWS = Vector<T>::LENGTH;
    static constexpr int REACH = (WINDOWS - 1) * STRIDE + 3;  // columns under them: one before the vectors
    static constexpr int BATCH = 2;                           // rows of the input
    static constexpr int KEPT = 3 - STRIDE;                   // rows that the next windows need, too

    const Pool2dShape& s;
    const T* first;  // the first vector's place in row 0 of the plane
    long long plane;
    int begin, end;  // rows of windows
    int column;      // the first window's

    __device__ __forceinline__ Strip(const T* input, const Pool2dShape& s, int rows) : s(s) {
        const Position at = position_of(global_thread_index(), ceil_div(s.OH, rows), s.OW / WINDOWS);
        plane = at.plane;
        begin = at.y * rows;
        end = min(begin + rows, s.OH);
        column = at.x * WINDOWS;
        first = input + plane * s.H * s.W + column * STRIDE;
    }

    __device__ __forceinline__ bool exists() const { return plane < s.planes; }

    // The elements of row y under the windows, and `padding` where there are none.
    __device__ __forceinline__ void load(C* to, int y, C padding) const {
        const bool inside = y >= 0 && y < s.H;
        const T* row = first + (long long)y * s.W;
#pragma unroll
        for (int v = 0; v < STRIDE; v++) {
            Vector<C, WINDOWS> elements;
#pragma unroll
            for (int n = 0; n < WINDOWS; n++) elements.lane[n] = padding;
            if (inside) elements = converted<C>(load_vector(row + v * WINDOWS));
#pragma unroll
            for (int n = 0; n < WINDOWS; n++) to[1 + v * WINDOWS + n] = elements.lane[n];
        }
        to[0] = inside && column > 0 ? C(row[-1]) : padding;
        if (STRIDE == 1) to[REACH - 1] = inside && column + WINDOWS < s.W ? C(row[WINDOWS]) : padding;
    }

    // Combines neighbours in threes: out[w] of in[w STRIDE], in[w STRIDE + 1], in[w STRIDE + 2], in this order.
    template <int OUTPUTS, typename In, typename Out, typename Combine>
    static __device__ __forceinline__ void in_threes(const In* in, Out* out, Combine combine) {
constexpr int PAIR = STRIDE == 1 && OUTPUTS % 2 == 0 ? 2 : 1;
#pragma unroll
        for (int w = 0; w < OUTPUTS; w += PAIR) {
            if constexpr (PAIR == 2) {
                const Out shared = combine(in[w + 1], in[w + 2]);
                out[w] = combine(in[w], shared);
                out[w + 1] = combine(shared, in[w + 3]);
            } else {
                out[w] = combine(combine(in[w * STRIDE], in[w * STRIDE + 1]), in[w * STRIDE + 2]);
            }
        }
    }

    // Calls each(row of windows, the rows of the input under BATCH / STRIDE of them) down the segment, after
    // take(k, elements) has been called for every row k of these that is new.
    template <typename Take, typename Keep, typename Each>
    __device__ __forceinline__ void down(C padding, Take take, Keep keep, Each each) const {
        C elements[BATCH][REACH];
#pragma unroll
        for (int k = 0; k < KEPT; k++) load(elements[k], begin * STRIDE - 1 + k, padding);
#pragma unroll
        for (int k = 0; k < KEPT; k++) take(k, elements[k]);
        for (int y = begin; y < end; y += BATCH / STRIDE) {
#pragma unroll
            for (int k = 0; k < BATCH; k++) load(elements[k], y * STRIDE - 1 + KEPT + k, padding);
#pragma unroll
            for (int k = 0; k < BATCH; k++) take(KEPT + k, elements[k]);
            each(y);
#pragma unroll
            for (int k = 0; k < KEPT; k++) keep(k, BATCH + k);
        }
    }

    template <typename Value>
    __device__ __forceinline__ void store(Value* to, int y, const Vector<Value, WINDOWS>& values) const {
        store_vector(to + (plane * s.OH + y) * s.OW + column, values);
    }
};

// An element and where it stands: 3 (row of the batch) + (column of the strip).
template <typename T>
struct Placed {
    T value;
    int place;
};

// Of two elements the larger; of equals the first; the last that is NaN, if NANS says that there may be any.
template <bool NANS, typename T>
__device__ __forceinline__ Placed<T> larger_of(Placed<T> a, Placed<T> b) {
    return b.value > a.value || (NANS && isnan(b.value)) ? b : a;
}

template <typename T, typename Tap, int STRIDE>
struct MaxStrip {
    using Of = Strip<T, STRIDE>;
    using C = Computed<T>;
    static constexpr int WINDOWS = Of::WINDOWS, OUTPUTS = Of::BATCH / STRIDE;
    Placed<C> rows[WINDOWS][Of::KEPT + Of::BATCH];  // the largest of three columns

    template <bool NANS>
    __device__ __forceinline__ void take(int k, const C* elements) {
        Placed<C> in[Of::REACH], largest[WINDOWS];
#pragma unroll
        for (int c = 0; c < Of::REACH; c++) in[c] = {elements[c], 3 * k + c};
        Of::template in_threes<WINDOWS>(in, largest, larger_of<NANS, C>);
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) rows[w][k] = largest[w];
    }

    template <bool NANS>
    __device__ __forceinline__ void each(const Of& strip, int y, T* out, Tap* taps) const {
        Placed<C> largest[WINDOWS][OUTPUTS];
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) Of::template in_threes<OUTPUTS>(rows[w], largest[w], larger_of<NANS, C>);
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            if (y + k >= strip.end) continue;
            Vector<T, WINDOWS> values;
            Vector<Tap, WINDOWS> winners;
#pragma unroll
            for (int w = 0; w < WINDOWS; w++) {
                int tap = largest[w][k].place - 3 * k * STRIDE - w * STRIDE;
                // Nothing is larger than the padding: the first element of the input.
                if (largest[w][k].value == -C(INFINITY)) tap = (y + k == 0 ? 3 : 0) + (strip.column + w == 0);
                values.lane[w] = T(largest[w][k].value);
                winners.lane[w] = Tap(tap);
            }
            strip.store(out, y + k, values);
            strip.store(taps, y + k, winners);
        }
    }
};

// NaNs are rare: until a thread has met one it takes the shorter comparisons. The sum of some numbers is NaN if
// one of them is (or if there are infinities of both signs among them).
template <typename T, typename Tap, int STRIDE>
__global__ void __launch_bounds__(256)
max_pool2d_rolling(T* out, Tap* taps, const T* input, Pool2dShape s, int rows) {
    using Of = Strip<T, STRIDE>;
    using C = Computed<T>;
    const Of strip(input, s, rows);
    if (!strip.exists()) return;
    MaxStrip<T, Tap, STRIDE> of;
    bool nans = false;
    const auto take = [&](int k, const C* elements) {
        C sum = elements[0];
#pragma unroll
        for (int c = 1; c < Of::REACH; c++) sum += elements[c];
        nans = nans || isnan(sum);
        if (nans) {
            of.template take<true>(k, elements);
        } else {
            of.template take<false>(k, elements);
        }
    };
    const auto keep = [&](int to, int from) {
#pragma unroll
        for (int w = 0; w < Of::WINDOWS; w++)
            of.rows[w][to] = {of.rows[w][from].value, of.rows[w][from].place - 3 * Of::BATCH};
    };
    strip.down(-C(INFINITY), take, keep, [&](int y) {
        if (nans) {
            of.template each<true>(strip, y, out, taps);
        } else {
            of.template each<false>(strip, y, out, taps);
        }
    });
}

template <typename T, int STRIDE>
__global__ void __launch_bounds__(256)
avg_pool2d_rolling(T* out, const T* input, Pool2dShape s, AvgDivisor how, int rows) {
    using Of = Strip<T, STRIDE>;
    using C = Computed<T>;
    constexpr int WINDOWS = Of::WINDOWS, OUTPUTS = Of::BATCH / STRIDE;
    const Of strip(input, s, rows);
    if (!strip.exists()) return;
    C sums[WINDOWS][Of::KEPT + Of::BATCH], factor[WINDOWS];
    const AvgWindow three(1, 3, 1, 1, 3);  // rows of the input, as nearly all windows have
#pragma unroll
    for (int w = 0; w < WINDOWS; w++)
        factor[w] = 1 / avg_divisor<C>(three, AvgWindow(strip.column + w, 3, STRIDE, 1, s.W), how);
    const auto add = [](C a, C b) { return a + b; };
    const auto take = [&](int k, const C* elements) {
        C of_three[WINDOWS];
        Of::template in_threes<WINDOWS>(elements, of_three, add);
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) sums[w][k] = of_three[w];
    };
    const auto keep = [&](int to, int from) {
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) sums[w][to] = sums[w][from];
    };
    strip.down(C(0), take, keep, [&](int y) {
        C sum[WINDOWS][OUTPUTS];
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) Of::template in_threes<OUTPUTS>(sums[w], sum[w], add);
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            if (y + k >= strip.end) continue;
            const AvgWindow window(y + k, 3, STRIDE, 1, s.H);
            Vector<T, WINDOWS> means;
#pragma unroll
            for (int w = 0; w < WINDOWS; w++) {
                means.lane[w] = T(sum[w][k] * factor[w]);
                if (window.inside.length() == 3) continue;
                const AvgWindow columns(strip.column + w, 3, STRIDE, 1, s.W);
                means.lane[w] = T(sum[w][k] / avg_divisor<C>(window, columns, how));
            }
            strip.store(out, y + k, means);
        }
    });
}

// The windows along one axis that cover position `at`: those that start in (at - kernel, at].
__device__ __forceinline__ Range windows_over(int at, int kernel, int stride, int pad, int outputs) {
    const int begin = at + pad - kernel < 0 ? 0 : (at + pad - kernel) / stride + 1;
    const int end = (at + pad) / stride + 1;
    return {begin, end < outputs ? end : outputs};
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

struct AdaptiveShape {
    long long planes;
    int H, W, OH, OW;
};

// Window `index` of `outputs` that divide `size` evenly: [floor(index size / outputs), ceil((index + 1) ...)).
// Windows overlap, or repeat elements, where the division leaves a remainder.
__device__ __forceinline__ Range adaptive_window(int index, int size, int outputs) {
    const long long begin = (long long)index * size / outputs;
    const long long end = ((long long)(index + 1) * size + outputs - 1) / outputs;
    return {int(begin), int(end)};
}

// The adaptive windows that cover position `at`: the same formula, with input and output changing places.
__device__ __forceinline__ Range adaptive_windows_over(int at, int size, int outputs) {
    return adaptive_window(at, outputs, size);
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
