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
    const Position at(number, s.OH, s.OW);
    const T* plane = input + at.plane * s.H * s.W;
    const int y0 = at.y * s.stride_h - s.pad_h, x0 = at.x * s.stride_w - s.pad_w;
    const Range rows = taps_inside(y0, s.kernel_h, s.dilation_h, s.H);
    const Range columns = taps_inside(x0, s.kernel_w, s.dilation_w, s.W);

    Largest<T> largest(first_tap(rows, columns, s.kernel_w));
    for (int i = rows.begin; i < rows.end; i++) {
        const T* row = plane + (long long)(y0 + i * s.dilation_h) * s.W;
        for (int j = columns.begin; j < columns.end; j++)
            largest.see(row[x0 + j * s.dilation_w], i * s.kernel_w + j);
    }
    out[number] = largest.value;
    taps[number] = Tap(largest.tap);
}

// An input element gets the gradients of the windows that it won. For each tap (i, j) there is at most one
// window in which the element stands at that tap.
template <typename T, typename Tap>
__global__ void max_pool2d_input_grad(T* grad_input, const T* grad_output, const Tap* taps, Pool2dShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.H * s.W) return;
    const Position at(number, s.H, s.W);
    const long long plane = at.plane * s.OH * s.OW;
    T sum = 0;
    for (int i = 0; i < s.kernel_h; i++) {
        const int start_y = at.y + s.pad_h - i * s.dilation_h;
        if (start_y < 0 || start_y % s.stride_h != 0 || start_y / s.stride_h >= s.OH) continue;
        const long long row = plane + (long long)(start_y / s.stride_h) * s.OW;
        for (int j = 0; j < s.kernel_w; j++) {
            const int start_x = at.x + s.pad_w - j * s.dilation_w;
            if (start_x < 0 || start_x % s.stride_w != 0 || start_x / s.stride_w >= s.OW) continue;
            const long long window = row + start_x / s.stride_w;
            if (taps[window] == i * s.kernel_w + j) sum += grad_output[window];
        }
    }
    grad_input[number] = sum;
}

// The input at each window's winning tap: the adjoint of max_pool2d_input_grad, for second gradients.
template <typename T, typename Tap>
__global__ void max_pool2d_gather(T* out, const T* input, const Tap* taps, Pool2dShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at(number, s.OH, s.OW);
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
    const Position at(number, s.OH, s.OW);
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
        const Position at(first, s.OH, s.OW);
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
    const TwoRows<T> rows(input, s);
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        typename Square<T>::template Each<T> values;
        typename Square<T>::template Each<Tap> winners;
#pragma unroll
        for (int w = 0; w < Square<T>::WINDOWS; w++) {
            Largest<T> largest(0);
            largest.see(rows.upper[k].lane[2 * w], 0);
            largest.see(rows.upper[k].lane[2 * w + 1], 1);
            largest.see(rows.lower[k].lane[2 * w], 2);
            largest.see(rows.lower[k].lane[2 * w + 1], 3);
            values.lane[w] = largest.value;
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
__global__ void avg_pool2d_vectorized(T* out, const T* input, Pool2dShape s, T divisor) {
    const TwoRows<T> rows(input, s);
#pragma unroll
    for (int k = 0; k < SQUARES; k++) {
        const Square<T> square(s, k);
        if (!square.exists) continue;
        const Vector<T>&upper = rows.upper[k], &lower = rows.lower[k];
        typename Square<T>::template Each<T> means;
#pragma unroll
        for (int w = 0; w < Square<T>::WINDOWS; w++)
            means.lane[w] =
                (upper.lane[2 * w] + upper.lane[2 * w + 1] + lower.lane[2 * w] + lower.lane[2 * w + 1]) / divisor;
        square.store(out, means);
    }
}

template <typename T>
__global__ void avg_pool2d_input_grad_vectorized(T* grad_input, const T* grad_output, Pool2dShape s,
                                                 T divisor) {
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
            row.lane[2 * w] = row.lane[2 * w + 1] = gradients[k].lane[w] / divisor;
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
__device__ T sum_of(const T* plane, int width, Range rows, Range columns) {
    T sum = 0;
    for (int y = rows.begin; y < rows.end; y++)
        for (int x = columns.begin; x < columns.end; x++) sum += plane[(long long)y * width + x];
    return sum;
}

template <typename T>
__global__ void avg_pool2d(T* out, const T* input, Pool2dShape s, AvgDivisor how) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.OH * s.OW) return;
    const Position at(number, s.OH, s.OW);
    const AvgWindow columns(at.x, s.kernel_w, s.stride_w, s.pad_w, s.W);
    const AvgWindow rows(at.y, s.kernel_h, s.stride_h, s.pad_h, s.H);
    const bool empty = !rows.inside.length() || !columns.inside.length();
    const T* plane = input + at.plane * s.H * s.W;
    const T sum = sum_of(plane, s.W, rows.inside, columns.inside);
    out[number] = empty ? T(0) : sum / avg_divisor<T>(rows, columns, how);
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
        const Position at(blockIdx.x, ceil_div(s.OH, tile.rows), ceil_div(s.OW, tile.columns));
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
    const StagedInput<T> staged(input, -T(INFINITY), s, tile);
    const Range columns = taps_inside(staged.x * s.stride_w - s.pad_w, s.kernel_w, s.dilation_w, s.W);
    for (int row = threadIdx.y; row < staged.rows(); row += blockDim.y) {
        const int y0 = (staged.first_y + row) * s.stride_h - s.pad_h;
        const Range rows = taps_inside(y0, s.kernel_h, s.dilation_h, s.H);
        Largest<T> largest(first_tap(rows, columns, s.kernel_w));  // padding is never larger
        staged.window(row, [&](T element, int tap) { largest.see(element, tap); });
        if (staged.x >= s.OW) continue;
        out[staged.number(row)] = largest.value;
        taps[staged.number(row)] = Tap(largest.tap);
    }
}

template <typename T>
__global__ void avg_pool2d_tiled(T* out, const T* input, Pool2dShape s, AvgDivisor how, PoolTile tile) {
    const StagedInput<T> staged(input, T(0), s, tile);
    const AvgWindow columns(staged.x, s.kernel_w, s.stride_w, s.pad_w, s.W);
    for (int row = threadIdx.y; row < staged.rows(); row += blockDim.y) {
        const AvgWindow rows(staged.first_y + row, s.kernel_h, s.stride_h, s.pad_h, s.H);
        const bool empty = !rows.inside.length() || !columns.inside.length();
        T sum = 0;
        staged.window(row, [&](T element, int) { sum += element; });
        if (staged.x >= s.OW) continue;
        out[staged.number(row)] = empty ? T(0) : sum / avg_divisor<T>(rows, columns, how);
    }
}

// ---- 3 x 3 windows ----
//
// At stride 1 or 2, with a padding of 0 or 1. A thread takes as many neighbouring columns of windows as a vector
// has elements, and walks down. Of each row of the input it makes what the windows need of three columns, once,
// and keeps it in registers for the up to three rows of windows that this row belongs to: no shared memory and
// no barrier. It asks for BATCH rows before it uses the first.
//
// Grid: x = a thread for each strip of columns and each segment of `rows` rows of windows, of each plane.

template <typename T, int STRIDE, int PAD>
struct Rolling {
    static constexpr int WINDOWS = Vector<T>::LENGTH;
    static constexpr int REACH = (WINDOWS - 1) * STRIDE + 3;  // columns under them
    static constexpr int BATCH = STRIDE == 1 ? 4 : 2;         // rows of the input
    static constexpr int KEPT = 3 - STRIDE;                   // rows that the next windows need, too
    using Elements = T[REACH];

    const Pool2dShape& s;
    const T* plane;
    long long number;  // of the plane
    int first, end;    // rows of windows
    int column;        // the first window's
    bool whole;        // whether the input may be read in vectors

    __device__ __forceinline__ Rolling(const T* input, const Pool2dShape& s, int rows) : s(s) {
        const int segments = ceil_div(s.OH, rows), strips = ceil_div(s.OW, WINDOWS);
        const Position at(global_thread_index(), segments, strips);
        number = at.plane;
        plane = input + number * s.H * s.W;
        first = at.y * rows;
        end = min(first + rows, s.OH);
        column = at.x * WINDOWS;
        whole = s.W % WINDOWS == 0 && aligned<WINDOWS>(input);
    }

    __device__ __forceinline__ bool exists() const { return number < s.planes; }

    // The elements of row y under the windows, and `padding` where there are none.
    __device__ __forceinline__ void load(Elements& to, int y, T padding) const {
        const bool inside = y >= 0 && y < s.H;
        const T* row = plane + (long long)y * s.W;
        const int start = column * STRIDE;  // of the first vector; PAD elements stand before it
        if (whole) {
#pragma unroll
            for (int v = 0; v < STRIDE; v++) {
                const int x = start + v * WINDOWS;
                Vector<T> elements;
                for (int n = 0; n < WINDOWS; n++) elements.lane[n] = padding;
                if (inside && x < s.W) elements = load_vector(row + x);
#pragma unroll
                for (int n = 0; n < WINDOWS; n++) to[PAD + v * WINDOWS + n] = elements.lane[n];
            }
        }
#pragma unroll
        for (int k = 0; k < REACH; k++) {
            if (whole && k >= PAD && k < PAD + STRIDE * WINDOWS) continue;
            const int x = start - PAD + k;
            to[k] = inside && x >= 0 && x < s.W ? row[x] : padding;
        }
    }

    // For every row of windows calls reduce(elements, a row's) once for each row of the input, and
    // finish(row, three rows').
    template <typename Row, typename Reduce, typename Finish>
    __device__ __forceinline__ void down(T padding, Reduce reduce, Finish finish) const {
        Row rows[KEPT + BATCH];
        Elements elements[BATCH];
#pragma unroll
        for (int k = 0; k < KEPT; k++) load(elements[k], first * STRIDE - PAD + k, padding);
#pragma unroll
        for (int k = 0; k < KEPT; k++) rows[k] = reduce(elements[k]);
        for (int row = first; row < end; row += BATCH / STRIDE) {
#pragma unroll
            for (int k = 0; k < BATCH; k++) load(elements[k], row * STRIDE - PAD + KEPT + k, padding);
#pragma unroll
            for (int k = 0; k < BATCH; k++) rows[KEPT + k] = reduce(elements[k]);
#pragma unroll
            for (int k = 0; k < BATCH / STRIDE; k++)
                if (row + k < end) finish(row + k, rows + k * STRIDE);
#pragma unroll
            for (int k = 0; k < KEPT; k++) rows[k] = rows[BATCH + k];
        }
    }

    template <typename Value>
    __device__ __forceinline__ void store(Value* to, int row, const Vector<Value, WINDOWS>& values) const {
        to += (number * s.OH + row) * s.OW + column;
        if (s.OW % WINDOWS == 0 && aligned<WINDOWS>(to)) {
            store_vector(to, values);
            return;
        }
#pragma unroll
        for (int w = 0; w < WINDOWS; w++)
            if (column + w < s.OW) to[w] = values.lane[w];
    }
};

template <typename T, typename Tap, int STRIDE, int PAD>
__global__ void __launch_bounds__(256) max_pool2d_rolling(T* out, Tap* taps, const T* input, Pool2dShape s, int rows) {
    using Strip = Rolling<T, STRIDE, PAD>;
    constexpr int WINDOWS = Strip::WINDOWS;
    const Strip strip(input, s, rows);
    if (!strip.exists()) return;
    struct Row {
        T value[WINDOWS];
        int tap[WINDOWS];
    };
    const auto reduce = [](const typename Strip::Elements& elements) {
        Row row;
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) {
            Largest<T> largest(0);
            largest.value = elements[w * STRIDE];
            largest.see(elements[w * STRIDE + 1], 1);
            largest.see(elements[w * STRIDE + 2], 2);
            row.value[w] = largest.value, row.tap[w] = largest.tap;
        }
        return row;
    };
    strip.template down<Row>(-T(INFINITY), reduce, [&](int y, const Row* rows) {
        const Range inside = taps_inside(y * STRIDE - PAD, 3, 1, s.H);
        Vector<T, WINDOWS> values;
        Vector<Tap, WINDOWS> winners;
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) {
            const Range columns = taps_inside((strip.column + w) * STRIDE - PAD, 3, 1, s.W);
            Largest<T> largest(first_tap(inside, columns, 3));  // padding is never larger
#pragma unroll
            for (int i = 0; i < 3; i++) largest.see(rows[i].value[w], 3 * i + rows[i].tap[w]);
            values.lane[w] = largest.value, winners.lane[w] = Tap(largest.tap);
        }
        strip.store(out, y, values);
        strip.store(taps, y, winners);
    });
}

template <typename T, int STRIDE, int PAD>
__global__ void __launch_bounds__(256) avg_pool2d_rolling(T* out, const T* input, Pool2dShape s, AvgDivisor how, int rows) {
    using Strip = Rolling<T, STRIDE, PAD>;
    constexpr int WINDOWS = Strip::WINDOWS;
    const Strip strip(input, s, rows);
    if (!strip.exists()) return;
    using Row = Vector<T, WINDOWS>;
    const auto reduce = [](const typename Strip::Elements& elements) {
        Row row;
#pragma unroll
        for (int w = 0; w < WINDOWS; w++)
            row.lane[w] = elements[w * STRIDE] + elements[w * STRIDE + 1] + elements[w * STRIDE + 2];
        return row;
    };
    strip.template down<Row>(T(0), reduce, [&](int y, const Row* rows) {
        const AvgWindow window(y, 3, STRIDE, PAD, s.H);
        Row means;
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) {
            const AvgWindow columns(strip.column + w, 3, STRIDE, PAD, s.W);
            const bool empty = !window.inside.length() || !columns.inside.length();
            const T sum = rows[0].lane[w] + rows[1].lane[w] + rows[2].lane[w];
            means.lane[w] = empty ? T(0) : sum / avg_divisor<T>(window, columns, how);
        }
        strip.store(out, y, means);
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
    const Position at(number, s.H, s.W);
    const Range ow = windows_over(at.x, s.kernel_w, s.stride_w, s.pad_w, s.OW);
    const Range oh = windows_over(at.y, s.kernel_h, s.stride_h, s.pad_h, s.OH);
    const T* plane = grad_output + at.plane * s.OH * s.OW;
    T sum = 0;
    for (int i = oh.begin; i < oh.end; i++) {
        const AvgWindow rows(i, s.kernel_h, s.stride_h, s.pad_h, s.H);
        for (int j = ow.begin; j < ow.end; j++) {
            const AvgWindow columns(j, s.kernel_w, s.stride_w, s.pad_w, s.W);
            sum += plane[(long long)i * s.OW + j] / avg_divisor<T>(rows, columns, how);
        }
    }
    grad_input[number] = sum;
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
    const Position at(number, s.OH, s.OW);
    const Range columns = adaptive_window(at.x, s.W, s.OW);
    const Range rows = adaptive_window(at.y, s.H, s.OH);
    const T* plane = input + at.plane * s.H * s.W;
    out[number] = sum_of(plane, s.W, rows, columns) / T((long long)rows.length() * columns.length());
}

template <typename T>
__global__ void adaptive_avg_pool2d_input_grad(T* grad_input, const T* grad_output, AdaptiveShape s) {
    const long long number = global_thread_index();
    if (number >= s.planes * s.H * s.W) return;
    const Position at(number, s.H, s.W);
    const Range ow = adaptive_windows_over(at.x, s.W, s.OW);
    const Range oh = adaptive_windows_over(at.y, s.H, s.OH);
    const T* plane = grad_output + at.plane * s.OH * s.OW;
    T sum = 0;
    for (int i = oh.begin; i < oh.end; i++) {
        const int rows = adaptive_window(i, s.H, s.OH).length();
        for (int j = ow.begin; j < ow.end; j++) {
            const int columns = adaptive_window(j, s.W, s.OW).length();
            sum += plane[(long long)i * s.OW + j] / T((long long)rows * columns);
        }
    }
    grad_input[number] = sum;
}
